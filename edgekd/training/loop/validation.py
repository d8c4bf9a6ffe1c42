"""A model's metric on the validation split, and how much it varies with the samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import TaskError
from edgekd.gram.nest import take_rows
from edgekd.stages.labels import UNLABELLED
from edgekd.training.loop.evaluate import GroundTruth, ground_truth, probe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from edgekd.config.recipe import Tap
    from edgekd.gram.probe import Answer
    from edgekd.training.task.loading import LoadedTask

_SPLIT = "val"
_RESAMPLES = 200


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
    answer, truth = _answers(task, model, taps)
    return check_finite(task, task.metric(answer, truth.targets))


def check_finite(task: LoadedTask, value: float) -> float:
    """Return a metric of the validation split, or raise TaskError where it is not finite."""
    if not math.isfinite(value):
        raise TaskError(f"the task's {task.metric_name} is {value} on split 'val'; it must be a finite number")
    return value


def sampling_error(task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap]) -> float | None:
    """Return the bootstrap's standard error, over samples or groups, of a model's metric on the validation split.

    It is None where all samples are of one group, or where the metric of no resample is finite.
    """
    answer, truth = _answers(task, model, taps)
    members = None if truth.groups is None else [np.flatnonzero(truth.groups == g) for g in np.unique(truth.groups)]
    units = len(truth.ids) if members is None else len(members)
    if units < 2:
        return None
    random = np.random.default_rng(0)
    values = []
    for _ in range(_RESAMPLES):
        drawn = random.integers(units, size=units)
        rows = drawn if members is None else np.concatenate([members[unit] for unit in drawn])
        values.append(task.metric(take_rows(answer, rows), truth.part(rows).targets))
    finite = np.array([value for value in values if math.isfinite(value)])
    return float(finite.std(ddof=1)) if len(finite) > 1 else None


def _answers(task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap]) -> tuple[Answer, GroundTruth]:
    """Return what a model answers for the samples, and their ground truth."""
    split = task.splits[_SPLIT]
    return probe(model, taps, split).answer, ground_truth(split)
