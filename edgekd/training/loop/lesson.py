"""Whether a network that was just trained learned anything: said at once, and not after all that is made of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.metric import LabelledSamples
from edgekd.gram.nest import known_rows
from edgekd.gram.probe import Probe
from edgekd.stages.artifacts import PROBE
from edgekd.training.loop.evaluate import ground_truth

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.stages.trained import Trained
    from edgekd.training.task.loading import LoadedTask


def describe_lesson(task: LoadedTask, name: str, trained: Trained, folder: Path) -> tuple[str, ...]:
    """Return in a sentence that a network is no better than an answer that is always the same; nothing where it is.

    Args:
        task: The user's task.
        name: The network, e.g. "student".
        trained: The trained network, with its figures of the validation split.
        folder: Its folder.
    """
    measured = [epoch["validation"] for epoch in trained.history if math.isfinite(epoch.get("validation", math.nan))]
    targets = ground_truth(task.splits["val"]).targets
    samples = LabelledSamples(targets, None, task.metric, task.higher_is_better, kinds=task.outputs)
    shapes = Probe.load(folder / PROBE).shapes
    best = samples.best_constant(shapes) if measured else None
    if best is None or best.alone:
        return ()
    sign = 1 if task.higher_is_better else -1
    own = max(value * sign for value in measured)
    # Of so many samples a share as large as this varies by so much.
    chance = math.sqrt(best.metric * (1 - best.metric) / known_rows(targets).sum()) if 0 < best.metric < 1 else 0.0
    if own > best.metric * sign + chance:
        return ()
    answer = best.answer
    names = list(task.outputs)
    if [task.outputs[name].name for name in names] == ["classes"] and isinstance(best.output, np.ndarray):
        answer = f"'{task.class_names(names[0], shapes[names[0]][1])[int(best.output.argmax())]}'"
    return (
        f"the {name} has learned nothing: its {task.metric_name} on the validation split, {own * sign:.4g} at best, is "
        f"no better than that of always answering {answer}, {best.metric:.4g}; look at the warnings above, the labels, "
        "the learning rate and the number of epochs",
    )
