"""The task's metric of every row of a ledger: how surely it fell, and what learning nothing would give."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import TaskError
from edgekd.gram.intervals import Estimate, binomial_upper
from edgekd.gram.jackknife import Series, make_blocks
from edgekd.gram.probe import rows_of
from edgekd.gram.stats import t_quantile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Answer, Probe

#: The most classes whose constant answer is tried, the most frequent first.
_CONSTANTS = 50


@dataclass(frozen=True)
class ConstantAnswer:
    """The best answer that is the same for every sample.

    Attributes:
        label: Index of the class.
        metric: Its metric.
        gain: How much better the ledger's reference is, positive where it is.
        alone: Whether all labels are of that class: then it is right, and no answer is better.
    """

    label: int
    metric: float
    gain: Estimate
    alone: bool = False


@dataclass(frozen=True)
class LedgerMetrics:
    """The task's metric of the rows of a ledger.

    Attributes:
        values: The metric by the name of the row; None where it was not measured.
        losses: How much worse than the reference's it is, positive where it is worse; for rows after the reference, and
            none where the reference's is not a number.
        constant: The best constant answer; None where there are no labels, or the network is no classifier.
        over_chance: How much better the reference is than its own answers given to other samples; None where there is a
            constant answer, or the network is no classifier.
        teacher_gain: How much better the teacher's metric is than the best constant answer's, positive where it is;
            None where there is no teacher or no constant answer.
    """

    values: Mapping[str, float | None]
    losses: Mapping[str, Estimate] = field(default_factory=dict)
    constant: ConstantAnswer | None = None
    over_chance: Estimate | None = None
    teacher_gain: float | None = None

    @property
    def gain(self) -> Estimate | None:
        """How much better the reference is than what learned nothing; None where that is not known."""
        return self.constant.gain if self.constant else self.over_chance


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
    metric: Callable[[Answer, Array], float]
    higher_is_better: bool = True
    confidence: float = 0.95

    def measure(self, probes: Mapping[str, Probe], reference: str) -> LedgerMetrics:
        """Return the metric of each probe, and how surely it is worse than the reference's.

        Where it fails on the outputs of what was compressed, as without any answer of some class it may, it is NaN.

        Raises:
            TaskError: The metric fails on the outputs of the teacher or the reference.
        """
        for name in ("teacher", reference):
            if name in probes:  # of these the user hears what it raises
                self.metric(probes[name].answer, self.labels)
        series = {name: self._series(probe.answer) for name, probe in probes.items()}
        best = self._best_constant(probes[reference])
        values = {name: own.value for name, own in series.items()}
        known = (*values.values(), *(best[1:] if best else ()))
        scale = max((abs(value) for value in known if math.isfinite(value)), default=1)
        losses = {
            name: self._estimate((series[reference] - own) * self._sign, scale)
            for name, own in series.items()
            if name not in ("teacher", reference) and not math.isnan(series[reference].value)
        }
        constant = over_chance = teacher_gain = None
        if best:
            if "teacher" in series:
                teacher_gain = (series["teacher"].value - best[1]) * self._sign
            gain = (series[reference] - self._series(_constant_outputs(probes[reference], best[0]))) * self._sign
            alone = len(np.unique(self.labels[self.labels >= 0])) < 2
            constant = ConstantAnswer(*best, self._estimate(gain, scale), alone)
        elif _classifies(probes[reference]):
            others = np.random.RandomState(0).permutation(len(self.labels))
            gain = (series[reference] - self._series(rows_of(probes[reference].answer, others))) * self._sign
            over_chance = self._estimate(gain, scale)
        return LedgerMetrics(values, losses, constant, over_chance, teacher_gain)

    @property
    def _sign(self) -> int:
        return 1 if self.higher_is_better else -1

    def _series(self, answer: Answer) -> Series:
        blocks = make_blocks(len(self.labels), self.groups)
        return Series.of(lambda kept: self._tried(rows_of(answer, kept), self.labels[kept]), blocks)

    def _tried(self, outputs: Answer, labels: Array) -> float:
        """Return the metric; NaN where the task's code fails, as without a class it may."""
        try:
            return float(self.metric(outputs, labels))
        except TaskError:
            return math.nan

    def _estimate(self, series: Series, scale: float) -> Estimate:
        """Bound a difference of metrics by the jackknife over blocks; a difference of 0 in few samples is not sure.

        Args:
            series: The difference.
            scale: The largest metric there is: what is lost where every answer is wrong, in the metric's own unit.
        """
        if series.error is None:
            return Estimate(series.value, -math.inf, math.inf)
        labelled = int((self.labels >= 0).sum())
        unseen = scale * binomial_upper(0, labelled, self.confidence)
        half = max(t_quantile(self.confidence, len(series.without) - 1) * series.error, unseen)
        return Estimate(series.value, series.value - half, series.value + half)

    def _best_constant(self, probe: Probe) -> tuple[int, float] | None:
        """Return the class that is the best constant answer, and its metric; None where no constant answer has one."""
        if not _classifies(probe):
            return None
        classes = probe.shapes[probe.output_names[0]][1]
        labels, counts = np.unique(self.labels[(self.labels >= 0) & (self.labels < classes)], return_counts=True)
        metrics = {
            label: self._tried(_constant_outputs(probe, label), self.labels)
            for label in labels[np.argsort(-counts, kind="stable")][:_CONSTANTS].tolist()
        }
        # A logarithmic loss of answers that are surely wrong is infinite: nothing to be better than.
        finite = {label: value for label, value in metrics.items() if math.isfinite(value)}
        if not finite:
            return None
        label = max(finite, key=lambda one: finite[one] * self._sign)
        return label, finite[label]


def _classifies(probe: Probe) -> bool:
    return len(probe.output_names) == 1 and probe.classifies(probe.output_names[0])


def _constant_outputs(probe: Probe, label: int) -> Array:
    outputs = np.zeros(probe.shapes[probe.output_names[0]], np.float32)
    outputs[:, label] = 1
    return outputs
