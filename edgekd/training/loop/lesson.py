"""Whether a network that was just trained learned anything: said at once, and not after all that is made of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import TaskError
from edgekd.gram.probe import Probe
from edgekd.stages.artifacts import PROBE
from edgekd.stages.labels import UNLABELLED
from edgekd.training.loop.evaluate import ground_truth

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekd.stages.trained import Trained
    from edgekd.training.task.loading import LoadedTask

#: The most classes whose constant answer is tried, the most frequent first.
_CONSTANTS = 10


def describe_lesson(task: LoadedTask, name: str, trained: Trained, folder: Path) -> tuple[str, ...]:
    """Return in a sentence that a network is no better than an answer that is always the same; nothing where it is.

    Args:
        task: The user's task.
        name: The network, e.g. "student".
        trained: The trained network, with its figures of the validation split.
        folder: Its folder.
    """
    measured = [epoch["validation"] for epoch in trained.history if math.isfinite(epoch.get("validation", math.nan))]
    probe = Probe.load(folder / PROBE)
    kinds = [kind.name for kind in task.outputs.values()]
    if kinds != ["classes"]:
        return ()
    shape = probe.shapes[probe.output_names[0]]
    truth = ground_truth(task.splits["val"])
    labels, counts = np.unique(truth.labels[truth.labels != UNLABELLED], return_counts=True)
    if not measured or truth.has_targets or len(shape) != 2 or len(labels) < 2 or labels.max() >= shape[1]:
        return ()
    sign = 1 if task.higher_is_better else -1
    own, best = max(measured, key=lambda value: value * sign), -math.inf
    label = -1
    for tried in labels[np.argsort(-counts, kind="stable")][:_CONSTANTS].tolist():
        value = _constant(task, (len(truth.ids), shape[1]), tried, truth.labels) * sign
        if value > best:
            best, label = value, tried
    # Of so many samples a share as large as this varies by so much.
    chance = math.sqrt(best * (1 - best) / counts.sum()) if 0 < best < 1 else 0.0
    if label < 0 or own * sign > best + chance:
        return ()
    answer = task.class_names(probe.output_names[0], shape[1])[label]
    return (
        f"the {name} has learned nothing: its {task.metric_name} on the validation split, {own:.4g} at best, is no "
        f"better than that of always answering '{answer}', {best * sign:.4g}; look at the warnings above, the labels, "
        "the learning rate and the number of epochs",
    )


def _constant(task: LoadedTask, shape: tuple[int, int], label: int, labels: NDArray[np.generic]) -> float:
    """Return the metric of one answer to all samples; NaN where it has none."""
    outputs = np.zeros(shape, np.float32)
    outputs[:, label] = 1
    try:
        return task.metric(outputs, labels)
    except TaskError:
        return math.nan
