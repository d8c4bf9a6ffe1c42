"""Stage: train the student from the teacher, aligning the modality Gram."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.learn.evaluate import keep, metric
from edgekd.learn.objective import Distillation
from edgekd.learn.precision import tapped_teacher
from edgekd.learn.taps import Tapped
from edgekd.learn.train import Fit, compute_device, fit
from edgekd.learn.weights import build

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from edgekd.learn.result import Trained
    from edgekd.learn.taps import Taps
    from edgekd.learn.task import LoadedTask
    from edgekd.progress import StageReporter
    from edgekd.recipe import DistillConfig


def run(
    task: LoadedTask,
    teacher: nn.Module,
    taps: Taps,
    config: DistillConfig,
    seed: int,
    folder: Path,
    report: StageReporter,
) -> Trained:
    """Distil a student into ``folder``.

    Raises:
        TaskError: a tap is wrong.
        ModelError: training diverged, or the teacher cannot run in its precision.
    """
    device = compute_device()
    student = build(task.task.student, seed).to(device)
    with Tapped(student, taps.student) as tapped, tapped_teacher(teacher.to(device), taps) as reference:
        objective = Distillation(tapped, reference, reference, config.loss, report)
        validate = lambda: metric(task, student, taps.student, "val")  # noqa: E731
        history = fit(student, objective, task.splits["train"], validate, Fit(config, seed, folder, report))
    return keep(task, student, taps.student, history, folder)
