"""Stage: train the student from the teacher, aligning the modality Gram."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.training.distillation.modality_dropout import ModalityDropout
from edgekd.training.distillation.setup import Models, aligned
from edgekd.training.loop.evaluate import keep
from edgekd.training.loop.input_statistics import training_channels
from edgekd.training.loop.loop import Fit, compute_device, fit
from edgekd.training.loop.weights import build

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from edgekd.config.recipe import DistillConfig
    from edgekd.stages.artifacts import Trained
    from edgekd.stages.progress import StageReporter
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.protocol import LoadedTask


def run(
    task: LoadedTask,
    teacher: nn.Module,
    taps: Taps,
    config: DistillConfig,
    seed: int,
    folder: Path,
    report: StageReporter,
    outputs: Path | None = None,
) -> Trained:
    """Distil a student into ``folder``; ``outputs`` are the teacher's, where they were written.

    Raises:
        TaskError: a tap is wrong, or modalities are dropped and no training sample has one of them.
        ModelError: training diverged, or the teacher cannot run in its precision.
    """
    device = compute_device()
    dropped = config.modality_dropout
    spoil = ModalityDropout(training_channels(task.splits["train"], seed), dropped) if dropped else None
    student = build(task.task.student, seed).to(device)
    models = Models(student, teacher.to(device), outputs=outputs)
    with aligned(task, models, taps, config.loss, seed, report, spoil) as (objective, validate):
        history = fit(student, objective, task.splits["train"], validate, Fit(config, seed, folder, report))
    return keep(task, student, taps.student, history, folder)
