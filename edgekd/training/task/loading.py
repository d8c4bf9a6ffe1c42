"""Load a task by the name that a recipe gives it, and check that it keeps the protocol."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import TaskError, nearest
from edgekd.gram.nest import map_nest
from edgekd.stages.metrics import default_metric
from edgekd.stages.user_code import describe, source_files, user_code, user_errors
from edgekd.training.task.checked_split import checked_split
from edgekd.training.task.checks import (
    check_returned,
    check_splits,
    check_task,
    data_files,
    task_outputs,
)
from edgekd.training.task.columns import check_text
from edgekd.training.task.imports import import_module, import_task_file
from edgekd.training.task.protocol import ArraySplit
from edgekd.training.task.targets import leaves, target_nest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from hashlib import _Hash as Hash

    from torch import Tensor

    from edgekd.config.recipe import TaskConfig
    from edgekd.gram.answers import Sameness
    from edgekd.gram.metric import Metric
    from edgekd.gram.nest import Nest
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputKind
    from edgekd.gram.probe import Answer
    from edgekd.stages.metrics import DefaultMetric
    from edgekd.training.task.protocol import Split, Task


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
        """Names of the modalities, in order; masks and lengths of modalities are none."""
        return [modality.name for modality in self.task.modalities if not modality.of]

    @property
    def inputs(self) -> list[str]:
        """Names of all inputs of the networks, in their order."""
        return [modality.name for modality in self.task.modalities]

    @property
    def has_teacher(self) -> bool:
        """Whether the task has a teacher; without one a trained student takes its place."""
        return hasattr(self.task, "teacher")

    @property
    def files(self) -> tuple[Path, ...] | None:
        """Data files that the task names, or None where it names none."""
        return data_files("the task", self.task)

    def class_names(self, output: str, count: int) -> list[str]:
        """Return the names of an output's classes or labels, for networks that give so many of them.

        Raises:
            TaskError: The task names more or fewer.
        """
        declared = {one.name: one for one in task_outputs("the task", self.task)}[output]
        names = [str(name) for name in declared.classes] or [str(number) for number in range(count)]
        if len(names) != count:
            raise TaskError(f"the task names {len(names)} classes, but its networks give {count} in '{output}'")
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
        default = self._default_metric
        own = "metric" if hasattr(self.task, "metric") or default is None else default.name
        return str(getattr(self.task, "metric_name", own))

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is better."""
        return bool(getattr(self.task, "higher_is_better", True))

    @property
    def outputs(self) -> dict[str, OutputKind]:
        """What each of the networks' outputs is, by name, in order."""
        return {output.name: output.output_kind for output in task_outputs("the task", self.task)}

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each output among the losses and metrics of several."""
        return {output.name: output.weight for output in task_outputs("the task", self.task)}

    @property
    def _default_metric(self) -> DefaultMetric | None:
        return default_metric(self.outputs, self.weights)

    @property
    def scoring(self) -> Metric:
        """The metric as ledgers take it: a default one knows how to be computed of many subsets at once."""
        default = self._default_metric
        return self.metric if default is None or hasattr(self.task, "metric") else default.compute

    def metric(self, answer: Answer, targets: Nest) -> float:
        """Return the task's metric of what a network answered for N samples, and their targets, each leaf [N, ...].

        Raises:
            TaskError: The task's code fails, or returns no number.
        """
        what = f"the task's {self.metric_name}"
        default = self._default_metric
        own: Callable[..., float] | None = getattr(self.task, "metric", default.compute if default else None)
        assert own is not None  # a task whose outputs have no default must have one
        with self.running(what):  # which is given copies: they are its own to change
            value = own(map_nest(answer, np.copy), map_nest(targets, np.copy))
        check_returned(what, value, object, "a number")
        with self.running(what):
            return float(value)

    @property
    def own_same(self) -> Sameness | None:
        """The task's own word on which answers are the same; None where it has none."""
        return self.same if hasattr(self.task, "same") else None

    def same(self, outputs: Answer, reference: Answer) -> Array:
        """Return the task's own word on which share of each sample's answer changed [N].

        Raises:
            TaskError: The task's code fails.
        """
        own: Callable[..., Array] = getattr(self.task, "same")  # noqa: B009 - no part of the protocol
        with self.running("the task's same"):
            return np.asarray(own(map_nest(outputs, np.copy), map_nest(reference, np.copy)))

    def fingerprint(self) -> str:
        """Return a digest of the task's data, computed once.

        It covers all of a split in memory. Of another split it covers the ids, labels and targets of every sample and
        the inputs of at most 256 samples, evenly spread: enough to notice other data, and cheap on large sets.
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
        _digest_target(split.targets, hasher)
        return
    covered = set(np.linspace(0, len(split) - 1, min(256, len(split))).astype(int).tolist())
    for index in range(len(split)):
        sample = split[index]
        hasher.update(repr((sample.id, sample.label, sample.group, *sorted(sample.missing))).encode())
        _digest_target(sample.target, hasher)
        if index in covered:
            _digest_tensors(sample.inputs, hasher)


def _digest_target(target: object, hasher: Hash) -> None:
    if target is not None:
        _digest_tensors(leaves(target_nest("a target", target)), hasher)


def _digest_tensors(tensors: Mapping[str, Tensor], hasher: Hash) -> None:
    for name, x in tensors.items():
        hasher.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
        hasher.update(x.contiguous().numpy().tobytes())


def load_task(config: TaskConfig) -> LoadedTask:
    """Import a task, call it with its options, and check it.

    Raises:
        TaskError: It cannot be found or called, or does not keep the protocol.
    """
    factory, module_file = _find(config.name)
    what = f"task {config.name}"
    _check_options(what, factory, config.options)
    with user_code(what, module_file.parent):
        task = check_task(what, factory(**config.options))
    with user_code(what, module_file.parent):
        splits = {
            name: checked_split(f"{what}, split '{name}'", task, split)
            for name, split in check_splits(what, task.splits()).items()
        }
        _check_apart(what, splits)
    return LoadedTask(task, splits, source_files(module_file))


def _check_options(what: str, factory: Callable[..., object], options: Mapping[str, object]) -> None:
    if not callable(factory):
        raise TaskError(f"{what}: is {describe(factory)}, must be a class, or a function that returns an object")
    signature = inspect.signature(factory)
    try:
        signature.bind(**options)
    except TypeError as error:
        unknown = [name for name in options if name not in signature.parameters]
        hint = nearest(unknown[0], signature.parameters) if unknown else ""
        raise TaskError(f"{what}: cannot be made with options {options}: {error}{hint}") from error


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
        # Of what a file has, those names are meant that it defines, not those that it imports.
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise TaskError(f"{module_name}: defines no '{attribute}'{nearest(attribute, own)}")
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        raise TaskError(
            f"task module '{module_name}': its code is in no file of its own, by which a build could tell whether it "
            "has changed; name the file or the module that defines the task"
        )
    return getattr(module, attribute), Path(file).resolve()


def _shipped() -> list[str]:
    folder = Path(__file__).resolve().parents[2] / "tasks"
    return [path.stem for path in sorted(folder.glob("*.toml"))]


def _check_apart(what: str, splits: Mapping[str, Split]) -> None:
    """Check that no sample is twice in the splits."""
    owner: dict[str, str] = {}
    for split_name, split in splits.items():
        for sample_id in _ids(f"{what}, split '{split_name}'", split):
            if sample_id in owner:
                raise TaskError(
                    f"{what}: sample '{sample_id}' is in split '{owner[sample_id]}' and again in '{split_name}'; "
                    "splits must be disjoint and ids unique, or every measured number is wrong"
                )
            owner[sample_id] = split_name


def _ids(where: str, split: Split) -> Iterator[str]:
    ids = getattr(split, "ids", None)
    if ids is None:
        yield from (split[index].id for index in range(len(split)))
        return
    listed = list(ids) if isinstance(ids, Sized) and isinstance(ids, Iterable) else []
    if len(listed) != len(split) or listed[0] != split[0].id:
        raise TaskError(f"{where}: its attribute 'ids' must hold the id of each of its {len(split)} samples, in order")
    for index, sample_id in enumerate(listed):
        check_text(f"{where}: the id of sample {index}", sample_id)
        yield sample_id
