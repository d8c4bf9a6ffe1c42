"""The protocol that a user's task meets, and loading one by name.

A task is a class, or a function that returns an object, in the user's own Python file. It is called with the recipe's
``task.options`` as keyword arguments.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from edgekd.errors import TaskError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from edgekd.recipe import TaskConfig

#: Label of a sample that has none. Distillation uses such samples; the cross entropy skips them.
UNLABELLED = -100

SPLITS = ("train", "val", "calibration", "test")


@dataclass(frozen=True)
class Modality:
    """One named input of a task.

    Attributes:
        name: its name, e.g. "accel".
        shape: of one sample, without the batch, e.g. (3, 100).
        description: what an app must feed, with units; it stands in the bundle's manifest.
    """

    name: str
    shape: tuple[int, ...]
    description: str = ""


@dataclass(frozen=True)
class Sample:
    """One sample of a split.

    Attributes:
        id: a name that is unique among all splits.
        inputs: for each modality a float32 tensor of its shape.
        label: class index, or UNLABELLED.
        group: what makes samples dependent (a subject, a clip), or "" for none.
    """

    id: str
    inputs: Mapping[str, Tensor]
    label: int = UNLABELLED
    group: str = ""


@dataclass(frozen=True)
class Batch:
    """Samples side by side: inputs [B, ...] for each modality, labels [B]."""

    ids: list[str]
    inputs: dict[str, Tensor]
    labels: Tensor
    groups: list[str]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        inputs = {name: x.to(device, non_blocking=True) for name, x in self.inputs.items()}
        return Batch(self.ids, inputs, self.labels.to(device, non_blocking=True), self.groups)


class Split(Protocol):
    """Any torch map-style dataset of :class:`Sample`."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""


@dataclass(frozen=True)
class ArraySplit:
    """A split that lies in memory.

    Attributes:
        ids: N names.
        inputs: for each modality float32 [N, ...].
        labels: int64 [N]; UNLABELLED where there is none.
        groups: N names of groups, or None.
    """

    ids: Sequence[str]
    inputs: Mapping[str, Tensor]
    labels: Tensor
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        inputs = {name: x[index] for name, x in self.inputs.items()}
        return Sample(self.ids[index], inputs, int(self.labels[index]), self.groups[index] if self.groups else "")

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return many samples at once: torch's DataLoader asks for this method first."""
        return Batch(
            [self.ids[i] for i in indices],
            {name: x[indices] for name, x in self.inputs.items()},
            self.labels[indices],
            [self.groups[i] for i in indices] if self.groups else [""] * len(indices),
        )


@runtime_checkable
class Task(Protocol):
    """What a user brings.

    Optional attributes: ``classes`` (names, for the manifest), ``files`` (paths the task reads; when given, a build that
    is up to date need not even load the task), ``teacher_taps`` and ``student_taps`` (default taps, which the recipe
    overrides), ``metric_name``, ``metric(logits, labels) -> float`` and ``higher_is_better`` (default: accuracy),
    ``licence`` and ``citation`` of the data.
    """

    modalities: Sequence[Modality]

    def splits(self) -> Mapping[str, Split]:
        """Return the splits train, val, calibration, test; disjoint, by sample id."""

    def teacher(self) -> nn.Module:
        """Return the untrained teacher. It is called with the modalities' batches, in order, and returns logits."""

    def student(self) -> nn.Module:
        """Return the untrained student, likewise."""


def accuracy(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Return the share of labelled samples whose top-1 class is right; logits [N, C], labels [N]."""
    labelled = labels != UNLABELLED
    return float((logits.argmax(-1) == labels)[labelled].mean()) if labelled.any() else float("nan")


def collate(samples: Batch | list[Sample]) -> Batch:
    """Stack samples to a batch; a batch, from a split that makes its own, passes through."""
    if isinstance(samples, Batch):
        return samples
    return Batch(
        [s.id for s in samples],
        {name: torch.stack([s.inputs[name] for s in samples]) for name in samples[0].inputs},
        torch.tensor([s.label for s in samples]),
        [s.group for s in samples],
    )


@dataclass(frozen=True)
class LoadedTask:
    """A task with its splits, checked.

    Attributes:
        task: the user's object.
        splits: by name.
        sources: Python files of the task, whose change makes it another task.
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
        """Data files that the task says it reads, or None when it does not say."""
        files = getattr(self.task, "files", None)
        return None if files is None else tuple(Path(file) for file in files)

    @property
    def metric_name(self) -> str:
        """Name of the metric."""
        return str(getattr(self.task, "metric_name", "metric" if hasattr(self.task, "metric") else "accuracy"))

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is better."""
        return bool(getattr(self.task, "higher_is_better", True))

    def metric(self, logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
        """Return the task's metric."""
        return float(getattr(self.task, "metric", accuracy)(logits, labels))

    def fingerprint(self) -> str:
        """Return a digest of the task's data, computed once.

        Covers the ids and labels of every sample and the inputs of at most 256 samples a split, evenly spread: enough
        to notice other data, cheap on large sets.
        """
        if not self._fingerprint:
            hasher = hashlib.sha256()
            for name, split in self.splits.items():
                hasher.update(f"{name} {len(split)}".encode())
                _digest_split(split, hasher)
            self._fingerprint.append(hasher.hexdigest()[:16])
        return self._fingerprint[0]


def _digest_split(split: Split, hasher: Any) -> None:
    if isinstance(split, ArraySplit):
        hasher.update("\n".join(split.ids).encode())
        hasher.update(split.labels.numpy().tobytes())
    for index in np.unique(np.linspace(0, len(split) - 1, min(256, len(split))).astype(int)):
        sample = split[int(index)]
        hasher.update(f"{sample.id} {sample.label} {sample.group}".encode())
        for name, x in sample.inputs.items():
            hasher.update(name.encode())
            hasher.update(x.contiguous().numpy().tobytes())


def load_task(config: TaskConfig) -> LoadedTask:
    """Import a task, call it with its options, and check it.

    Raises:
        TaskError: it cannot be found or called, or does not keep the protocol.
    """
    factory, module_file = _find(config.name)
    try:
        task = factory(**config.options)
    except TypeError as error:
        raise TaskError(f"task {config.name}: cannot be made with options {config.options}: {error}") from error
    if not isinstance(task, Task):
        missing = [name for name in ("modalities", "splits", "teacher", "student") if not hasattr(task, name)]
        raise TaskError(f"task {config.name}: lacks {', '.join(missing)}")
    splits = task.splits()
    _check(config.name, task, splits)
    return LoadedTask(task, splits, _sources(module_file))


def _find(name: str) -> tuple[Any, Path]:
    module_name, colon, attribute = name.partition(":")
    if not colon:
        shipped = _shipped()
        if name not in shipped:
            raise TaskError(
                f"no task '{name}'{nearest(name, shipped)} One of your own is written 'path/to/file.py:Name'."
            )
        module_name, attribute = f"edgekd.tasks.{name}", name.replace("-", " ").title().replace(" ", "")
    module = _import_file(Path(module_name)) if module_name.endswith(".py") else _import_module(module_name)
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise TaskError(f"{module_name}: defines no '{attribute}'{nearest(attribute, public)}")
    return getattr(module, attribute), Path(cast("str", module.__file__)).resolve()


def _shipped() -> list[str]:
    folder = Path(__file__).resolve().parent.parent / "tasks"
    return [path.stem for path in sorted(folder.glob("*.toml"))]


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise TaskError(f"task module '{name}' is not installed or not on the Python path") from error


def _import_file(path: Path) -> Any:
    """Import a user's file, with its folder importable, so that it may import its neighbours."""
    if not path.is_file():
        raise TaskError(f"{path}: no such task file")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise TaskError(f"{path}:{error.lineno}: {error.msg}") from error
    return module


def _sources(module_file: Path) -> tuple[Path, ...]:
    """The task's own file and all modules loaded from its folder: a change of any makes it another task."""
    folder = module_file.parent
    files = {module_file}
    for module in list(sys.modules.values()):
        origin = getattr(module, "__file__", None)
        if origin and Path(origin).suffix == ".py" and Path(origin).resolve().is_relative_to(folder):
            files.add(Path(origin).resolve())
    return tuple(sorted(files))


def _check(name: str, task: Task, splits: Mapping[str, Split]) -> None:
    absent = [split for split in SPLITS if split not in splits]
    if absent:
        raise TaskError(f"task {name}: splits() lacks {', '.join(absent)}; it needs {', '.join(SPLITS)}")
    owner: dict[str, str] = {}
    for split_name in SPLITS:
        split = splits[split_name]
        if len(split) == 0:
            raise TaskError(f"task {name}: split '{split_name}' is empty")
        for sample_id in _ids(split):
            if sample_id in owner:
                raise TaskError(
                    f"task {name}: sample '{sample_id}' is in split '{owner[sample_id]}' and again in '{split_name}'; "
                    "splits must be disjoint and ids unique, or every measured number is wrong"
                )
            owner[sample_id] = split_name
        _check_sample(f"task {name}, split '{split_name}'", task, split[0])


def _ids(split: Split) -> Sequence[str]:
    ids = getattr(split, "ids", None)
    return ids if ids is not None else [split[index].id for index in range(len(split))]


def _check_sample(where: str, task: Task, sample: Sample) -> None:
    expected = {modality.name: tuple(modality.shape) for modality in task.modalities}
    found = {key: tuple(x.shape) for key, x in sample.inputs.items()}
    if expected != found:
        raise TaskError(f"{where}: a sample has inputs {found}, but the task's modalities are {expected}")
    for key, x in sample.inputs.items():
        if x.dtype != torch.float32:
            raise TaskError(f"{where}: input '{key}' is {x.dtype}, must be float32")
