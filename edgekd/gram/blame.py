"""The parts of a network that break what it answers when they are quantized, and how much each contributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from edgekd.gram.output_kind import OutputName  # noqa: TC001 (the cache reads results by their types)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgekd.gram.jackknife import Series

_Array: TypeAlias = "NDArray[np.float64]"

#: The kinds of suspects: a layer; a branch, which is all that is computed from one modality alone, or the fusion; a
#: kind of tensor, which is the weights or the activations of the whole network.
Scope = Literal["layer", "branch", "kind"]
SCOPES: tuple[Scope, ...] = ("layer", "branch", "kind")

#: The name of the branch that is computed from several inputs.
FUSION = "fusion"


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
