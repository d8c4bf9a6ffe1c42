"""Metrics of a finished student that a search compares: metric and drift on the validation split, and latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekd.training.loop.evaluate import Validation, example_batch, probe
from edgekd.training.loop.loop import compute_device
from edgekd.training.loop.weights import build
from edgekd.training.pruning.latency import RelativeLatency

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from edgekd.training.loop.loop import Epoch
    from edgekd.training.pruning.latency import Compared
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.loading import LoadedTask


def validate(task: LoadedTask, teacher: nn.Module, student: nn.Module, taps: Taps) -> Epoch:
    """Return the metric as "validation", and as "drift" that of the student's Gram from the teacher's.

    Both are of the validation split. The test split is not used: a choice made by it could not be judged by it.
    """
    device = compute_device()
    reference = probe(teacher.to(device), taps.teacher, task.splits["val"])
    return Validation(task, student.to(device), taps.student, reference)()


class StudentTimer:
    """Times students, each alternating with the student that a task has by default.

    Args:
        task: The task whose student is the reference.
        taps: Where the embeddings are.
        seed: Seed of the reference's weights, which have no influence on the result.

    Raises:
        ModelError: Torch cannot export the reference.
    """

    def __init__(self, task: LoadedTask, taps: Taps, seed: int) -> None:
        reference = build(task.task.student, seed)
        self._latency = RelativeLatency(reference, taps.student, example_batch(task, torch.device("cpu")))

    def __call__(
        self, task: LoadedTask, student: nn.Module, taps: Taps, alone: AbstractContextManager[object]
    ) -> Compared:
        """Return the p50 in ms of a student, whose task may have other inputs, and of the reference.

        ``alone`` is entered while they are timed, and not while they are exported.

        Raises:
            ModelError: Torch cannot export it.
        """
        return self._latency.compare(student, taps.student, example_batch(task, torch.device("cpu")), alone)


def make_student(task: LoadedTask, seed: int) -> None:
    """Build a task's untrained student, to see that it can be built.

    Raises:
        TaskError: It cannot be made.
    """
    with task.running("student()"):
        build(task.task.student, seed)


def same_teacher(one: LoadedTask, other: LoadedTask, seed: int) -> bool:
    """Whether training would give two tasks the same teacher, bit for bit."""
    if one.fingerprint() != other.fingerprint() or one.metric_name != other.metric_name:
        return False
    ours, theirs = (build(task.task.teacher, seed) for task in (one, other))
    weights = theirs.state_dict()
    return (
        str(ours) == str(theirs)
        and ours.state_dict().keys() == weights.keys()
        and all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())
    )
