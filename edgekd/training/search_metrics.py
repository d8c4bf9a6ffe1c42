"""What is known of a finished student before a build: its ledger on the validation split, and its latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekd.stages.judging import keep_choosing_ledger
from edgekd.training.loop.compute_device import compute_device
from edgekd.training.loop.evaluate import example_batch, ground_truth, probe
from edgekd.training.loop.weights import build
from edgekd.training.pruning.latency import RelativeLatency

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from torch import nn

    from edgekd.gram.gate import GateRules, Ledger
    from edgekd.training.pruning.latency import Compared
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.loading import LoadedTask


def keep_validation_ledger(task: LoadedTask, models: Mapping[str, nn.Module], taps: Taps, rules: GateRules) -> Ledger:
    """Compare trained networks on the validation split, and judge them by the gate's rules.

    The test split is not used: a choice made by it could not be judged by it.

    Args:
        task: The task.
        models: The network of each row of the ledger, in its order: "teacher", "student", and what was made of it.
        taps: Where the embeddings of teacher and student are.
        rules: How the rows are judged.
    """
    device, split = compute_device(), task.splits["val"]
    truth = ground_truth(split)
    probes = {
        name: probe(model.to(device), taps.teacher if name == "teacher" else taps.student, split)
        for name, model in models.items()
    }
    return keep_choosing_ledger(probes, truth.targets, truth.groups, task.scoring, rules)


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
