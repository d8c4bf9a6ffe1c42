"""The protocol that a user's task meets, and loading one by name.

A task is a class, or a function that returns an object, in the user's own Python file. It is called with the recipe's
``task.options`` as keyword arguments.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from edgekd.errors import TaskError, nearest
from edgekd.stages.labels import UNLABELLED, accuracy
from edgekd.stages.user_code import installed, source_files, user_code

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from _typeshed import DataclassInstance
    from torch import nn

    from edgekd.config.recipe import TaskConfig

    Size = TypeVar("Size", bound=DataclassInstance)

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

    def __post_init__(self) -> None:
        # numpy's integers would not go into a manifest.
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))


@dataclass(frozen=True)
class Sample:
    """One sample of a split.

    Attributes:
        id: a name that is unique among all splits.
        inputs: for each modality a float32 tensor of its shape.
        label: class index, or UNLABELLED.
        group: what makes samples dependent (a subject, a clip), or "" for none.
        missing: modalities that the sample lacks; what stands in for them in ``inputs`` (zeros, say) is fed to the
            networks, but no loss compares its embeddings.
    """

    id: str
    inputs: Mapping[str, Tensor]
    label: int = UNLABELLED
    group: str = ""
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class Batch:
    """Samples side by side: inputs [B, ...] for each modality, labels [B].

    Attributes:
        ids: their names.
        inputs: for each modality float32.
        labels: class indices, or UNLABELLED.
        groups: their groups' names.
        present: for each modality that a sample lacks, 1.0 where it is there and 0.0 where not [B]; no others.
    """

    ids: list[str]
    inputs: dict[str, Tensor]
    labels: Tensor
    groups: list[str]
    present: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        inputs, present = (
            {name: x.to(device, non_blocking=True) for name, x in table.items()}
            for table in (self.inputs, self.present)
        )
        return Batch(self.ids, inputs, self.labels.to(device, non_blocking=True), self.groups, present)


class Split(Protocol):
    """Any torch map-style dataset of :class:`Sample`.

    Optional attribute: ``ids``, each sample's id in order. Without it, loading the task reads every sample for its id.
    """

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""


@dataclass(frozen=True)
class ArraySplit:
    """A split that lies in memory. Numpy arrays, and lists of ids, labels and groups, are taken as well and converted.

    Attributes:
        ids: N names.
        inputs: for each modality float32 [N, ...].
        labels: int64 [N]; UNLABELLED where there is none.
        groups: N names of groups, or None.
        present: for each modality that some samples lack, booleans [N]: whether a sample has it.
    """

    ids: Sequence[str]
    inputs: Mapping[str, Tensor]
    labels: Tensor
    groups: Sequence[str] | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", [str(name) for name in self.ids])
        object.__setattr__(self, "inputs", {name: _float_tensor(x) for name, x in self.inputs.items()})
        object.__setattr__(self, "labels", _label_tensor(self.labels))
        if self.groups is not None:
            object.__setattr__(self, "groups", [str(name) for name in self.groups])
        object.__setattr__(
            self, "present", {name: torch.as_tensor(x).bool().float() for name, x in self.present.items()}
        )
        columns: list[tuple[str, Any]] = [("labels", self.labels), *self.inputs.items(), *self.present.items()]
        columns += [] if self.groups is None else [("groups", self.groups)]
        for name, column in columns:
            if len(column) != len(self.ids):
                raise TaskError(f"a split has {len(self.ids)} ids, but {len(column)} of '{name}'")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        inputs = {name: x[index] for name, x in self.inputs.items()}
        missing = tuple(name for name, there in self.present.items() if not there[index])
        group = self.groups[index] if self.groups else ""
        return Sample(self.ids[index], inputs, int(self.labels[index]), group, missing)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return many samples at once: torch's DataLoader asks for this method first."""
        return Batch(
            [self.ids[i] for i in indices],
            {name: x[indices] for name, x in self.inputs.items()},
            self.labels[indices],
            [self.groups[i] for i in indices] if self.groups else [""] * len(indices),
            {name: there[indices] for name, there in self.present.items()},
        )


def _float_tensor(x: Any) -> Any:
    """Return numpy's float32 as a tensor; anything else as it is, for the check of a sample to refuse."""
    if isinstance(x, np.ndarray) and x.dtype == np.float32:
        return torch.from_numpy(np.require(x, requirements=["C", "W"]))
    return x


def _label_tensor(labels: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(f"a split's labels must be class indices: {error}") from error
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.is_complex():
        raise TaskError(
            f"a split's labels are {tensor.dtype} of shape {tuple(tensor.shape)}, must be one int64 for each sample"
        )
    return tensor.long()


@runtime_checkable
class Task(Protocol):
    """What a user brings.

    Optional attributes: ``classes`` (names of the logits, for the manifest; default: their numbers), ``files`` (paths
    the task reads; when given, a build that is up to date need not even load the task), ``teacher_taps`` and
    ``student_taps`` (default taps, which the recipe overrides), ``metric_name``, ``metric(logits, labels) -> float``
    and ``higher_is_better`` (default: accuracy), ``licence`` and ``citation`` of the data.
    """

    modalities: Sequence[Modality]

    def splits(self) -> Mapping[str, Split]:
        """Return the splits train, val, calibration, test; disjoint, by sample id."""

    def teacher(self) -> nn.Module:
        """Return the untrained teacher. It is called with the modalities' batches, in order, and returns logits."""

    def student(self) -> nn.Module:
        """Return the untrained student, likewise."""


def resized(size: Size, options: Mapping[str, Any] | None) -> Size:
    """Return a dataclass, e.g. of a network's widths, with the fields replaced that a task's options name.

    Raises:
        TaskError: it has no such field.
    """
    known = [field.name for field in fields(size)]
    for name in options or {}:
        if name not in known:
            raise TaskError(f"a network's size has no '{name}'{nearest(name, known)}")
    return replace(size, **(options or {}))


def collate(samples: Batch | list[Sample]) -> Batch:
    """Stack samples to a batch; a batch, from a split that makes its own, passes through."""
    if isinstance(samples, Batch):
        return samples
    return Batch(
        [s.id for s in samples],
        {name: torch.stack([s.inputs[name] for s in samples]) for name in samples[0].inputs},
        torch.tensor([s.label for s in samples]),
        [s.group for s in samples],
        {
            name: torch.tensor([float(name not in s.missing) for s in samples])
            for name in sorted({name for s in samples for name in s.missing})
        },
    )


@dataclass(frozen=True)
class LoadedTask:
    """A task with its splits, checked.

    Attributes:
        task: the user's object.
        splits: by name.
        sources: Python files of the task, its own first, whose change makes it another task.
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

    def class_names(self, logits: int) -> list[str]:
        """Return the classes' names for a network of that many logits.

        Raises:
            TaskError: the task names more or fewer.
        """
        classes = getattr(self.task, "classes", None)
        names = [str(name) for name in (range(logits) if classes is None else classes)]
        if len(names) != logits:
            raise TaskError(f"the task names {len(names)} classes, but its networks give {logits} logits")
        return names

    def running(self, what: str) -> AbstractContextManager[None]:
        """Return a context in which the task's own code runs: what it raises becomes one line, with its place."""
        return user_code(what, self.sources[0].parent if self.sources else None)

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

        Covers all of a split that lies in memory; of another the ids and labels of every sample and the inputs of at
        most 256 samples, evenly spread: enough to notice other data, cheap on large sets.
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


def _digest_tensors(tensors: Mapping[str, Tensor], hasher: Any) -> None:
    for name, x in tensors.items():
        hasher.update(f"{name} {tuple(x.shape)}".encode())
        hasher.update(x.contiguous().numpy().tobytes())


def load_task(config: TaskConfig) -> LoadedTask:
    """Import a task, call it with its options, and check it.

    Raises:
        TaskError: it cannot be found or called, or does not keep the protocol.
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
        _check(config.name, task, splits)
    return LoadedTask(task, splits, source_files(module_file))


def _find(name: str) -> tuple[Any, Path]:
    module_name, colon, attribute = name.partition(":")
    if not colon:
        shipped = _shipped()
        if name not in shipped:
            raise TaskError(
                f"no task '{name}'{nearest(name, shipped)} One of your own is written 'path/to/file.py:Name'."
            )
        words = name.split("-")
        module_name, attribute = f"edgekd.tasks.{'_'.join(words)}", "".join(word.title() for word in words)
    module = _import_file(Path(module_name)) if module_name.endswith(".py") else _import_module(module_name)
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise TaskError(f"{module_name}: defines no '{attribute}'{nearest(attribute, public)}")
    return getattr(module, attribute), Path(cast("str", module.__file__)).resolve()


def _shipped() -> list[str]:
    folder = Path(__file__).resolve().parents[2] / "tasks"
    return [path.stem for path in sorted(folder.glob("*.toml"))]


def _import_module(name: str) -> Any:
    try:
        with user_code(f"task module '{name}'", None):
            return importlib.import_module(name)
    except TaskError as error:
        absent = getattr(error.__cause__, "name", None)
        if not isinstance(error.__cause__, ModuleNotFoundError) or not absent or not name.startswith(absent):
            raise
        raise TaskError(f"task module '{name}' is not installed or not on the Python path") from error


def _import_file(path: Path) -> Any:
    """Import a user's file, with its folder importable, so that it may import its neighbours."""
    if not path.is_file():
        raise TaskError(f"{path}: no such task file")
    path = path.resolve()
    _forget_neighbours()
    # By its path, so that a file called random.py does not become everyone's module 'random'.
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _importable(path.parent), user_code(f"task file {path.name}", path.parent):
        spec.loader.exec_module(module)
    return module


#: Folders of the task files loaded so far, and the names of the modules that were there before the first.
_folders: set[Path] = set()
_others: set[str] = set()


def _forget_neighbours() -> None:
    """Drop what earlier task files imported from their folders: this one's neighbours may have the same names."""
    if not _folders:
        _others.update(sys.modules)
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if origin and name not in _others and name.partition(".")[0] != "edgekd" and _is_neighbour(Path(origin)):
            del sys.modules[name]
    importlib.invalidate_caches()


def _is_neighbour(file: Path) -> bool:
    return any(file.is_relative_to(folder) and not installed(file.relative_to(folder)) for folder in _folders)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path, as for a script, and leave it last: later imports are the others'.

    Folders of earlier tasks are taken off, so that a later import of a neighbour does not find theirs.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry) not in _folders]
    _folders.add(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


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
    if not isinstance(sample, Sample):
        raise TaskError(
            f"{where}: a sample is a {type(sample).__name__}, must be an edgekd.training.task.protocol.Sample"
        )
    check_shapes(where, task, {key: tuple(x.shape) for key, x in sample.inputs.items()})
    for key, x in sample.inputs.items():
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            kind = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TaskError(f"{where}: input '{key}' is {kind}, must be a tensor of float32")


def check_shapes(where: str, task: Task, found: Mapping[str, tuple[int, ...]]) -> None:
    """Check the inputs' names, order and shapes without the batch.

    Raises:
        TaskError: they are not those of the task's modalities.
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
