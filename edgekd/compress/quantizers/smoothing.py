"""Shift the difficulty of rounding from activations to weights: SmoothQuant (Xiao et al., 2023, arXiv:2211.10438)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import initializers, open_at
from edgekd.compress.oracles.identity import run_few
from edgekd.compress.quantizers.levels import LARGEST, to_levels
from edgekd.compress.stored_layers import is_stored_matrix, read_matrix

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto

    from edgekd.compress.activations.ranges import CalibrationSamples
    from edgekd.config.target import Scheme
    from edgekd.runtime.session import Array

    Floats = NDArray[np.float32]

#: Samples on which the channels' extremes are found, and those on which an exponent is chosen. Which channels are large
#: is a trait of the network, which few samples show.
_RANGED, _JUDGED = 16, 4
#: Exponents of the activations' extremes.
_EXPONENTS = (0.5, 0.6, 0.7, 0.8)
#: Squared error that must be left at most, for a multiplication more to be worth it.
_WORTH = 0.8
#: Factors of channels lie within this of 1, either way.
_MOST = 1e4
_STEPS = 255
#: Rows of an activation that the error is measured on, of each sample.
_ROWS = 64


def find_factors(
    model: ModelProto, samples: CalibrationSamples, scheme: Scheme, floats: Collection[str]
) -> dict[str, Floats]:
    """Return factors for the channels of activations that products with stored matrices read, where they help.

    An activation x whose channel j reaches m_j, and weights of that channel that reach w_j, are replaced by x / s and
    w * s with s_j = m_j^a / w_j^(1 - a): the product is the same, and a channel that is larger than the others, which
    would stretch the range of all, is not. Of several exponents a, and of no factors, that with the least squared error
    of the products is taken, activations rounded over their extremes and weights as the scheme says.

    Args:
        model: The float graph.
        samples: The samples, one at a time.
        scheme: How weights are rounded.
        floats: Names of the nodes that stay float.

    Returns:
        For each activation's name the factors 1 / s [channels]. Activations that gain nothing are left out, and those
        whose weights another activation is multiplied by too, since such weights would be stored twice.
    """
    stored = initializers(model.graph)
    layers = [node for node in model.graph.node if node.name not in floats and is_stored_matrix(node, stored)]
    readings = {(node.input[0], node.input[1]) for node in layers}
    times = Counter(matrix for _, matrix in readings)
    several = {x for x, matrix in readings if times[matrix] > 1}
    weights: dict[str, list[Array]] = {}
    for node in layers:
        if node.input[0] not in several:
            weights.setdefault(node.input[0], []).append(read_matrix(node, stored))
    tensors = list(weights)
    if not tensors:
        return {}
    session = open_at(model, tensors)
    reach: dict[str, Floats] = {name: np.zeros(1, np.float32) for name in tensors}
    seen: dict[str, list[_ActivationSample]] = {name: [] for name in tensors}
    for index, feeds in enumerate(samples.fewer(_RANGED)):
        for name, x in zip(tensors, run_few(session, tensors, feeds), strict=True):
            part = _ActivationSample.of(x)
            reach[name] = np.maximum(reach[name], np.maximum(-part.low, part.high))
            seen[name] += [part] if index < _JUDGED else []
    finite = [name for name in tensors if np.isfinite(reach[name]).all()]
    found = {name: _best(reach[name], weights[name], seen[name], scheme) for name in finite}
    return {name: factors for name, factors in found.items() if factors is not None}


@dataclass(frozen=True)
class _ActivationSample:
    """What is kept of an activation of one sample.

    Attributes:
        low: Least value of each channel [channels].
        high: Largest value of each channel.
        rows: Some of its rows [rows, channels], evenly spread.
    """

    low: Floats
    high: Floats
    rows: Floats

    @classmethod
    def of(cls, x: Array) -> _ActivationSample:
        rows = x.reshape(-1, x.shape[-1])
        few = rows[:: max(len(rows) // _ROWS, 1)].copy()
        return cls(rows.min(0, initial=0), rows.max(0, initial=0), few)

    def rounded(self, factors: Floats) -> Floats:
        """Return the rows times the factors, rounded to 255 steps over all extremes, as DynamicQuantizeLinear does."""
        low, high = float((self.low * factors).min()), float((self.high * factors).max())
        step = np.float32((high - low) / _STEPS or 1.0)
        zero = np.rint(-low / step)
        rounded: Floats = ((np.rint(self.rows * factors / step) + zero).clip(0, _STEPS) - zero) * step
        return rounded


def _best(reach: Floats, weights: Sequence[Array], seen: Sequence[_ActivationSample], scheme: Scheme) -> Floats | None:
    """Return the factors with the least squared error of the products; None where those gain too little."""
    tried = _factors(reach, weights)
    errors = [sum(_error(weight, factors, seen, scheme) for weight in weights) for factors in tried]
    best = int(np.argmin(errors))
    return tried[best] if errors[best] < _WORTH * errors[0] else None


def _factors(reach: Floats, weights: Sequence[Array]) -> list[Floats]:
    """Return the factors to try for one activation; the first are 1."""
    tiny = np.finfo(np.float32).tiny
    largest = np.maximum(np.max([np.abs(weight).max(1, initial=0) for weight in weights], 0), tiny)
    used = reach > 0
    found = [np.ones(len(reach), np.float32)]
    for exponent in _EXPONENTS:
        scale = np.where(used, np.maximum(reach, tiny) ** exponent / largest ** (1 - exponent), 1)
        scale /= np.exp(np.log(scale).mean())
        found.append((1 / scale.clip(1 / _MOST, _MOST)).astype(np.float32))
    return found


def _error(weight: Array, factors: Floats, seen: Sequence[_ActivationSample], scheme: Scheme) -> float:
    """Return the squared error of the products with one weight, both sides rounded after the factors."""
    axes = 0 if scheme.per_channel else None
    levels, scale = to_levels(weight / factors[:, None], axes, LARGEST[scheme.reduce_range])
    rounded = levels * scale
    return sum(float(np.square(part.rounded(factors) @ rounded - part.rows @ weight).sum()) for part in seen)
