"""Hold what two untrained networks put out against each other, the task's names and the samples' targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.errors import TaskError
from edgekd.training.distillation.answer_losses import output_target
from edgekd.training.distillation.kinds.registry import check_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.training.taps.taps import TapOutputs
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.protocol import Batch


def check_shapes_agree(teacher: TapOutputs, student: TapOutputs, task: LoadedTask) -> dict[str, tuple[int, ...]]:
    """Return the shape of each output of the student, without the batch.

    Raises:
        TaskError: The networks disagree on one that is compared element by element, or with the task's names.
    """
    shapes = {}
    for name, kind in task.outputs.items():
        theirs, ours = (tuple(side.answers[name].shape[1:]) for side in (teacher, student))
        if theirs != ours and kind.name not in ("embedding", "custom"):
            if kind.name == "classes":
                raise TaskError(f"teacher and student disagree on the number of classes: {theirs[0]} and {ours[0]}")
            raise TaskError(f"teacher and student disagree on the shape of output '{name}': {theirs} and {ours}")
        axis = 1 if kind.name == "multilabel" else kind.class_axis
        if axis is not None:
            count = student.answers[name].shape[axis]
            task.class_names(name, count)
            if kind.blank is not None and kind.blank >= count:
                raise TaskError(f"the blank of output '{name}' is {kind.blank}, but the networks give {count} classes")
        shapes[name] = ours
    return shapes


def label_names(task: LoadedTask, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the names of the classes that samples' labels stand for; none where labels are no classes."""
    kinds = list(task.outputs.items())
    if len(kinds) > 1 or kinds[0][1].name != "classes":
        return []
    name = kinds[0][0]
    return task.class_names(name, shapes[name][0])


def check_targets(where: str, task: LoadedTask, batch: Batch, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check a batch's targets, where the outputs' default losses read them.

    Raises:
        TaskError: One is not there, is of a wrong shape or type, or out of range.
    """
    if hasattr(task.task, "loss"):
        return
    for name, kind in task.outputs.items():
        try:
            target = output_target(name, batch.targets, len(shapes))
        except TaskError as error:
            raise TaskError(f"{where}: {error}") from error
        what = f"{where}: the target of output '{name}'" if batch.has_targets else where
        check_target(what, kind, shapes[name], target)
