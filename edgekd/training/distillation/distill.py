"""Stage: train the student from the teacher, with the modality Gram aligned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.training.distillation.modality_dropout import ModalityDropout
from edgekd.training.distillation.setup import DistillationNetworks, distillation_setup
from edgekd.training.loop.compute_device import compute_device
from edgekd.training.loop.evaluate import save_trained
from edgekd.training.loop.input_statistics import training_channels
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.settings import describe_length
from edgekd.training.loop.validation import warn_of_another_story
from edgekd.training.loop.weights import build, load_weights

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from edgekd.config.recipe import DistillConfig
    from edgekd.stages.trained import Trained
    from edgekd.training.stage_run import StageRun
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.loading import LoadedTask


def load(task: LoadedTask, taps: Taps, weights: Path, stage: StageRun) -> Trained:
    """Take a student that was trained elsewhere.

    Args:
        task: The user's task.
        taps: Where the networks' embeddings are.
        weights: The file of its weights.
        stage: Seed, folder and reporter of the run.

    Raises:
        ModelError: The weights are not this network's.
    """
    student = load_weights(build(task.task.student, stage.seed), weights).to(compute_device())
    return save_trained(task, student, taps.student, [], stage.folder)


def run(
    task: LoadedTask,
    teacher: nn.Module,
    taps: Taps,
    config: DistillConfig,
    stage: StageRun,
    outputs: Path | None = None,
) -> Trained:
    """Distil a student.

    Args:
        task: The user's task.
        teacher: The trained teacher.
        taps: Where both networks' embeddings are.
        config: How to train.
        stage: Seed, folder and reporter of the run.
        outputs: Folder of the teacher's cached outputs; None to run it on every batch.

    Raises:
        TaskError: A tap is wrong, or modalities are dropped and no training sample has one of them.
        ModelError: Training diverged, or the teacher cannot run in its precision.
    """
    device, train = compute_device(), task.splits["train"]
    dropped = config.modality_dropout
    transform = None
    if dropped:
        transform = ModalityDropout(training_channels(train, task.task.modalities, stage.seed), dropped)
    student = build(task.task.student, stage.seed).to(device)
    networks = DistillationNetworks(student, teacher.to(device), outputs=outputs)
    setup = distillation_setup(task, networks, taps, config.loss, stage.seed, stage.report, transform)
    with setup as (objective, validate):
        loop = Fit(config, stage.seed, stage.folder, stage.report, task.higher_is_better)
        history = fit(student, objective, train, validate, loop)
    trained = save_trained(task, student, taps.student, history, stage.folder)
    warn_of_another_story(task, student, taps.student, trained, stage.report)
    return replace(trained, longer=describe_length(config, len(train)))
