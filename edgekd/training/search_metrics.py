"""What a search asks of a finished student: its metric and drift on the validation split, its latency."""

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
    """Return "validation", the metric, and "drift", that of the student's Gram from the teacher's.

    Of the validation split: the test split is never looked at, since whoever chooses by it can no longer judge by it.
    """
    device = compute_device()
    reference = probe(teacher.to(device), taps.teacher, task.splits["val"])
    return Validation(task, student.to(device), taps.student, reference)()


class StudentTimer:
    """Times students, each in turns with the student that a task has by itself.

    Args:
        task: whose student is the reference.
        taps: where its embeddings are.
        seed: of its weights, which decide nothing here.

    Raises:
        ModelError: torch cannot export the reference.
    """

    def __init__(self, task: LoadedTask, taps: Taps, seed: int) -> None:
        reference = build(task.task.student, seed)
        self._latency = RelativeLatency(reference, taps.student, example_batch(task, torch.device("cpu")))

    def __call__(
        self, task: LoadedTask, student: nn.Module, taps: Taps, alone: AbstractContextManager[object]
    ) -> Compared:
        """Return the p50 of a student, which may be of a task with other inputs, and the reference's.

        ``alone`` is held while they are timed, and not while they are exported.

        Raises:
            ModelError: torch cannot export it.
        """
        return self._latency.compare(student, taps.student, example_batch(task, torch.device("cpu")), alone)


def make_student(task: LoadedTask, seed: int) -> None:
    """Make a task's untrained student, and no more.

    Raises:
        TaskError: it cannot be made.
    """
    with task.running("student()"):
        build(task.task.student, seed)


def same_teacher(one: LoadedTask, other: LoadedTask, seed: int) -> bool:
    """Whether a teacher that is trained for one task would be the other's, bit for bit."""
    if one.fingerprint() != other.fingerprint() or one.metric_name != other.metric_name:
        return False
    ours, theirs = (build(task.task.teacher, seed) for task in (one, other))
    weights = theirs.state_dict()
    return (
        str(ours) == str(theirs)
        and ours.state_dict().keys() == weights.keys()
        and all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())
    )
