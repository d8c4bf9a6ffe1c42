"""Checks of what a user's task says of itself: modalities, classes, files, and what its functions return."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from edgekd.errors import TaskError, nearest
from edgekd.stages.user_code import describe, shown
from edgekd.training.task.columns import check_text
from edgekd.training.task.protocol import SPLITS, Modality, Output, Task

if TYPE_CHECKING:
    from edgekd.training.task.protocol import Split

_KINDS = {
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def check_task(what: str, task: object) -> Task:
    """Return what a task's class or function made, if it has what a task must have, each of the right kind.

    Args:
        what: The task, at the beginning of an error.
        task: What was made.

    Raises:
        TaskError: Something is missing or of a wrong kind.
    """
    check_returned(what, task, object, "a task")
    missing = [name for name in ("modalities", "splits", "student") if not hasattr(task, name)]
    if missing:  # whether it needs a teacher, the recipe says
        raise TaskError(f"{what}: lacks {', '.join(missing)}")
    for name in ("splits", "teacher", "student", "metric", "loss", "distill", "same", "collate"):
        if not callable(getattr(task, name, describe)):
            raise TaskError(f"{what}: its {name} is {describe(getattr(task, name))}, must be a function")
    for name in ("teacher_taps", "student_taps"):
        if not isinstance(getattr(task, name, {}), Mapping):
            raise TaskError(
                f"{what}: its {name} is {describe(getattr(task, name))}, must be a dict with a tap for each modality"
            )
    checked = cast("Task", task)
    _check_modalities(what, checked)
    _check_outputs(what, checked)
    data_files(what, checked)
    return checked


def _check_modalities(what: str, task: Task) -> None:
    modalities = _listed(what, "modalities", task.modalities, "edgekd.Modality objects")
    for modality in modalities:
        if not isinstance(modality, Modality):
            raise TaskError(f"{what}: its modalities hold {describe(modality)}, each must be an edgekd.Modality")
    names = [modality.name for modality in task.modalities]
    if len(set(names)) < len(names):
        raise TaskError(f"{what}: has modalities {names}; each is to be named once")
    described = [modality.name for modality in task.modalities if not modality.of]
    if not described:
        raise TaskError(f"{what}: has no modality{' that is not of another' if names else ''}; it needs one at least")
    for modality in task.modalities:
        if modality.of and modality.of not in described:
            raise TaskError(
                f"{what}: '{modality.name}' is of '{modality.of}', which is no modality of the task"
                + nearest(modality.of, described)
            )


def _check_outputs(what: str, task: Task) -> None:
    outputs = task_outputs(what, task)
    names = [output.name for output in outputs]
    if not names or len(set(names)) < len(names):
        raise TaskError(f"{what}: has outputs {names}; it needs one at least, each named once")
    inputs = [modality.name for modality in task.modalities]
    taken = [name for name in names if name in inputs]
    if taken:
        raise TaskError(f"{what}: '{taken[0]}' is an input and an output; a graph holds one of that name")
    for output in outputs:
        class_names(f"{what}: output '{output.name}'", output.classes)
        lacking = [name for name in ("loss", "distill", "metric") if not hasattr(task, name)]
        if output.kind == "custom" and lacking:
            raise TaskError(
                f"{what}: output '{output.name}' is custom, which the task alone can read: it lacks "
                f"{', '.join(f'a function {name}' for name in lacking)}"
            )
    if not any(output.weight for output in outputs) and not hasattr(task, "loss"):
        raise TaskError(f"{what}: all outputs have weight 0, so there is nothing to learn")


def task_outputs(what: str, task: Task) -> list[Output]:
    """Return a task's outputs; where it names none, one: the logits of its classes.

    Raises:
        TaskError: They are no list of outputs, or the names of its classes none.
    """
    classes = class_names(f"{what}: its", getattr(task, "classes", None))
    outputs = getattr(task, "outputs", None)
    if outputs is None:
        return [Output("logits", classes=classes)]
    listed = _listed(what, "outputs", outputs, "edgekd.Output objects")
    found = [output for output in listed if isinstance(output, Output)]
    if len(found) < len(listed):
        wrong = next(output for output in listed if not isinstance(output, Output))
        raise TaskError(f"{what}: its outputs hold {describe(wrong)}, each must be an edgekd.Output")
    if classes and len(found) == 1 and not found[0].classes:
        return [replace(found[0], classes=classes)]
    if classes:
        raise TaskError(f"{what}: has both classes and outputs; name the classes of each in Output(..., classes=[...])")
    return found


def class_names(what: str, classes: object) -> list[str]:
    """Return the names of classes, none where there are none.

    Raises:
        TaskError: They are no list of texts or whole numbers, or two are the same.
    """
    if classes is None:
        return []
    names = _listed(what, "classes", classes, "the classes' names")
    for name in names:
        if not isinstance(name, str | int | np.integer) or isinstance(name, bool):
            raise TaskError(f"{what} classes hold {describe(name)}, each must be a name")
    texts = [str(name) for name in names]
    for text in texts:
        check_text(f"{what} a name in its classes", text)
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise TaskError(f"{what} classes have '{twice}' twice")
    return texts


def data_files(what: str, task: Task) -> tuple[Path, ...] | None:
    """Return the data files that a task names, None where it names none.

    Raises:
        TaskError: They are no list of paths, or one leads to what cannot be read to its end: a pipe, a device.
    """
    files = getattr(task, "files", None)
    if files is None:
        return None
    paths = []
    for file in _listed(what, "files", files, "paths"):
        if not isinstance(file, str | Path):
            raise TaskError(f"{what}: its files hold {describe(file)} ({shown(file)}), each must be a path")
        check_text(f"{what}: a path in its files", str(file), longest=1 << 16)
        paths.append(Path(file))
        if paths[-1].exists() and (kind := _kind(paths[-1].stat().st_mode)):
            raise TaskError(f"{what}: its files hold {file}, which is {kind}; each must be a file or a folder")
    return tuple(paths)


def _kind(mode: int) -> str:
    return next((kind for is_kind, kind in _KINDS.items() if is_kind(mode)), "")


def _listed(what: str, name: str, value: object, of: str) -> list[object]:
    """Return an attribute's items; neither a text, nor a set, which has no order, nor what may never end."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TaskError(f"{what}: its {name} is {describe(value)}, must be a list of {of}")
    return list(value)


def check_splits(what: str, splits: object) -> dict[str, Split]:
    """Return the splits that a task must have, in their order; it may have others, which nothing reads.

    Raises:
        TaskError: One lacks, or is no dataset with a length.
    """
    if not isinstance(splits, Mapping):
        check_returned(f"{what}: splits()", splits, Mapping, f"a dict of {', '.join(SPLITS)}")
        raise AssertionError
    absent = [name for name in SPLITS if name not in splits]
    if absent:
        others = [str(name) for name in splits if name not in SPLITS]
        has = f"; it has {', '.join(others)}" if others else ""
        raise TaskError(f"{what}: splits() lacks {', '.join(absent)}{has}; it needs {', '.join(SPLITS)}")
    for name in SPLITS:
        split = splits[name]
        if isinstance(split, str | bytes) or not (hasattr(split, "__len__") and hasattr(split, "__getitem__")):
            raise TaskError(
                f"{what}, split '{name}': is {describe(split)}, must be an edgekd.ArraySplit or a dataset with __len__ "
                "and __getitem__"
            )
    return {name: splits[name] for name in SPLITS}


def check_returned(what: str, value: object, kind: type, wanted: str) -> None:
    """Check what a function of the task's returned.

    Args:
        what: The function, at the beginning of the error.
        value: What it returned.
        kind: Type that this must be of.
        wanted: That type in words.

    Raises:
        TaskError: It is of another type.
    """
    if value is None:
        raise TaskError(f"{what} returned None, must return {wanted}; is its 'return' missing?")
    if not isinstance(value, kind):
        raise TaskError(f"{what} returned {describe(value)}, must return {wanted}")


def check_shapes(where: str, task: Task, found: Mapping[str, tuple[int, ...]], sample: str = "a sample") -> None:
    """Check the names, order and shapes of inputs, without the batch.

    Args:
        where: The split, at the beginning of the error.
        task: The task, whose modalities are expected.
        found: The shape of each input.
        sample: The sample, as the error calls it.

    Raises:
        TaskError: They are not those of the task's modalities.
    """
    expected = {modality.name: modality.shape for modality in task.modalities}
    if expected != found:
        unknown = [name for name in found if name not in expected]
        hint = nearest(str(unknown[0]), expected) if unknown else _shape_hint(expected, found)
        raise TaskError(f"{where}: {sample} has inputs {dict(found)}, but the task's modalities are {expected}{hint}")
    if list(expected) != list(found):
        # Networks are called with the inputs in their order, so another order swaps two modalities.
        raise TaskError(
            f"{where}: {sample} has its inputs in the order {list(found)}, but the task's modalities are in the order "
            f"{list(expected)}"
        )


def _shape_hint(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    for name in expected.keys() & found.keys():
        has, most = found[name], expected[name]
        if has != most and len(has) == len(most) and all(a <= b for a, b in zip(has, most, strict=True)):
            return f"; samples that are shorter need a value to be filled up with: Modality('{name}', ..., pad=0)"
    return ""
