"""A model's metric on the validation split, and how much it varies with the samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import TaskError
from edgekd.gram.nest import take_rows
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.trained import kept_epoch
from edgekd.training.loop import distributed
from edgekd.training.loop.evaluate import GroundTruth, ground_truth, probe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from edgekd.config.recipe import Tap
    from edgekd.gram.probe import Answer
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.trained import Trained
    from edgekd.training.task.loading import LoadedTask

_SPLIT = "val"
_RESAMPLES = 200

#: What differs by less than this share of itself is the same story; what differs by more is another one beyond so many
#: standard errors. Of the best of many epochs the metric on the validation split is a little too good.
_SMALL, _CLEARLY = 0.03, 4.0

#: The spread of fewer groups tells little.
_FEWEST = 5


def labelled_ground_truth(task: LoadedTask) -> GroundTruth:
    """Return the ground truth of the validation samples that have labels.

    Raises:
        TaskError: None has.
    """
    truth = ground_truth(task.splits[_SPLIT])
    labelled = np.full(len(truth.ids), True) if truth.has_targets else truth.labels != UNLABELLED
    if not labelled.any():
        raise TaskError(
            "split 'val' has no labels, and losses are compared by the metric on it: give its samples labels, or move "
            "some labelled ones from 'train'"
        )
    return truth.part(labelled)


def score(task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap]) -> float:
    """Return a model's metric on the validation split.

    Raises:
        TaskError: The metric is no finite number.
    """
    answer, truth = _answers(task, model, taps, _SPLIT)
    return check_finite(task, task.metric(answer, truth.targets))


def check_finite(task: LoadedTask, value: float) -> float:
    """Return a metric of the validation split, or raise TaskError where it is not finite."""
    if not math.isfinite(value):
        raise TaskError(f"the task's {task.metric_name} is {value} on split 'val'; it must be a finite number")
    return value


def sampling_error(
    task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap], split: str = _SPLIT, fewest: int = 2
) -> float | None:
    """Return the bootstrap's standard error, over samples or groups, of a model's metric on a split.

    It is None where there are fewer samples or groups than ``fewest``, or where the metric of no resample is finite.
    """
    answer, truth = _answers(task, model, taps, split)
    members = None if truth.groups is None else [np.flatnonzero(truth.groups == g) for g in np.unique(truth.groups)]
    units = len(truth.ids) if members is None else len(members)
    if units < fewest:
        return None
    random = np.random.default_rng(0)
    values = []
    for _ in range(_RESAMPLES):
        drawn = random.integers(units, size=units)
        rows = drawn if members is None else np.concatenate([members[unit] for unit in drawn])
        values.append(task.metric(take_rows(answer, rows), truth.part(rows).targets))
    finite = np.array([value for value in values if math.isfinite(value)])
    return float(finite.std(ddof=1)) if len(finite) > 1 else None


def warn_of_another_story(
    task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap], trained: Trained, report: StageReporter
) -> None:
    """Warn where a trained model's metrics on validation and test split differ by more than their sizes explain.

    Args:
        task: The task.
        model: The trained model.
        taps: Where its embeddings are.
        trained: Its metric on the test split, and its history with that on the validation split.
        report: Receives the warning.
    """
    if not trained.history or not distributed.is_main():
        return
    values = {_SPLIT: kept_epoch(trained.history)["validation"], "test": trained.metric}
    gap = abs(values["test"] - values[_SPLIT])
    if not gap > _SMALL * max(map(abs, values.values())):
        return
    errors: list[float] = []
    for split in ("test", _SPLIT):
        error = sampling_error(task, model, taps, split, _FEWEST)
        if error is None or gap <= _CLEARLY * math.hypot(error, *errors):
            return
        errors.append(error)
    report.warn(
        f"the {task.metric_name} is {values[_SPLIT]:.4f} on split 'val' and {values['test']:.4f} on 'test', further "
        f"apart than so many samples differ by chance (standard errors {errors[1]:.4f} and {errors[0]:.4f}): the two "
        "are drawn differently, or one of them has near-copies of training samples, so what is chosen by 'val' may not "
        "hold on 'test'"
    )


def _answers(task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap], split: str) -> tuple[Answer, GroundTruth]:
    """Return what a model answers for a split's samples, and their ground truth."""
    return probe(model, taps, task.splits[split]).answer, ground_truth(task.splits[split])
