"""Stage: train the teacher, or load the user's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.stages.cache import ROUNDS
from edgekd.stages.progress import PartialReporter
from edgekd.training.distillation.ensemble import Ensemble
from edgekd.training.distillation.objective import Supervised
from edgekd.training.loop import distributed
from edgekd.training.loop.evaluate import Validation, keep
from edgekd.training.loop.loop import Fit, compute_device, fit
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from edgekd.config.recipe import Tap, TeacherConfig
    from edgekd.stages.artifacts import Trained
    from edgekd.stages.progress import StageReporter
    from edgekd.training.loop.loop import Epoch
    from edgekd.training.task.protocol import LoadedTask


def run(
    task: LoadedTask, taps: Mapping[str, Tap], config: TeacherConfig, seed: int, folder: Path, report: StageReporter
) -> Trained:
    """Train or load the teacher into ``folder``; of several, one file holds the weights of all.

    Raises:
        TaskError: a tap is wrong.
        ModelError: the weights are not this network's, or training diverged.
    """
    if config.members > 1:
        return _several(task, taps, config, seed, folder, report)
    model = build(task.task.teacher, seed).to(compute_device())
    history = []
    if config.weights:
        load_weights(model, Path(config.weights))
    else:
        history = _train(task, model, taps, Fit(config, seed, folder, report))
    return keep(task, model, taps, history, folder)


def _train(task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap], run: Fit) -> list[Epoch]:
    with TappedModel(model, taps) as tapped:
        return fit(model, Supervised(tapped), task.splits["train"], Validation(task, model, taps), run)


def _several(
    task: LoadedTask, taps: Mapping[str, Tap], config: TeacherConfig, seed: int, folder: Path, report: StageReporter
) -> Trained:
    history: list[Epoch] = []
    networks = []
    for number in range(config.members):
        networks.append(build(task.task.teacher, seed + number).to(compute_device()))
        part = PartialReporter(report.observer, report.stage, number * config.epochs, config.members * config.epochs)
        # Of a member that a killed run finished, the checkpoint is all that is needed.
        run = Fit(config, seed + number, folder / ROUNDS / str(number), part)
        history += _train(task, networks[-1], taps, run)
    ensemble = Ensemble(networks, taps)
    trained = keep(task, ensemble, ensemble.taps, history, folder)
    if distributed.leads():
        shutil.rmtree(folder / ROUNDS)
    return trained
