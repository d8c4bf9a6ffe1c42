"""INT8 weights that reproduce each layer's output, rather than those nearest to the float weights.

Rounding every weight to its nearest level ignores that inputs are correlated: the error of one weight can cancel that
of another. This module looks for the levels that reproduce the float layer on calibration samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.layers import find_layers, store, write_bias
from edgekd.compress.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from onnx import ModelProto

    from edgekd.compress.layers import Doubles, Int8Layer
    from edgekd.runtime.session import Array, Feeds

#: Largest number of rounds over all inputs of a layer; the levels mostly settle sooner.
_ROUNDS = 20
#: Largest number of positions of a convolution's output, or of a sequence, taken from each sample.
_PLACES = 64
#: Largest number of inputs of an output; a layer with more keeps its weights, for second moments take 8 bytes a pair.
_MOST_INPUTS = 2304
#: Depths of layers that make good what those before them left, at most.
_MENDING = 16
#: Inputs of a layer whose gradients are kept up with each step.
_BLOCK = 32
#: Largest size of the activations that are kept from one depth of layers to the next, of each of the two graphs.
_KEPT_BYTES = 256_000_000


def reconstruct(
    qdq: ModelProto,
    floats: ModelProto,
    samples: Iterable[Feeds],
    largest: int,
    tell: Callable[[int, int], None] | None = None,
) -> None:
    """Choose the INT8 weights of a QDQ graph anew, in place, and the biases with them; scales stay as they are.

    For each layer, with x its float input and z the one that it gets in the QDQ graph, both less their means, the
    levels q with scales s minimise

        E |W x - (s q) z|^2 + E|z|^2 / K * |W - s q|^2

    over calibration samples, K inputs an output. The first term is the error of the output, the second what it would be
    were the inputs independent and alike: what few samples say nothing about stays near the float weights. The minimum
    is sought by coordinate descent from the nearest levels: each level in turn is set to its optimum given the others,
    so that the sum never grows (Behdin et al., "QuantEase: Optimization-based Quantization for Language Models", arXiv
    2309.01885, has the first term, with x = z). Then the bias takes up the mean error, which is why the means do not
    count; where there is no bias they do. Layers come in the order of their depth, so that each can make good what
    those before it left. Where there are many depths only some do, evenly spread, and for the others x = z: at each it
    gains nothing, and is more work.

    Args:
        qdq: The QDQ graph.
        floats: The float graph that was quantized.
        samples: The calibration samples.
        largest: The largest level; levels go from -largest to largest.
        tell: Is called with the number of layers that are done and the number of all.

    Raises:
        ModelError: The two graphs do not belong together.
    """
    layers = [layer for layer in find_layers(qdq, floats) if layer.weights.shape[1] <= _MOST_INPUTS]
    depths = sorted({layer.depth for layer in layers})
    stages = [[layer for layer in layers if layer.depth == depth] for depth in depths]
    rounded = Walk(qdq, samples, [[layer.source for layer in stage] for stage in stages], _KEPT_BYTES)
    mending = {group[0] for group in np.array_split(depths, min(_MENDING, len(depths)))} if depths else set()
    exact_stages = [[layer.exact for layer in stage] for stage in stages if stage[0].depth in mending]
    exact = iter(Walk(floats, samples, exact_stages, _KEPT_BYTES))
    done = 0
    for stage, inputs in zip(stages, rounded, strict=True):
        targets = next(exact) if stage[0].depth in mending else None
        for layer, moments in zip(stage, _moments(stage, inputs, targets), strict=True):
            _rewrite(qdq, layer, moments, largest)
            done += 1
            if tell:
                tell(done, len(layers))


@dataclass
class LayerMoments:
    """Sums over patches of a layer's input z in the QDQ graph and of x in the float one, by group.

    Products of a chunk are of single precision, their sums of double. They are taken around ``center``: of means that
    are large beside the deviations, single precision would leave nothing else.

    Attributes:
        center: What is taken from z and x alike, the mean of the first chunk's z [G, 1, K].
        count: Number of patches.
        z: Sum of z - center [G, K, 1].
        x: Sum of x - center [G, K, 1].
        zz: Sum of (z - center) (z - center)^T [G, K, K].
        zx: Sum of (z - center) (x - center)^T [G, K, K].
    """

    center: Array
    count: int
    z: Doubles
    x: Doubles
    zz: Doubles
    zx: Doubles

    @classmethod
    def around(cls, z: Array) -> LayerMoments:
        """Return the moments of no patch, to be taken around the mean of these [G, n, K]."""
        groups, _, inputs = z.shape
        vectors, products = (groups, inputs, 1), (groups, inputs, inputs)
        center = z.mean(1, dtype=np.float64, keepdims=True).astype(np.float32)
        return cls(center, 0, np.zeros(vectors), np.zeros(vectors), np.zeros(products), np.zeros(products))

    def add(self, z: Array, x: Array) -> None:
        """Add patches of both inputs [G, n, K]."""
        same = x is z
        z = np.subtract(z, self.center, dtype=np.float32, casting="same_kind")
        x = z if same else np.subtract(x, self.center, dtype=np.float32, casting="same_kind")
        transposed = z.swapaxes(1, 2)
        self.count += z.shape[1]
        self.z += z.sum(1, dtype=np.float64)[..., None]
        self.x += x.sum(1, dtype=np.float64)[..., None]
        product = transposed @ z
        self.zz += product
        self.zx += product if same else transposed @ x

    def means(self) -> tuple[Doubles, Doubles]:
        """Return the means of z and of x [G, K, 1]."""
        center = self.center.swapaxes(1, 2).astype(np.float64)
        return center + self.z / self.count, center + self.x / self.count

    def products(self, centred: bool) -> tuple[Doubles, Doubles]:
        """Return the means of z z^T and of z x^T [G, K, K]; where ``centred``, of what deviates from the means."""
        z, x = self.z / self.count, self.x / self.count
        second, cross = self.zz / self.count, self.zx / self.count
        second -= z @ z.swapaxes(1, 2)
        cross -= z @ x.swapaxes(1, 2)
        if not centred:
            z, x = self.means()
            second += z @ z.swapaxes(1, 2)
            cross += z @ x.swapaxes(1, 2)
        return second, cross


def _moments(
    layers: Sequence[Int8Layer],
    inputs: Iterable[Mapping[str, Array]],
    targets: Iterator[Mapping[str, Array]] | None,
) -> list[LayerMoments]:
    """Return the moments of each layer.

    Args:
        layers: The layers.
        inputs: What they read in the QDQ graph, chunk by chunk.
        targets: What they read in the float graph; None where x = z.
    """
    found: dict[int, LayerMoments] = {}
    for rounded in inputs:
        exact = next(targets) if targets else None
        for index, layer in enumerate(layers):
            z = layer.patches(rounded[layer.source], _PLACES)
            x = layer.patches(exact[layer.exact], _PLACES) if exact else z
            found.setdefault(index, LayerMoments.around(z)).add(z, x)
    for _ in targets or ():  # to the end, as the walk wants it
        raise ValueError("the two graphs were given different samples")
    return [found[index] for index in range(len(layers))]


def choose_levels(weights: Doubles, scales: Doubles, moments: LayerMoments, largest: int, centred: bool) -> Doubles:
    """Return the levels of a layer that reproduce its output best, as :func:`reconstruct` defines it.

    Args:
        weights: Float weights [G, K, O / G].
        scales: Scales of the INT8 weights [G, 1, O / G].
        moments: Moments of the layer's input in the QDQ graph and in the float one.
        largest: The largest level; levels go from -largest to largest.
        centred: Whether means are left out, since a bias takes them up.

    Returns:
        The levels, integers [G, K, O / G].
    """
    second, cross = moments.products(centred)
    pull = np.einsum("gkk->gk", second).mean(1)[:, None, None]
    exact = weights / scales
    levels = np.clip(np.round(exact), -largest, largest)
    second += pull * np.eye(second.shape[1])
    gradient = cross @ exact + pull * exact - second @ levels
    return _descend(second, gradient, levels, largest)


def _descend(second: Doubles, gradient: Doubles, levels: Doubles, largest: int) -> Doubles:
    """Set each level in turn to its optimum given the others, until none changes, and return the levels [G, K, O / G].

    A step changes the gradients of its own output alone: outputs that no step of a round changes are done. Gradients of
    the same block of inputs are kept up with each step, the others with all steps of a block at once (Frantar et al.,
    "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv 2210.17323, 3.3).

    Args:
        second: Second moments of the inputs [G, K, K].
        gradient: Half of the sum's negative gradient by the levels [G, K, O / G].
        levels: The levels to begin with [G, K, O / G].
        largest: The largest level.
    """
    diagonal = np.einsum("gkk->gk", second)
    curvature = np.where(diagonal > 0, diagonal, np.inf)[..., None]  # what an input that never moves reads, stays
    chosen, outputs = levels.copy(), np.arange(levels.shape[2])
    for _ in range(_ROUNDS):
        moved = np.zeros(len(outputs), bool)
        for start in range(0, levels.shape[1], _BLOCK):
            rows = slice(start, start + _BLOCK)
            steps = _steps(second[:, rows, rows], curvature[:, rows], gradient[:, rows], levels[:, rows], largest)
            if steps.any():
                levels[:, rows] += steps
                gradient -= second[:, :, rows] @ steps
                moved |= steps.any((0, 1))
        chosen[..., outputs] = levels
        outputs, levels, gradient = outputs[moved], levels[..., moved], gradient[..., moved]
        if not len(outputs):
            break
    return chosen


def _steps(second: Doubles, curvature: Doubles, gradient: Doubles, levels: Doubles, largest: int) -> Doubles:
    """Return by how much each level of a block of inputs changes, each set to its optimum given those before it."""
    gradient, steps = gradient.copy(), np.zeros_like(levels)
    for k in range(levels.shape[1]):
        optimum = levels[:, k] + gradient[:, k] / curvature[:, k]
        step = np.clip(np.rint(optimum), -largest, largest) - levels[:, k]
        if step.any():
            steps[:, k] = step
            gradient[:, k + 1 :] -= second[:, k + 1 :, k, None] * step[:, None]
    return steps


def _rewrite(qdq: ModelProto, layer: Int8Layer, moments: LayerMoments, largest: int) -> None:
    """Store a layer's new levels, and its bias minus the mean error of its output."""
    levels = choose_levels(layer.weights, layer.scales, moments, largest, centred=layer.bias is not None)
    store(qdq, layer.levels, layer.stored(levels).astype(np.int8))
    if layer.bias is None:
        return
    z, x = moments.means()
    means = (layer.weights * x - levels * layer.scales * z).sum(1)
    write_bias(qdq, layer.node, layer.bias + means.ravel())
