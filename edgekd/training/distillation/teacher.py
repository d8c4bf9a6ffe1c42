"""Stage: train the teacher, or load the user's weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.stages.cache import ROUNDS
from edgekd.stages.progress import PartialReporter
from edgekd.training.distillation.ensemble import Ensemble
from edgekd.training.distillation.objective import SupervisedObjective
from edgekd.training.distillation.task_losses import losses_of
from edgekd.training.loop import distributed
from edgekd.training.loop.compute_device import compute_device
from edgekd.training.loop.evaluate import Validation, save_trained
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.settings import count_epochs, describe_length
from edgekd.training.loop.validation import warn_of_another_story
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from edgekd.config.recipe import Tap, TeacherConfig
    from edgekd.stages.trained import Trained
    from edgekd.training.loop.loop import Epoch
    from edgekd.training.stage_run import StageRun
    from edgekd.training.task.loading import LoadedTask


def run(task: LoadedTask, taps: Mapping[str, Tap], config: TeacherConfig, stage: StageRun) -> Trained:
    """Train or load the teacher; where there are several, one file holds the weights of all.

    Raises:
        TaskError: A tap is wrong.
        ModelError: The weights are not this network's, or training diverged.
    """
    if config.members > 1:
        return _train_members(task, taps, config, stage)
    model = build(task.task.teacher, stage.seed).to(compute_device())
    history, longer = [], ""
    if config.weights:
        load_weights(model, Path(config.weights))
    else:
        longer = describe_length(config, len(task.splits["train"]))
        history = _train(task, model, taps, Fit(config, stage.seed, stage.folder, stage.report, task.higher_is_better))
    trained = save_trained(task, model, taps, history, stage.folder)
    warn_of_another_story(task, model, taps, trained, stage.report)
    return replace(trained, longer=longer)


def _train(task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap], run: Fit) -> list[Epoch]:
    with TappedModel(model, taps) as tapped:
        objective = SupervisedObjective(tapped, losses_of(task))
        return fit(model, objective, task.splits["train"], Validation(task, model, taps), run)


def _train_members(task: LoadedTask, taps: Mapping[str, Tap], config: TeacherConfig, stage: StageRun) -> Trained:
    history: list[Epoch] = []
    networks = []
    epochs = count_epochs(config, len(task.splits["train"]))
    for number in range(config.members):
        networks.append(build(task.task.teacher, stage.seed + number).to(compute_device()))
        report = PartialReporter(stage.report.observer, stage.report.stage, number * epochs, config.members * epochs)
        # The checkpoint of a member that a killed run finished is all that is needed of it.
        folder, higher = stage.folder / ROUNDS / str(number), task.higher_is_better
        run = Fit(config, stage.seed + number, folder, report, higher)
        history += _train(task, networks[-1], taps, run)
    ensemble = Ensemble(networks, taps)
    trained = save_trained(task, ensemble, ensemble.taps, history, stage.folder)
    if distributed.is_main():
        shutil.rmtree(stage.folder / ROUNDS)
    return replace(trained, longer=describe_length(config, len(task.splits["train"])))
