"""Ranges of activations that keep the Gram and the outputs, found by trying them on calibration samples."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import WEIGHT_BEARING, initializers, producers
from edgekd.compress.layers import store
from edgekd.compress.oracles.fused import relative_error
from edgekd.compress.switchboard import Switchboard
from edgekd.files import need
from edgekd.gram.drift import sample_drifts
from edgekd.gram.npz import answers_of, embeddings_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from onnx import ModelProto

    from edgekd.compress.switchboard import Scale
    from edgekd.runtime.session import Array, Feeds

#: Number of samples that the ranges are tried on; each costs one inference of every trial.
SAMPLES = 256
#: Shares of a tensor's whole range, tried until ``_PATIENCE`` in a row are no better than the best.
_SHARES = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3)
_PATIENCE = 2
#: The share of the objective that a tensor must account for; with less, no range of the tensor can gain more.
_WORTH = 0.01


def shrink_ranges(qdq: ModelProto, floats: ModelProto, samples: Iterable[Feeds]) -> None:
    """Shrink the ranges of a QDQ graph's activations where that keeps the network better, in place.

    With D the mean drift of the modality Gram and E the root mean square error of an output over its own root mean
    square, mean over the outputs, both against the float graph on calibration samples, with float weights, and D0
    and E0 the same for the ranges as given, the ranges minimise

        D / D0 + E / E0

    by coordinate descent: the tensors come in the order in which returning each alone to float relieves this
    objective, the most first, and each takes the best share of its range, given the ranges of the others at that time.
    Tensors behind the embeddings do not move the Gram, so there the outputs decide. Zero points stay, and tensors that
    share a scale go on sharing it.

    Args:
        qdq: The QDQ graph.
        floats: The float graph that was quantized.
        samples: The samples in chunks; they are held in memory.

    Raises:
        ModelError: The two graphs do not belong together.
    """
    search = _Search(qdq, floats, samples)
    shares: dict[str, float] = {}
    for group in search.groups():
        shares |= dict.fromkeys(group, search.best_share(group, shares))
    _rescale(qdq, shares)


class _Search:
    """The network with float weights and activations in INT8, on some samples."""

    def __init__(self, qdq: ModelProto, floats: ModelProto, samples: Iterable[Feeds]) -> None:
        self._board, self._chunks = Switchboard(qdq, floats), list(samples)
        self._stored = [item.tensor for item in self._board.tensors if item.kind != "activation"]
        self._exact = self._outputs([item.tensor for item in self._board.tensors], {})
        self._unit = self._errors((), {})

    def groups(self) -> list[list[str]]:
        """Return the activations worth trying, those that cost most first; activations of one scale stand together."""
        by_scale: dict[bytes, list[str]] = defaultdict(list)
        for name, (scale, zero_point) in self._board.scales.items():
            by_scale[scale.tobytes() + zero_point.tobytes()].append(name)
        whole = self.objective({})
        relief = {key: whole - self.objective({}, group) for key, group in by_scale.items()}
        return [by_scale[key] for key in sorted(relief, key=lambda key: -relief[key]) if relief[key] > _WORTH * whole]

    def best_share(self, group: Sequence[str], shares: Mapping[str, float]) -> float:
        """Return the best share of the range of some activations, while the others have ``shares`` of theirs."""
        best, least, since = 1.0, self.objective(shares), 0
        for share in _SHARES:
            value = self.objective({**shares, **dict.fromkeys(group, share)})
            if value < least:
                best, least, since = share, value, 0
            else:
                since += 1
            if since == _PATIENCE:
                break
        return best

    def objective(self, shares: Mapping[str, float], off: Collection[str] = ()) -> float:
        """Return D / D0 + E / E0 with these shares of the ranges, and with the activations ``off`` in float."""
        errors = self._errors(off, {name: self._scale(name, share) for name, share in shares.items()})
        return sum(error / unit for error, unit in zip(errors, self._unit, strict=True) if unit)

    def _scale(self, name: str, share: float) -> Scale:
        scale, zero_point = self._board.scales[name]
        return np.asarray(scale * share, scale.dtype), zero_point

    def _errors(self, off: Collection[str], scales: Mapping[str, Scale]) -> tuple[float, float]:
        outputs = self._outputs([*self._stored, *off], scales)
        exact = answers_of(self._exact)
        errors = [relative_error(outputs[name], x) for name, x in exact.items()]
        drift = sample_drifts(embeddings_of(outputs), embeddings_of(self._exact)).mean()
        return float(drift), float(np.mean(errors))

    def _outputs(self, off: Sequence[str], scales: Mapping[str, Scale]) -> dict[str, Array]:
        chunks = [self._board.run(feeds, off, scales) for feeds in self._chunks]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _rescale(qdq: ModelProto, shares: Mapping[str, float]) -> None:
    """Write smaller scales, and INT32 biases at the product of their input's scale and their weights' scales."""
    to_array, made = need("onnx", "build").numpy_helper.to_array, producers(qdq.graph)
    stored = initializers(qdq.graph)
    smaller = {
        node.input[1]: shares[node.input[0]]
        for node in qdq.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in shares
    }
    for name, share in smaller.items():
        scale = to_array(stored[name])
        store(qdq, name, np.asarray(scale * share, scale.dtype))
    biases = {}
    for node in qdq.graph.node:
        if node.op_type in WEIGHT_BEARING and len(node.input) > 2:
            source, bias = made.get(node.input[0]), made.get(node.input[2])
            if source and bias and bias.op_type == "DequantizeLinear" and source.input[1] in smaller:
                biases[bias.output[0]] = bias, smaller[source.input[1]]
    for bias, share in biases.values():
        levels, scale = to_array(stored[bias.input[0]]), to_array(stored[bias.input[1]])
        store(qdq, bias.input[0], np.round(levels / share).astype(levels.dtype))
        store(qdq, bias.input[1], np.asarray(scale * share, scale.dtype))
