"""The task's metric of every row of a ledger: how surely it fell, and what learning nothing would give."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from edgekd.errors import TaskError
from edgekd.gram.intervals import Estimate, binomial_upper
from edgekd.gram.jackknife import Series, make_blocks
from edgekd.gram.measures.constant import are_alike, constant_answers
from edgekd.gram.nest import count_rows, known_rows, map_nest, take_rows
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import answer_of
from edgekd.gram.stats import t_quantile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from edgekd.gram.nest import Nest
    from edgekd.gram.npz import Array
    from edgekd.gram.probe import Answer, Probe

#: A function of outputs and targets. Outputs are an array [N, ...], or where there are several a dict of such; targets
#: are what the task gives. A task knows what its own are.
Metric: TypeAlias = "Callable[[Any, Any], float]"


@runtime_checkable
class SubsetMetric(Protocol):
    """A metric that is computed of many subsets of the same samples for little more than of all of them."""

    def __call__(self, outputs: Any, targets: Any) -> float:
        """Return the metric of all samples."""

    def subsets(self, outputs: Any, targets: Any) -> Callable[[NDArray[np.bool_]], float]:
        """Return a function that gives the metric of those samples that a mask [N] chooses."""


@dataclass(frozen=True)
class ConstantAnswer:
    """The best answer that is the same for every sample.

    Attributes:
        answer: The answer in words, e.g. "class 3", "class 0 everywhere", "4.2", "the mean", "labels 0, 5"; of several
            outputs "the same".
        metric: Its metric.
        gain: How much better the ledger's reference is, positive where it is.
        alone: Whether all samples are labelled so: then it is right, and no answer is better.
    """

    answer: str
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
        constant: The best constant answer; None where there are no labels, or no answer is always the same: of an
            embedding, and of what only the task can read.
        over_chance: How much better the reference is than its own answers given to other samples; None where there are
            no labels, and where nothing that learned nothing is better than the constant answer: of classes and of a
            regression.
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
        gains = [self.constant.gain] if self.constant else []
        gains += [self.over_chance] if self.over_chance else []
        return min(gains, key=lambda gain: gain.mean, default=None)


@dataclass(frozen=True)
class BestConstant:
    """The best answer that is the same for every sample, before anything is held against it.

    Attributes:
        answer: The answer in words.
        output: The answer to one sample.
        metric: Its metric.
        alone: Whether all samples are labelled so.
    """

    answer: str
    output: Answer
    metric: float
    alone: bool


@dataclass(frozen=True)
class LabelledSamples:
    """Samples with labels, and the task's metric of them.

    Attributes:
        targets: What the network should answer: the labels of the samples [N], or any nest of arrays [N, ...].
        groups: Cluster of each sample [N]; None where samples are independent.
        metric: The metric, a function of outputs and targets.
        higher_is_better: Whether a larger metric is better.
        confidence: Confidence of each one-sided bound.
        kinds: What each output is.
    """

    targets: Nest
    groups: Array | None
    metric: Metric
    higher_is_better: bool = True
    confidence: float = 0.95
    kinds: Mapping[str, OutputKind] = field(default_factory=lambda: MappingProxyType({"logits": OutputKind()}))

    def measure(self, probes: Mapping[str, Probe], reference: str) -> LedgerMetrics:
        """Return the metric of each probe, and how surely it is worse than the reference's.

        Where it fails on the outputs of what was compressed, as without any answer of some class it may, it is NaN.

        Raises:
            TaskError: The metric fails on the outputs of the teacher or the reference.
        """
        for name in ("teacher", reference):
            if name in probes:  # of these the user hears what it raises
                self.metric(probes[name].answer, self.targets)
        series = {name: self._series(probe.answer) for name, probe in probes.items()}
        best = self.best_constant(probes[reference].shapes)
        values = {name: own.value for name, own in series.items()}
        known = (*values.values(), *([best.metric] if best else []))
        scale = max((abs(value) for value in known if math.isfinite(value)), default=1)
        losses = {
            name: self._estimate((series[reference] - own) * self._sign, scale)
            for name, own in series.items()
            if name not in ("teacher", reference) and not math.isnan(series[reference].value)
        }
        constant = over_chance = teacher_gain = None
        if best:
            if "teacher" in series:
                teacher_gain = (series["teacher"].value - best.metric) * self._sign
            gain = (series[reference] - self._series(self._everywhere(best.output))) * self._sign
            constant = ConstantAnswer(best.answer, best.metric, self._estimate(gain, scale), best.alone)
        if not best or not self._sure_constant:
            others = np.random.RandomState(0).permutation(count_rows(self.targets))
            gain = (series[reference] - self._series(take_rows(probes[reference].answer, others))) * self._sign
            over_chance = self._estimate(gain, scale)
        return LedgerMetrics(values, losses, constant, over_chance, teacher_gain)

    def best_constant(self, shapes: Mapping[str, tuple[int, ...]]) -> BestConstant | None:
        """Return the best answer that is the same for every sample; None where none has a metric.

        Of several outputs the answer to each is chosen in turn, beside what was chosen for the others: the best of all,
        where the metric is a mean of theirs.

        Args:
            shapes: For each output its shape [N, ...], of any number of samples.
        """
        targets = self._targets_by_output()
        if targets is None:
            return None
        tried = {name: list(constant_answers(kind, targets[name], shapes[name])) for name, kind in self.kinds.items()}
        if not tried or not all(tried.values()):
            return None
        best: BestConstant | None = None
        chosen = {name: output for name, ((_, output), *_) in tried.items()}
        alone = all(are_alike(kind, targets[name]) for name, kind in self.kinds.items())
        for name, answers in tried.items():
            for said, output in answers:
                answer = answer_of(chosen | {name: output})
                metric = self._tried(self._everywhere(answer), self.targets)
                # A logarithmic loss of answers that are surely wrong is infinite: nothing to be better than.
                if math.isfinite(metric) and (best is None or (metric - best.metric) * self._sign > 0):
                    best = BestConstant(said if len(tried) == 1 else "the same", answer, metric, alone)
                    chosen[name] = output
        return best

    @property
    def _sure_constant(self) -> bool:
        """Whether no answers that have learned nothing are better than the best constant one.

        Of the mean over classes, or labels, of a figure, answers at random may be.
        """
        return all(kind.name in ("classes", "regression") for kind in self.kinds.values())

    @property
    def _sign(self) -> int:
        return 1 if self.higher_is_better else -1

    def _series(self, outputs: Nest) -> Series:
        def tried(kept: NDArray[np.bool_]) -> float:
            return self._tried(take_rows(outputs, kept), take_rows(self.targets, kept))

        subsets = self.metric.subsets(outputs, self.targets) if isinstance(self.metric, SubsetMetric) else tried
        return Series.of(subsets, make_blocks(count_rows(self.targets), self.groups))

    def _tried(self, outputs: Nest, targets: Nest) -> float:
        """Return the metric; NaN where the task's code fails, as without a class it may."""
        try:
            return float(self.metric(outputs, targets))
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
        labelled = int(known_rows(self.targets).sum())
        unseen = scale * binomial_upper(0, labelled, self.confidence)
        half = max(t_quantile(self.confidence, len(series.without) - 1) * series.error, unseen)
        return Estimate(series.value, series.value - half, series.value + half)

    def _targets_by_output(self) -> dict[str, Array] | None:
        """Return the target of each output; None where they are not as the outputs' default losses take them."""
        given: Nest = self.targets if len(self.kinds) > 1 else dict.fromkeys(self.kinds, self.targets)
        if not isinstance(given, dict):
            return None
        found = {
            name: target for name, target in given.items() if name in self.kinds and isinstance(target, np.ndarray)
        }
        return found if len(found) == len(self.kinds) else None

    def _everywhere(self, answer: Answer) -> Answer:
        """Return the answer of a sample, for every sample."""
        return map_nest(answer, lambda output: np.repeat(output[None], count_rows(self.targets), 0))
