"""The metric of tasks that define none, by what their outputs are. Importing this module imports no torch.

Targets of classes that are -100 do not count, nor those of other kinds that are NaN; where nothing counts, a metric is
NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.measures.rows import sigmoid
from edgekd.gram.measures.tokens import collapse, edit_distance
from edgekd.stages.labels import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgekd.gram.metric import Metric
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputKind, OutputName

#: Samples whose cosines with all others are computed at once.
_ROWS = 512


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
    compute: Metric
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
    return DefaultMetric(mean, partial(_weighted_mean, known, dict(weights)))


def accuracy(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the share of labelled samples whose top-1 class is right, of logits [N, C] and labels [N]."""
    return _share_right(logits.argmax(-1), labels)


def f1(outputs: Array, targets: Array, kind: OutputKind) -> float:
    """Return the micro-averaged F1 of labels: of all samples and labels together, as they are decided by the threshold.

    Args:
        outputs: Scores of the labels [N, L], logits unless the kind says that they are probabilities.
        targets: 1 where a label holds and 0 where it does not [N, L]; NaN, or less than 0, where that is not known.
        kind: What the output is.
    """
    expected = _like(outputs, targets)
    known = expected >= 0
    probabilities = outputs.astype(np.float64) if kind.probabilities else sigmoid(outputs.astype(np.float64))
    holds = probabilities >= (0.5 if kind.threshold is None else kind.threshold)
    right, either = expected > 0.5, int(holds[known].sum())
    both = int((holds & right)[known].sum())
    return _ratio(2 * both, either + int(right[known].sum()))


def r2(outputs: Array, targets: Array) -> float:
    """Return the coefficient of determination, the mean over the elements of an output.

    An element of which all known targets are the same has none, and is left out.

    Args:
        outputs: The numbers [N, ...].
        targets: What they should be [N, ...]; NaN where that is not known.
    """
    expected = _like(outputs, targets).reshape(len(outputs), -1)
    known = ~np.isnan(expected)
    count = known.sum(0)
    mean = np.where(known, expected, 0).sum(0) / np.maximum(count, 1)
    total = np.where(known, (expected - mean) ** 2, 0).sum(0)
    error = np.where(known, (expected - outputs.reshape(expected.shape)) ** 2, 0).sum(0)
    varied = np.where(known, expected, -np.inf).max(0) > np.where(known, expected, np.inf).min(0)
    return float((1 - error[varied] / total[varied]).mean()) if varied.any() else math.nan


def mean_iou(outputs: Array, targets: Array) -> float:
    """Return the mean over classes of the intersection over the union of where each is and where it should be.

    A class that neither is nor should be anywhere is left out.

    Args:
        outputs: Scores of classes [N, C, ...].
        targets: The classes [N, ...].
    """
    decided = outputs.argmax(1)
    expected = _like(decided, targets)
    known = expected != UNLABELLED
    decided, expected = decided[known].astype(np.int64), expected[known].astype(np.int64)
    classes = max(outputs.shape[1], int(expected.max(initial=0)) + 1)
    pairs = np.bincount(expected * classes + decided, minlength=classes**2).reshape(classes, classes)
    union = pairs.sum(0) + pairs.sum(1) - pairs.diagonal()
    return float((pairs.diagonal()[union > 0] / union[union > 0]).mean()) if union.any() else math.nan


def token_accuracy(outputs: Array, targets: Array) -> float:
    """Return the share of the steps whose top-1 class is right, of scores [N, T, C] and classes [N, T]."""
    return _share_right(outputs.argmax(-1), _like(outputs[..., 0], targets))


def token_error_rate(outputs: Array, targets: Array, blank: int) -> float:
    """Return the edit distance of the tokens to those that should be, over the number of the latter.

    Args:
        outputs: Scores of classes [N, T, C], of which ``blank`` is no token, and repeated ones are one.
        targets: The tokens [N, L], which are followed by -100 where there are fewer.
        blank: The class that is no token.
    """
    errors = length = 0
    for decided, expected in zip(outputs.argmax(-1), targets, strict=True):
        tokens = expected[(expected != UNLABELLED) & (expected != blank)]
        errors += edit_distance(collapse(decided, blank), tokens)
        length += len(tokens)
    return _ratio(errors, length)


def recall_at_1(embeddings: Array, labels: Array) -> float:
    """Return of how many embeddings the nearest other, by cosine, has the same label.

    Samples without a label are left out, and so are those whose label no other has.

    Args:
        embeddings: The embeddings [N, D].
        labels: The label of each [N].
    """
    labelled = labels != UNLABELLED
    labels = labels[labelled]
    z = embeddings.reshape(len(embeddings), -1)[labelled].astype(np.float64)
    z /= np.maximum(np.sqrt((z**2).sum(1, keepdims=True)), np.finfo(np.float64).tiny)
    _, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(count[place] > 1)
    right = 0
    for start in range(0, len(queries), _ROWS):
        these = queries[start : start + _ROWS]
        cosines = z[these] @ z.T
        cosines[np.arange(len(these)), these] = -np.inf
        right += int((labels[cosines.argmax(1)] == labels[these]).sum())
    return _ratio(right, len(queries)) if np.isfinite(z).all() else math.nan


def _of_kind(kind: OutputKind) -> DefaultMetric | None:
    if kind.name == "sequence-classes" and kind.blank is not None:
        return DefaultMetric("1 - token error rate", partial(_tokens_right, blank=kind.blank))
    metrics: dict[OutputName, tuple[str, Metric]] = {
        "classes": ("accuracy", accuracy),
        "multilabel": ("F1", partial(f1, kind=kind)),
        "regression": ("R2", r2),
        "dense-classes": ("mean IoU", mean_iou),
        "sequence-classes": ("token accuracy", token_accuracy),
        "embedding": ("recall@1", recall_at_1),
    }
    return DefaultMetric(*metrics[kind.name]) if kind.name in metrics else None


def _tokens_right(outputs: Array, targets: Array, blank: int) -> float:
    return 1 - token_error_rate(outputs, targets, blank)


def _weighted_mean(
    metrics: Mapping[str, DefaultMetric],
    weights: Mapping[str, float],
    outputs: Mapping[str, Array],
    targets: Mapping[str, Array],
) -> float:
    factors = {name: weights.get(name, 1.0) for name in metrics}
    found = {name: metric.compute(outputs[name], targets[name]) for name, metric in metrics.items()}
    return math.fsum(factors[name] * found[name] for name in metrics) / math.fsum(factors.values())


def _share_right(decided: Array, expected: Array) -> float:
    labelled = expected != UNLABELLED
    return float((decided == expected)[labelled].mean()) if labelled.any() else math.nan


def _like(outputs: Array, targets: Array) -> Array:
    """Return targets in the shape of outputs, from which they may differ by dimensions of 1.

    Raises:
        ValueError: The shapes differ by more than that.
    """
    if [size for size in outputs.shape[1:] if size != 1] != [size for size in targets.shape[1:] if size != 1]:
        raise ValueError(f"the targets are of shape {targets.shape}, where the outputs have {outputs.shape}")
    return targets.reshape(outputs.shape)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
