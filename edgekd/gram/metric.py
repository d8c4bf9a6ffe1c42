"""The task's metric of every row of a ledger: how surely it fell, and what learning nothing would give."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.intervals import Estimate, binomial_upper
from edgekd.gram.jackknife import Series, make_blocks
from edgekd.gram.stats import t_quantile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Probe

#: The most classes whose constant answer is tried, the most frequent first.
_CONSTANTS = 50


@dataclass(frozen=True)
class ConstantAnswer:
    """The best answer that is the same for every sample.

    Attributes:
        label: Index of the class.
        metric: Its metric.
        gain: How much better the ledger's reference is, positive where it is.
    """

    label: int
    metric: float
    gain: Estimate


@dataclass(frozen=True)
class LedgerMetrics:
    """The task's metric of the rows of a ledger.

    Attributes:
        values: The metric by the name of the row; None where it was not measured.
        losses: How much worse than the reference's it is, positive where it is worse; for rows after the reference.
        constant: The best constant answer; None where there are no labels, or the network is no classifier.
    """

    values: Mapping[str, float | None]
    losses: Mapping[str, Estimate] = field(default_factory=dict)
    constant: ConstantAnswer | None = None


@dataclass(frozen=True)
class LabelledSamples:
    """Samples with labels, and the task's metric of them.

    Attributes:
        labels: Label of each sample [N].
        groups: Cluster of each sample [N]; None where samples are independent.
        metric: The metric, a function of outputs and labels.
        higher_is_better: Whether a larger metric is better.
        confidence: Confidence of each one-sided bound.
    """

    labels: Array
    groups: Array | None
    metric: Callable[[Array, Array], float]
    higher_is_better: bool = True
    confidence: float = 0.95

    def measure(self, probes: Mapping[str, Probe], reference: str) -> LedgerMetrics:
        """Return the metric of each probe, and how surely it is worse than the reference's."""
        series = {name: self._series(probe.logits) for name, probe in probes.items()}
        losses = {
            name: self._estimate((series[reference] - own) * self._sign)
            for name, own in series.items()
            if name not in ("teacher", reference)
        }
        constant = self._constant(probes[reference], series[reference])
        return LedgerMetrics({name: own.value for name, own in series.items()}, losses, constant)

    @property
    def _sign(self) -> int:
        return 1 if self.higher_is_better else -1

    def _series(self, outputs: Array) -> Series:
        blocks = make_blocks(len(self.labels), self.groups)
        return Series.of(lambda kept: float(self.metric(outputs[kept], self.labels[kept])), blocks)

    def _estimate(self, series: Series) -> Estimate:
        """Bound a difference of metrics by the jackknife over blocks; a difference of 0 in few samples is not sure."""
        if series.error is None:
            return Estimate(series.value, -math.inf, math.inf)
        half = t_quantile(self.confidence, len(series.without) - 1) * series.error
        half = np.fmax(half, binomial_upper(0, len(self.labels), self.confidence)) if not math.isnan(half) else half
        return Estimate(series.value, series.value - float(half), series.value + float(half))

    def _constant(self, probe: Probe, own: Series) -> ConstantAnswer | None:
        if not probe.classifies:
            return None
        classes = probe.shapes["logits"][1]
        labels, counts = np.unique(self.labels[(self.labels >= 0) & (self.labels < classes)], return_counts=True)
        best: tuple[float, int, Series] | None = None
        for label in labels[np.argsort(-counts, kind="stable")][:_CONSTANTS].tolist():
            outputs = np.zeros((len(self.labels), classes), np.float32)
            outputs[:, label] = 1
            series = self._series(outputs)
            if best is None or series.value * self._sign > best[0]:
                best = series.value * self._sign, label, series
        if best is None:
            return None
        _, label, series = best
        return ConstantAnswer(label, series.value, self._estimate((own - series) * self._sign))
