"""Load a task by the name that a recipe gives it, and check that it keeps the protocol."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from edgekd.errors import TaskError, nearest
from edgekd.stages.labels import accuracy
from edgekd.stages.user_code import source_files, user_code, user_errors
from edgekd.training.task.imports import import_module, import_task_file
from edgekd.training.task.protocol import SPLITS, ArraySplit, Sample, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from hashlib import _Hash as Hash

    from numpy.typing import NDArray

    from edgekd.config.recipe import TaskConfig
    from edgekd.training.task.protocol import Split


@dataclass(frozen=True)
class LoadedTask:
    """A task with its splits, which keeps the protocol.

    Attributes:
        task: The user's object.
        splits: The splits by name.
        sources: Python files of the task, its own first; a change of any makes it another task.
    """

    task: Task
    splits: Mapping[str, Split]
    sources: tuple[Path, ...]
    _fingerprint: list[str] = field(default_factory=list, repr=False)

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        return [modality.name for modality in self.task.modalities]

    @property
    def files(self) -> tuple[Path, ...] | None:
        """Data files that the task names, or None where it names none."""
        files = getattr(self.task, "files", None)
        return None if files is None else tuple(Path(file) for file in files)

    def class_names(self, logits: int) -> list[str]:
        """Return the classes' names for a network with that many logits.

        Raises:
            TaskError: The task names more or fewer.
        """
        classes = getattr(self.task, "classes", None)
        names = [str(name) for name in (range(logits) if classes is None else classes)]
        if len(names) != logits:
            raise TaskError(f"the task names {len(names)} classes, but its networks give {logits} logits")
        return names

    def running(self, what: str) -> AbstractContextManager[None]:
        """Return a context for the task's own code, in which what it raises becomes one line with its place."""
        return user_code(what, self.folder)

    def errors_in(self, what: str) -> AbstractContextManager[None]:
        """Return a context for edgekd's code that runs the task's: only what the task's raises becomes one line."""
        return user_errors(what, self.folder)

    @property
    def folder(self) -> Path | None:
        """Folder of the task's files; None where it has none."""
        return self.sources[0].parent if self.sources else None

    @property
    def metric_name(self) -> str:
        """Name of the metric."""
        return str(getattr(self.task, "metric_name", "metric" if hasattr(self.task, "metric") else "accuracy"))

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is better."""
        return bool(getattr(self.task, "higher_is_better", True))

    def metric(self, logits: NDArray[np.float32], labels: NDArray[np.integer]) -> float:
        """Return the task's metric of logits [N, C] and labels [N]."""
        return float(getattr(self.task, "metric", accuracy)(logits, labels))

    def fingerprint(self) -> str:
        """Return a digest of the task's data, computed once.

        It covers all of a split in memory. Of another split it covers the ids and labels of every sample and the inputs
        of at most 256 samples, evenly spread: enough to notice other data, and cheap on large sets.
        """
        if not self._fingerprint:
            hasher = hashlib.sha256()
            for name, split in self.splits.items():
                hasher.update(f"{name} {len(split)}".encode())
                _digest_split(split, hasher)
            self._fingerprint.append(hasher.hexdigest()[:16])
        return self._fingerprint[0]


def _digest_split(split: Split, hasher: Hash) -> None:
    if isinstance(split, ArraySplit):
        hasher.update(repr((split.ids, split.groups)).encode())
        _digest_tensors({"labels": split.labels, **split.inputs}, hasher)
        _digest_tensors({f"present {name}": there for name, there in split.present.items()}, hasher)
        return
    covered = set(np.linspace(0, len(split) - 1, min(256, len(split))).astype(int).tolist())
    for index in range(len(split)):
        sample = split[index]
        hasher.update(repr((sample.id, sample.label, sample.group, *sorted(sample.missing))).encode())
        if index in covered:
            _digest_tensors(sample.inputs, hasher)


def _digest_tensors(tensors: Mapping[str, Tensor], hasher: Hash) -> None:
    for name, x in tensors.items():
        hasher.update(f"{name} {tuple(x.shape)}".encode())
        hasher.update(x.contiguous().numpy().tobytes())


def load_task(config: TaskConfig) -> LoadedTask:
    """Import a task, call it with its options, and check it.

    Raises:
        TaskError: It cannot be found or called, or does not keep the protocol.
    """
    factory, module_file = _find(config.name)
    signature = inspect.signature(factory)
    try:
        signature.bind(**config.options)
    except TypeError as error:
        unknown = [name for name in config.options if name not in signature.parameters]
        hint = nearest(unknown[0], signature.parameters) if unknown else ""
        raise TaskError(f"task {config.name}: cannot be made with options {config.options}: {error}{hint}") from error
    with user_code(f"task {config.name}", module_file.parent):
        task = factory(**config.options)
        if not isinstance(task, Task):
            missing = [name for name in ("modalities", "splits", "teacher", "student") if not hasattr(task, name)]
            raise TaskError(f"task {config.name}: lacks {', '.join(missing)}")
        splits = task.splits()
        check_returned(f"task {config.name}: splits()", splits, Mapping, f"a dict of {', '.join(SPLITS)}")
        _check(config.name, task, splits)
    return LoadedTask(task, splits, source_files(module_file))


def _find(name: str) -> tuple[Callable[..., object], Path]:
    """Return what a task's name stands for, and the file that it is in."""
    module_name, colon, attribute = name.partition(":")
    if not colon:
        shipped = _shipped()
        if name not in shipped:
            raise TaskError(
                f"no task '{name}'{nearest(name, shipped)} One of your own is written 'path/to/file.py:Name'."
            )
        words = name.split("-")
        module_name, attribute = f"edgekd.tasks.{'_'.join(words)}", "".join(word.title() for word in words)
    module = (
        import_task_file(Path(module_name))
        if module_name.endswith(".py")
        else import_module(module_name, "task module")
    )
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise TaskError(f"{module_name}: defines no '{attribute}'{nearest(attribute, public)}")
    return getattr(module, attribute), Path(cast("str", module.__file__)).resolve()


def _shipped() -> list[str]:
    folder = Path(__file__).resolve().parents[2] / "tasks"
    return [path.stem for path in sorted(folder.glob("*.toml"))]


def _check(name: str, task: Task, splits: Mapping[str, Split]) -> None:
    modalities = [modality.name for modality in task.modalities]
    if len(set(modalities)) < max(len(modalities), 2):
        raise TaskError(f"task {name}: has modalities {modalities}; a modality Gram needs two or more, each named once")
    absent = [split for split in SPLITS if split not in splits]
    if absent:
        raise TaskError(f"task {name}: splits() lacks {', '.join(absent)}; it needs {', '.join(SPLITS)}")
    owner: dict[str, str] = {}
    for split_name in SPLITS:
        split = splits[split_name]
        where = f"task {name}, split '{split_name}'"
        if len(split) == 0:
            raise TaskError(f"{where}: is empty")
        _check_sample(where, task, split[0])
        for sample_id in _ids(where, split):
            if sample_id in owner:
                raise TaskError(
                    f"task {name}: sample '{sample_id}' is in split '{owner[sample_id]}' and again in '{split_name}'; "
                    "splits must be disjoint and ids unique, or every measured number is wrong"
                )
            owner[sample_id] = split_name


def _ids(where: str, split: Split) -> Sequence[str]:
    ids = getattr(split, "ids", None)
    if ids is None:
        return [split[index].id for index in range(len(split))]
    if len(ids) != len(split) or ids[0] != split[0].id:
        raise TaskError(f"{where}: its attribute 'ids' must hold the id of each of its {len(split)} samples, in order")
    return cast("Sequence[str]", ids)


def _check_sample(where: str, task: Task, sample: Sample) -> None:
    check_returned(f"{where}: its __getitem__", sample, Sample, "an edgekd.Sample")
    check_shapes(where, task, {key: tuple(x.shape) for key, x in sample.inputs.items()})
    for key, x in sample.inputs.items():
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            kind = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__} of {getattr(x, 'dtype', 'no type')}"
            raise TaskError(f"{where}: input '{key}' is {kind}, must be a tensor of float32")


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
        raise TaskError(f"{what} returned a {type(value).__name__}, must return {wanted}")


def check_shapes(where: str, task: Task, found: Mapping[str, tuple[int, ...]]) -> None:
    """Check the names, order and shapes of inputs, without the batch.

    Raises:
        TaskError: They are not those of the task's modalities.
    """
    expected = {modality.name: modality.shape for modality in task.modalities}
    if expected != found:
        raise TaskError(f"{where}: a sample has inputs {dict(found)}, but the task's modalities are {expected}")
    if list(expected) != list(found):
        # Networks are called with the inputs in their order, so another order swaps two modalities.
        raise TaskError(
            f"{where}: a sample has its inputs in the order {list(found)}, but the task's modalities are in the order "
            f"{list(expected)}"
        )
