"""The parts of a network that break what it answers when they are quantized, and how much each contributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from edgekd.gram.answers import OutputName  # noqa: TC001 (the cache reads results by their types)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_Array: TypeAlias = "NDArray[np.float64]"

#: The kinds of suspects: a layer; a branch, which is all that is computed from one modality alone, or the fusion; a
#: kind of tensor, which is the weights or the activations of the whole network.
Scope = Literal["layer", "branch", "kind"]
SCOPES: tuple[Scope, ...] = ("layer", "branch", "kind")

#: The name of the branch that is computed from several inputs.
FUSION = "fusion"

#: Number of blocks of a jackknife over independent samples.
_BLOCKS = 32


@dataclass(frozen=True)
class Effect:
    """The difference of a partly quantized network from the float one on the same samples.

    Attributes:
        divergence: Mean over samples of the output's divergence; see :data:`edgekd.gram.answers.MEASURES`.
        error: Mean over samples of the output's error, as in :class:`edgekd.gram.answers.Answers`.
        drift: Mean over samples of ``e_b``, as in :class:`edgekd.gram.drift.Drift`.
        worst_pair: The pair of modalities whose drift is largest, ``"a-b"``; the modality, where they do not compare.
        worst_pair_drift: Mean drift of that pair, or of that modality.
        flips: Share of samples whose top-1 class differs; None where the logits are not a classifier's.
        snr_db: Power of the float logits over the power of their error, in dB; None where there is no error.
        metric: The task metric of the partly quantized network; None where there are no labels.
    """

    divergence: float
    error: float
    drift: float
    worst_pair: str
    worst_pair_drift: float
    flips: float | None
    snr_db: float | None
    metric: float | None


@dataclass(frozen=True)
class RankedFigure:
    """A figure by which suspects of one scope are ranked.

    Attributes:
        value: The figure, higher for worse suspects.
        error: Standard error of the figure over samples, or over groups where there are several; None for one sample
            alone.
        rank: 1 for the worst. Suspects share a rank where their difference from the first of that rank is within the
            standard error of that difference.
    """

    value: float
    error: float | None
    rank: int


@dataclass(frozen=True)
class AddedLatency:
    """The time that a part costs in float: its network's p50 less that of INT8 beside it, in ms.

    Attributes:
        value_ms: The difference, negative where float saves time.
        low_ms: The least that it may be, by the 95 % intervals of both.
        high_ms: The most, likewise.
    """

    value_ms: float
    low_ms: float
    high_ms: float

    @property
    def told_apart(self) -> bool:
        """Whether float is clearly slower: the two intervals do not overlap."""
        return self.low_ms > 0


@dataclass(frozen=True)
class Suspect:
    """One part of the network: quantized alone, and returned to float alone ("undone").

    Attributes:
        scope: Kind of the part.
        name: The layer's node, the modality or "fusion", or "weights" or "activations".
        tensors: The tensors that undoing returns to float, by their names in the float graph.
        alone: Effect where only this part is quantized.
        undone: Effect where all but this part is quantized.
        relief: Share that undoing takes away of what the output loses, which is the mean of its shares of the
            divergence and of the error; 1 is all of it.
        gain: Improvement of the metric by undoing; None without labels.
        latency: Time that undoing costs; None where it was not measured.
        relief_per_ms: ``relief`` over the time; None where undoing costs no time that can be told from none, or the
            time is not known.
        gain_per_ms: ``gain`` over the time, likewise.
    """

    scope: Scope
    name: str
    tensors: tuple[str, ...]
    alone: Effect
    undone: Effect
    relief: RankedFigure
    gain: RankedFigure | None
    latency: AddedLatency | None
    relief_per_ms: RankedFigure | None
    gain_per_ms: RankedFigure | None


@dataclass(frozen=True)
class WeightedLayer:
    """A weight-bearing node of the float graph.

    Attributes:
        name: Name of the node.
        operator: ONNX operator of the node, e.g. "Conv".
        branch: The input from which alone the layer is computed, or "fusion".
        following: Names of the layers that the layer's result reaches before any other.
    """

    name: str
    operator: str
    branch: str
    following: tuple[str, ...]


@dataclass(frozen=True)
class Blame:
    """The contribution of each part of a network to the damage that quantization did.

    Attributes:
        layers: The layers of the network, in the order of its graph.
        kind: What the output is, and so what its divergence measures.
        samples: Number of samples that the figures were measured on.
        quantized: Effect where everything is quantized.
        suspects: All suspects, by scope in the order of :data:`SCOPES`, and within a scope by relief, the worst first.
        agreement: Spearman's correlation over layers between what the output loses with one quantized alone and what
            undoing it relieves; None for fewer than two layers. Errors of layers add up and cancel, so it may be low.
    """

    layers: tuple[WeightedLayer, ...]
    kind: OutputName
    samples: int
    quantized: Effect
    suspects: tuple[Suspect, ...]
    agreement: float | None

    def of(self, scope: Scope) -> tuple[Suspect, ...]:
        """Return the suspects of one scope, the worst first."""
        return tuple(suspect for suspect in self.suspects if suspect.scope == scope)


@dataclass(frozen=True)
class Series:
    """A statistic of all samples, and of the samples without each block: the input of a jackknife.

    Attributes:
        value: The statistic of all samples.
        without: The statistic without each block [K].
    """

    value: float
    without: _Array

    @classmethod
    def of(cls, statistic: Callable[[NDArray[np.bool_]], float], blocks: NDArray[np.int64]) -> Series:
        """Compute a statistic of all samples and without each block.

        Args:
            statistic: Returns the statistic of the samples that a mask [N] chooses.
            blocks: Block of each sample [N].
        """
        everything = np.ones(len(blocks), bool)
        left_out = np.array([statistic(blocks != block) for block in np.unique(blocks)] if np.ptp(blocks) else [])
        return cls(float(statistic(everything)), left_out)

    @classmethod
    def mean(cls, figures: _Array, blocks: NDArray[np.int64]) -> Series:
        """Compute the mean of the samples' figures [N], as :meth:`of` does."""
        block = np.unique(blocks, return_inverse=True)[1]
        sums, counts = np.bincount(block, figures), np.bincount(block)
        left_out = (figures.sum() - sums) / (len(figures) - counts) if len(counts) > 1 else np.empty(0)
        return cls(float(figures.mean()), left_out)

    def __sub__(self, other: Series) -> Series:
        return Series(self.value - other.value, self.without - other.without)

    def __add__(self, other: Series) -> Series:
        return Series(self.value + other.value, self.without + other.without)

    def __truediv__(self, other: Series) -> Series:
        """Divide; the quotient is 0 where the divisor is 0."""
        value, without = (
            np.divide(mine, its, out=np.zeros_like(mine), where=its != 0)
            for mine, its in ((np.array(self.value), np.array(other.value)), (self.without, other.without))
        )
        return Series(float(value), without)

    def __mul__(self, factor: float) -> Series:
        return Series(self.value * factor, self.without * factor)

    @property
    def error(self) -> float | None:
        """The standard error by the delete-a-block jackknife; None where there is one block alone.

        ``sqrt((K - 1) / K * sum of squared deviations)`` (Efron & Tibshirani, An Introduction to the Bootstrap, 11.5).
        """
        count = len(self.without)
        return float(np.sqrt((count - 1) * self.without.var())) if count else None


def make_blocks(count: int, groups: NDArray[np.generic] | None) -> NDArray[np.int64]:
    """Return the block [N] of each sample for a jackknife: its group, or one of 32 where samples are independent.

    Where all samples are of one group, neighbours depend on each other, so the blocks are runs of neighbours.
    """
    if groups is None:
        return np.arange(count) % _BLOCKS
    blocks = np.unique(groups, return_inverse=True)[1]
    return blocks if np.ptp(blocks) else np.arange(count) * _BLOCKS // count


def choosing_groups(groups: NDArray[np.generic] | None) -> NDArray[np.generic] | None:
    """Return the groups [N] of samples that networks are compared on to choose one of them.

    One group alone bounds nothing that holds for others. To choose it is enough what holds for that one, where runs of
    neighbours are the units; what ships is judged on groups as they are.
    """
    return groups if groups is None or len(np.unique(groups)) > 1 else make_blocks(len(groups), groups)


def rank(series: Mapping[str, Series]) -> dict[str, RankedFigure]:
    """Rank figures, the highest first; figures that are not told apart share a rank."""
    ordered = sorted(series, key=lambda name: -series[name].value)
    figures: dict[str, RankedFigure] = {}
    leader, current = "", 0
    for position, name in enumerate(ordered, 1):
        behind = series[leader] - series[name] if leader else None
        if behind is None or behind.error is None or behind.value > behind.error:
            leader, current = name, position
        figures[name] = RankedFigure(series[name].value, series[name].error, current)
    return figures
