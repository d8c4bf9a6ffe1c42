"""What breaks the Gram structure: how much each suspect does to it, and who is to blame most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Array = np.ndarray[Any, np.dtype[np.float64]]

#: A layer; all that is computed from one modality alone, or the fusion; weights or activations of the whole network.
Scope = Literal["layer", "branch", "kind"]
SCOPES: tuple[Scope, ...] = ("layer", "branch", "kind")

#: The branch of what is computed from several inputs.
FUSION = "fusion"

#: Blocks of a jackknife over independent samples.
_BLOCKS = 32


@dataclass(frozen=True)
class Effect:
    """What a partly quantized network is, against the float one on the same samples.

    Attributes:
        drift: mean over samples of ``e_b``, as in :class:`edgekd.gram.drift.Drift`.
        flips: share of samples whose top-1 class differs; None where the logits are not a classifier's.
        snr_db: power of the float logits over that of their error; None where there is no error.
        metric: the task metric; None where there are no labels.
    """

    drift: float
    flips: float | None
    snr_db: float | None
    metric: float | None


@dataclass(frozen=True)
class RankedFigure:
    """A figure by which suspects of one scope are ranked.

    Attributes:
        value: the figure, higher for worse suspects.
        error: its standard error over samples, or over groups where there are several; None for one sample alone.
        rank: 1 for the worst; level with the best of its rank are those whose difference to it is within that
            difference's standard error.
    """

    value: float
    error: float | None
    rank: int


@dataclass(frozen=True)
class Suspect:
    """One part of the network, quantized alone and undone alone.

    Attributes:
        scope: what kind of part it is.
        name: the layer's node, the modality or "fusion", or "weights" or "activations".
        tensors: what undoing returns to float, by their names in the float graph.
        alone: only it is quantized.
        undone: all but it is quantized.
        relief: how much drift undoing takes away.
        gain: how much better undoing makes the metric; None without labels.
        latency_ms: how much time undoing costs, negative where it saves some; None where it was not measured.
        relief_per_ms: ``relief`` over ``latency_ms``; None where undoing costs no time, or nobody knows.
        gain_per_ms: ``gain`` likewise.
    """

    scope: Scope
    name: str
    tensors: tuple[str, ...]
    alone: Effect
    undone: Effect
    relief: RankedFigure
    gain: RankedFigure | None
    latency_ms: float | None
    relief_per_ms: RankedFigure | None
    gain_per_ms: RankedFigure | None


@dataclass(frozen=True)
class WeightedLayer:
    """A weight-bearing node of the float graph.

    Attributes:
        name: its name.
        operator: of ONNX, e.g. "Conv".
        branch: the input from which alone it is computed, or "fusion".
        following: the layers that its result reaches before any other.
    """

    name: str
    operator: str
    branch: str
    following: tuple[str, ...]


@dataclass(frozen=True)
class Blame:
    """Who is to blame for what quantization broke.

    Attributes:
        layers: the network, in the order of its graph.
        samples: how many samples it was measured on.
        quantized: all is quantized.
        suspects: by scope, in the order of :data:`SCOPES`, and by relief, the worst first.
        agreement: Spearman's correlation over layers between the drift of one quantized alone and the drift that
            undoing it relieves; None for fewer than two layers. Errors of layers add up and cancel, so it may be low.
    """

    layers: tuple[WeightedLayer, ...]
    samples: int
    quantized: Effect
    suspects: tuple[Suspect, ...]
    agreement: float | None

    def of(self, scope: Scope) -> tuple[Suspect, ...]:
        """Return the suspects of one scope, the worst first."""
        return tuple(suspect for suspect in self.suspects if suspect.scope == scope)


@dataclass(frozen=True)
class Series:
    """A statistic of all samples, and without each block of them: what a jackknife needs.

    Attributes:
        value: of all samples.
        without: leaving out each block [K].
    """

    value: float
    without: _Array

    @classmethod
    def of(cls, statistic: Callable[[Any], float], blocks: np.ndarray[Any, Any]) -> Series:
        """Compute a statistic.

        Args:
            statistic: takes a mask of samples [N].
            blocks: each sample's block [N].
        """
        everything = np.ones(len(blocks), bool)
        left_out = np.array([statistic(blocks != block) for block in np.unique(blocks)] if np.ptp(blocks) else [])
        return cls(float(statistic(everything)), left_out)

    def __sub__(self, other: Series) -> Series:
        return Series(self.value - other.value, self.without - other.without)

    def __mul__(self, factor: float) -> Series:
        return Series(self.value * factor, self.without * factor)

    @property
    def error(self) -> float | None:
        """The standard error by the delete-a-block jackknife; None where there is one block alone.

        ``sqrt((K - 1) / K * sum of squared deviations)`` (Efron & Tibshirani, An Introduction to the Bootstrap, 11.5).
        """
        count = len(self.without)
        return float(np.sqrt((count - 1) * self.without.var())) if count else None


def make_blocks(count: int, groups: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """Return the block [N] of each sample for a jackknife: its group, or one of 32 where samples are independent.

    Samples of one group alone are neighbours of each other, so their blocks are runs of neighbours.
    """
    if groups is None:
        return np.arange(count) % _BLOCKS
    blocks = np.unique(groups, return_inverse=True)[1]
    return blocks if np.ptp(blocks) else np.arange(count) * _BLOCKS // count


def rank(series: Mapping[str, Series]) -> dict[str, RankedFigure]:
    """Rank figures, the highest first; those that are level share a rank."""
    ordered = sorted(series, key=lambda name: -series[name].value)
    figures: dict[str, RankedFigure] = {}
    leader, place = "", 0
    for position, name in enumerate(ordered, 1):
        behind = series[leader] - series[name] if leader else None
        if behind is None or behind.error is None or behind.value > behind.error:
            leader, place = name, position
        figures[name] = RankedFigure(series[name].value, series[name].error, place)
    return figures
