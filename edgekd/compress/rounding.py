"""INT8 weights that reproduce each layer's output, rather than those nearest to the float weights.

Rounding every weight to its nearest level ignores that inputs are correlated: the error of one weight can cancel that
of another. This module looks for the levels that reproduce the float layer on calibration samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import open_at
from edgekd.compress.layers import Int8Layer, find_layers, store, write_bias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from onnx import ModelProto
    from onnxruntime import InferenceSession

    from edgekd.compress.layers import Doubles
    from edgekd.runtime.session import Array, Feeds

#: Largest number of rounds over all inputs of a layer; the levels mostly settle sooner.
_ROUNDS = 20
#: Largest number of positions of a convolution's output, or of a sequence, taken from each sample.
_PLACES = 64
#: Largest number of inputs of an output; a layer with more keeps its weights, for second moments take 8 bytes a pair.
_MOST_INPUTS = 2304
#: Largest number of passes over the samples. In deeper networks the layers of several depths share a pass.
_PASSES = 16


def reconstruct(qdq: ModelProto, floats: ModelProto, samples: Iterable[Feeds], largest: int) -> None:
    """Choose the INT8 weights of a QDQ graph anew, in place, and the biases with them; scales stay as they are.

    For each layer, with x its float input and z the one that it gets in the QDQ graph, both less their means, the
    levels q with scales s minimise

        E |W x - (s q) z|^2 + E|z|^2 / K * |W - s q|^2

    over calibration samples, K inputs an output. The first term is the error of the output, the second what it would be
    were the inputs independent and alike: what few samples say nothing about stays near the float weights. The minimum
    is sought by coordinate descent from the nearest levels: each level in turn is set to its optimum given the others,
    so that the sum never grows (Behdin et al., "QuantEase: Optimization-based Quantization for Language Models", arXiv
    2309.01885, has the first term, with x = z). Then the bias takes up the mean error, which is why the means do not
    count; where there is no bias they do. Layers come in the order of their depth, so that each makes good what those
    before it left. Where a pass over the samples serves several depths, only the layers of its first one do so, and for
    the others x = z: what was left before would be made good once for each depth, and a deep network end up worse.

    Args:
        qdq: The QDQ graph.
        floats: The float graph that was quantized.
        samples: The calibration samples, read once in each pass.
        largest: The largest level; levels go from -largest to largest.

    Raises:
        ModelError: The two graphs do not belong together.
    """
    layers = [layer for layer in find_layers(qdq, floats) if layer.weights.shape[1] <= _MOST_INPUTS]
    depths = sorted({layer.depth for layer in layers})
    passes = np.array_split(depths, min(_PASSES, len(depths))) if depths else []
    for together in passes:
        chosen = [layer for layer in layers if layer.depth in together]
        for layer, moments in zip(chosen, _moments(qdq, floats, samples, chosen), strict=True):
            _rewrite(qdq, layer, moments, largest)


@dataclass
class LayerMoments:
    """Sums over a layer's input z in the QDQ graph and its float output y = W x, by group.

    Attributes:
        count: Number of patches.
        z: Sum of z [G, K, 1].
        y: Sum of y [G, 1, O / G].
        zz: Sum of z z^T [G, K, K].
        zy: Sum of z y^T [G, K, O / G].
    """

    count: int
    z: Doubles
    y: Doubles
    zz: Doubles
    zy: Doubles

    @classmethod
    def empty(cls, weights: Doubles) -> LayerMoments:
        """Return the moments of no patch."""
        groups, inputs, outputs = weights.shape
        shapes = (groups, inputs, 1), (groups, 1, outputs), (groups, inputs, inputs), (groups, inputs, outputs)
        return cls(0, *(np.zeros(shape) for shape in shapes))

    def add(self, z: Doubles, y: Doubles) -> None:
        """Add patches [G, n, K] and their outputs [G, n, O / G]."""
        self.count += z.shape[1]
        self.z += z.sum(1)[..., None]
        self.y += y.sum(1, keepdims=True)
        self.zz += z.swapaxes(1, 2) @ z
        self.zy += z.swapaxes(1, 2) @ y


def _moments(
    qdq: ModelProto, floats: ModelProto, samples: Iterable[Feeds], layers: Sequence[Int8Layer]
) -> list[LayerMoments]:
    """Return the moments of each layer from one pass. Layers behind the first depth take y = W z."""
    first = min(layer.depth for layer in layers)
    rounded = open_at(qdq, [layer.source for layer in layers])
    exact = open_at(floats, [layer.exact for layer in layers if layer.depth == first])
    sums = [LayerMoments.empty(layer.weights) for layer in layers]
    for feeds in samples:
        inputs, targets = _run(rounded, feeds), _run(exact, feeds)
        for layer, moments in zip(layers, sums, strict=True):
            z = layer.patches(inputs[layer.source], _PLACES)
            x = layer.patches(targets[layer.exact], _PLACES) if layer.depth == first else z
            moments.add(z, x @ layer.weights)
    return sums


def _run(session: InferenceSession, feeds: Feeds) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, wanted), strict=True))


def choose_levels(weights: Doubles, scales: Doubles, moments: LayerMoments, largest: int, centred: bool) -> Doubles:
    """Return the levels of a layer that reproduce its output best, as :func:`reconstruct` defines it.

    Args:
        weights: Float weights [G, K, O / G].
        scales: Scales of the INT8 weights [G, 1, O / G].
        moments: Moments of the layer's input and of its float output.
        largest: The largest level; levels go from -largest to largest.
        centred: Whether means are left out, since a bias takes them up.

    Returns:
        The levels, integers [G, K, O / G].
    """
    second, cross = moments.zz / moments.count, moments.zy / moments.count
    if centred:
        mean = moments.z / moments.count
        second = second - mean @ mean.swapaxes(1, 2)
        cross = cross - mean @ (moments.y / moments.count)
    diagonal = np.einsum("gkk->gk", second)
    pull = diagonal.mean(1)[:, None, None]
    levels = np.clip(np.round(weights / scales), -largest, largest)
    second, cross = second + pull * np.eye(second.shape[1]), cross + pull * weights
    diagonal = np.einsum("gkk->gk", second)
    gradient = cross - second @ (levels * scales)
    for _ in range(_ROUNDS):
        before = levels.copy()
        for k in np.flatnonzero(diagonal.min(0) > 0):
            optimum = levels[:, k] * scales[:, 0] + gradient[:, k] / diagonal[:, k, None]
            level = np.clip(np.round(optimum / scales[:, 0]), -largest, largest)
            step = (level - levels[:, k]) * scales[:, 0]
            if step.any():
                gradient -= second[:, :, k, None] * step[:, None]
                levels[:, k] = level
        if (levels == before).all():
            break
    return levels


def _rewrite(qdq: ModelProto, layer: Int8Layer, moments: LayerMoments, largest: int) -> None:
    """Store a layer's new levels, and its bias minus the mean error of its output."""
    levels = choose_levels(layer.weights, layer.scales, moments, largest, centred=layer.bias is not None)
    store(qdq, layer.levels, layer.stored(levels).astype(np.int8))
    if layer.bias is None:
        return
    means = (moments.y - ((levels * layer.scales) * moments.z).sum(1, keepdims=True)) / moments.count
    write_bias(qdq, layer.node, layer.bias + means.ravel())
