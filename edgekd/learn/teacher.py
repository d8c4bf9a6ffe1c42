"""Stage: train the teacher, or load the user's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.learn.evaluate import Validation, keep
from edgekd.learn.objective import Supervised
from edgekd.learn.taps import Tapped
from edgekd.learn.train import Fit, compute_device, fit
from edgekd.learn.weights import build, load_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.learn.result import Trained
    from edgekd.learn.task import LoadedTask
    from edgekd.progress import StageReporter
    from edgekd.recipe import Tap, TeacherConfig


def run(
    task: LoadedTask, taps: Mapping[str, Tap], config: TeacherConfig, seed: int, folder: Path, report: StageReporter
) -> Trained:
    """Train or load the teacher into ``folder``.

    Raises:
        TaskError: a tap is wrong.
        ModelError: the weights are not this network's, or training diverged.
    """
    model = build(task.task.teacher, seed).to(compute_device())
    history = []
    with Tapped(model, taps) as tapped:
        if config.weights:
            load_weights(model, Path(config.weights))
        else:
            run_ = Fit(config, seed, folder, report)
            history = fit(model, Supervised(tapped), task.splits["train"], Validation(task, model, taps), run_)
    return keep(task, model, taps, history, folder)
