"""A model on the validation split: its metric, and how far that is from what other samples would give."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import TaskError
from edgekd.stages.labels import UNLABELLED
from edgekd.training.loop.evaluate import ground_truth, probe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from edgekd.config.recipe import Tap
    from edgekd.training.loop.evaluate import GroundTruth
    from edgekd.training.task.loading import LoadedTask

_SPLIT = "val"
_RESAMPLES = 200


def labelled_ground_truth(task: LoadedTask) -> GroundTruth:
    """Return what is known of the validation samples that have labels.

    Raises:
        TaskError: none has.
    """
    known = ground_truth(task.splits[_SPLIT])
    there = known.labels != UNLABELLED
    if not there.any():
        raise TaskError(
            "split 'val' has no labels, and losses are compared by the metric on it: give its samples labels, or move "
            "some labelled ones from 'train'"
        )
    return type(known)(known.ids[there], known.labels[there], None if known.groups is None else known.groups[there])


def score(task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap]) -> float:
    """Return a model's metric on the validation split.

    Raises:
        TaskError: the metric is no finite number.
    """
    logits, known = _logits(task, model, taps)
    return check_finite(task, task.metric(logits, known.labels))


def check_finite(task: LoadedTask, value: float) -> float:
    """Return a metric of the validation split, or raise TaskError where it is not finite."""
    if not math.isfinite(value):
        raise TaskError(f"the task's {task.metric_name} is {value} on split 'val'; it must be a finite number")
    return value


def sampling_error(task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap]) -> float | None:
    """Return the standard error of a model's metric on the validation split: the bootstrap's, over samples or groups.

    None where all samples are of one group, or the metric of no resample is finite.
    """
    logits, known = _logits(task, model, taps)
    members = None if known.groups is None else [np.flatnonzero(known.groups == g) for g in np.unique(known.groups)]
    units = len(known.ids) if members is None else len(members)
    if units < 2:
        return None
    random = np.random.default_rng(0)
    found = []
    for _ in range(_RESAMPLES):
        drawn = random.integers(units, size=units)
        rows = drawn if members is None else np.concatenate([members[unit] for unit in drawn])
        found.append(task.metric(logits[rows], known.labels[rows]))
    values = np.array([value for value in found if math.isfinite(value)])
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _logits(
    task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap]
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], GroundTruth]:
    """Return the logits [N, C] and what is known of the samples."""
    split = task.splits[_SPLIT]
    return probe(model, taps, split).logits, ground_truth(split)
