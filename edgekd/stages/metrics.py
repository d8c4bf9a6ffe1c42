"""The metric of tasks that define none, by what their outputs are. Importing this module imports no torch.

Targets of classes that are -100 do not count, nor those of other kinds that are NaN; where nothing counts, a metric is
NaN. Each metric is an object that gives it of many subsets of the samples, too, as :class:`SubsetMetric` has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgekd.errors import TaskError
from edgekd.gram.measures.rows import sigmoid
from edgekd.gram.measures.tokens import collapse, edit_distance
from edgekd.stages.labels import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from edgekd.gram.metric import SubsetMetric
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputKind

#: A function that gives a metric of those samples that a mask [N] chooses.
Subsets: TypeAlias = "Callable[[NDArray[np.bool_]], float]"

#: Samples whose cosines with all others are computed at once, and how many of their nearest are kept.
_ROWS, _NEAR = 512, 32


@dataclass(frozen=True)
class DefaultMetric:
    """A metric of which larger values are better.

    Attributes:
        name: Its name in reports.
        compute: The function of outputs and targets, each an array [N, ...], or where there are several outputs a dict
            of such by their names.
        higher_is_better: Whether larger values are better, as of all of these.
    """

    name: str
    compute: SubsetMetric
    higher_is_better: bool = True


def default_metric(
    kinds: Mapping[str, OutputKind], weights: Mapping[str, float] = MappingProxyType({})
) -> DefaultMetric | None:
    """Return the metric of outputs of some kinds, the mean of theirs where there are several.

    Args:
        kinds: What each output is, by its name.
        weights: The weight of each in the mean, by default 1.

    Returns:
        The metric; None where an output is one that only the task can read.
    """
    found = {name: _of_kind(kind) for name, kind in kinds.items()}
    known = {name: metric for name, metric in found.items() if metric is not None}
    if len(known) < len(found):
        return None
    if len(known) == 1:
        return next(iter(known.values()))
    names = list(dict.fromkeys(metric.name for metric in known.values()))
    mean = f"mean {names[0]}" if len(names) == 1 else f"mean of {', '.join(names[:-1])} and {names[-1]}"
    return DefaultMetric(mean, _WeightedMean({name: metric.compute for name, metric in known.items()}, weights))


def _of_kind(kind: OutputKind) -> DefaultMetric | None:
    if kind.name == "sequence-classes" and kind.blank is not None:
        return DefaultMetric("1 - token error rate", SampleSums(partial(_edits, blank=kind.blank), _right_tokens))
    if kind.name == "multilabel":
        return DefaultMetric("F1", SampleSums(partial(_labels, kind=kind), _f1))
    return _METRICS.get(kind.name)


def accuracy(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the share of labelled samples whose top-1 class is right, of logits [N, C] and labels [N]."""
    return _METRICS["classes"].compute(logits, labels)


class SampleSums:
    """A metric that is a function of sums over the samples, whose terms are computed once for all subsets of these.

    Args:
        terms: Returns what is summed up of each sample [N, K], from outputs and targets.
        join: Returns the metric from the sums [K].
    """

    def __init__(self, terms: Callable[[Array, Array], Array], join: Callable[[Array], float]) -> None:
        self._terms, self._join = terms, join

    def __call__(self, outputs: Array, targets: Array) -> float:
        """Return the metric of all samples."""
        return self._join(self._terms(outputs, targets).sum(0))

    def subsets(self, outputs: Array, targets: Array) -> Subsets:
        """Return a function that gives the metric of those samples that a mask [N] chooses."""
        terms = self._terms(outputs, targets)
        return lambda kept: self._join(terms[kept].sum(0))


class Determination:
    """The coefficient of determination, R², the mean over the elements of an output.

    An element of which all known targets are the same has none, and is left out.
    """

    def __call__(self, outputs: Array, targets: Array) -> float:
        """Return it of numbers [N, ...] and what they should be [N, ...], NaN where that is not known."""
        expected = _like(outputs, targets).reshape(len(outputs), -1).astype(np.float64)
        known = ~np.isnan(expected)
        mean = np.where(known, expected, 0).sum(0) / np.maximum(known.sum(0), 1)
        total = np.where(known, (expected - mean) ** 2, 0).sum(0)
        error = np.where(known, (expected - outputs.reshape(expected.shape)) ** 2, 0).sum(0)
        least, most = np.where(known, expected, np.inf).min(0), np.where(known, expected, -np.inf).max(0)
        varied = most > least
        return float((1 - error[varied] / total[varied]).mean()) if varied.any() else math.nan

    def subsets(self, outputs: Array, targets: Array) -> Subsets:
        """Return a function that gives it of those samples that a mask [N] chooses."""
        return lambda kept: self(outputs[kept], targets[kept])


class NearestLabel:
    """Recall at 1: of how many embeddings the nearest other, by cosine, has the same label.

    Samples without a label are left out, and so are those whose label no other has.
    """

    def __call__(self, outputs: Array, targets: Array) -> float:
        """Return the recall of embeddings [N, D] and labels [N]."""
        return self.subsets(outputs, targets)(np.ones(len(outputs), bool))

    def subsets(self, outputs: Array, targets: Array) -> Subsets:
        """Return a function that gives the recall of those samples that a mask [N] chooses, each among these alone."""
        if targets.shape != outputs.shape[:1]:
            raise TaskError(f"the targets are of shape {targets.shape}, where {len(outputs)} labels are needed")
        z = outputs.reshape(len(outputs), -1).astype(np.float32)
        z /= np.maximum(np.sqrt((z**2).sum(1, keepdims=True)), np.finfo(np.float32).tiny)
        near = np.concatenate([_nearest(z, start) for start in range(0, len(z), _ROWS)])

        def recall(kept: NDArray[np.bool_]) -> float:
            kept = kept & (targets != UNLABELLED)
            if not np.isfinite(z[kept]).all():
                return math.nan
            chosen = np.flatnonzero(kept)
            _, place, count = np.unique(targets[chosen], return_inverse=True, return_counts=True)
            queries = chosen[count[place] > 1]
            known = kept[near[queries]]
            first = near[queries, known.argmax(1)]
            for index in np.flatnonzero(~known.any(1)).tolist():  # all of its nearest are left out
                cosines = np.where(kept, z @ z[queries[index]], -np.inf)
                cosines[queries[index]] = -np.inf
                first[index] = cosines.argmax()
            return _ratio(int((targets[first] == targets[queries]).sum()), len(queries))

        return recall


class _WeightedMean:
    """The mean of the metrics of several outputs."""

    def __init__(self, metrics: Mapping[str, SubsetMetric], weights: Mapping[str, float]) -> None:
        self._metrics = metrics
        total = math.fsum(weights.get(name, 1.0) for name in metrics)
        self._weights = {name: weights.get(name, 1.0) / total for name in metrics}

    def __call__(self, outputs: Mapping[str, Array], targets: Mapping[str, Array]) -> float:
        return self._mean({name: metric(outputs[name], targets[name]) for name, metric in self._metrics.items()})

    def subsets(self, outputs: Mapping[str, Array], targets: Mapping[str, Array]) -> Subsets:
        each = {name: metric.subsets(outputs[name], targets[name]) for name, metric in self._metrics.items()}
        return lambda kept: self._mean({name: subset(kept) for name, subset in each.items()})

    def _mean(self, found: Mapping[str, float]) -> float:
        return math.fsum(self._weights[name] * value for name, value in found.items())


def _nearest(z: Array, start: int) -> NDArray[np.intp]:
    """Return the nearest others of some of the samples, whose vectors [N, D] have unit length, in order."""
    cosines = z[start : start + _ROWS] @ z.T
    rows = np.arange(len(cosines))
    cosines[rows, rows + start] = -np.inf
    count = min(_NEAR, len(z) - 1)
    some = np.argpartition(-cosines, max(count - 1, 0), 1)[:, : max(count, 1)]
    order = np.argsort(-np.take_along_axis(cosines, some, 1), 1, kind="stable")
    nearest: NDArray[np.intp] = np.take_along_axis(some, order, 1)
    return nearest


def _classes(outputs: Array, targets: Array, axis: int) -> Array:
    """Return of how many positions of each sample the top-1 class is right, and known [N, 2]."""
    decided = outputs.argmax(axis)
    expected = _like(decided, targets)
    known = (expected != UNLABELLED).reshape(len(expected), -1)
    return np.stack([((decided == expected).reshape(known.shape) & known).sum(1), known.sum(1)], 1)


def _edits(outputs: Array, targets: Array, blank: int) -> Array:
    """Return how many edits make the tokens of each sample those that should be, and how many these are [N, 2]."""
    if targets.ndim != 2:
        raise TaskError(f"the targets are of shape {targets.shape}, where [samples, tokens] is needed")
    found = []
    for decided, expected in zip(outputs.argmax(-1), targets, strict=True):
        tokens = expected[(expected != UNLABELLED) & (expected != blank)]
        found.append((edit_distance(collapse(decided, blank), tokens), len(tokens)))
    return np.array(found).reshape(-1, 2)


def _regions(outputs: Array, targets: Array) -> Array:
    """Return of each sample at how many positions each class is, should be, and is rightly [N, 3 C]."""
    decided = outputs.argmax(1)
    expected = _like(decided, targets)
    decided, expected = (classes.reshape(len(outputs), -1).astype(np.int64) for classes in (decided, expected))
    count = max(outputs.shape[1], int(expected.max(initial=0)) + 1)
    first = np.arange(len(decided))[:, None] * count
    known = expected != UNLABELLED
    found = [
        np.bincount((classes + first)[where], minlength=len(decided) * count).reshape(len(decided), count)
        for classes, where in ((decided, known), (expected, known), (expected, known & (decided == expected)))
    ]
    return np.concatenate(found, 1)


def _labels(outputs: Array, targets: Array, kind: OutputKind) -> Array:
    """Return of each sample how many labels hold rightly, are said to hold, and should hold [N, 3].

    Targets are 1 where a label holds and 0 where it does not; NaN or less than 0 where that is not known.
    """
    expected = _like(outputs, targets).reshape(len(outputs), -1)
    scores = outputs.reshape(expected.shape).astype(np.float64)
    holds = (scores if kind.probabilities else sigmoid(scores)) >= (0.5 if kind.threshold is None else kind.threshold)
    known, should = expected >= 0, expected > 0.5
    return np.stack([(holds & should & known).sum(1), (holds & known).sum(1), (should & known).sum(1)], 1)


def _share(sums: Array) -> float:
    return _ratio(float(sums[0]), float(sums[1]))


def _right_tokens(sums: Array) -> float:
    return 1 - _share(sums)


def _f1(sums: Array) -> float:
    """Return the micro-averaged F1: of all samples and labels together."""
    right, said, should = sums.tolist()
    return _ratio(2 * right, said + should)


def _mean_iou(sums: Array) -> float:
    """Return the mean over classes of intersection over union, of those that are, or should be, anywhere."""
    ours, theirs, both = sums.reshape(3, -1)
    union = ours + theirs - both
    return float((both[union > 0] / union[union > 0]).mean()) if union.any() else math.nan


def _like(outputs: Array, targets: Array) -> Array:
    """Return targets in the shape of outputs, from which they may differ by dimensions of 1.

    Raises:
        TaskError: The shapes differ by more than that.
    """
    if [size for size in outputs.shape[1:] if size != 1] != [size for size in targets.shape[1:] if size != 1]:
        raise TaskError(f"the targets are of shape {targets.shape}, where {outputs.shape} is needed")
    return targets.reshape(outputs.shape)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


#: The metric of each kind of which it depends on nothing else.
_METRICS: dict[str, DefaultMetric] = {
    "classes": DefaultMetric("accuracy", SampleSums(partial(_classes, axis=-1), _share)),
    "regression": DefaultMetric("R2", Determination()),
    "dense-classes": DefaultMetric("mean IoU", SampleSums(_regions, _mean_iou)),
    "sequence-classes": DefaultMetric("token accuracy", SampleSums(partial(_classes, axis=-1), _share)),
    "embedding": DefaultMetric("recall@1", NearestLabel()),
}
