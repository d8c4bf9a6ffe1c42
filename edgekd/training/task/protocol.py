"""The protocol that a user's task meets, and loading one by name.

A task is a class, or a function that returns an object, in the user's own Python file. It is called with the recipe's
``task.options`` as keyword arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from edgekd.errors import TaskError, nearest
from edgekd.stages.labels import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _typeshed import DataclassInstance
    from torch import nn
    from torch.utils.data import Dataset

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


def as_dataset(split: Split) -> Dataset[Any]:
    """Return a split under the type that torch's data loaders ask for; any map-style dataset will do for them."""
    return cast("Dataset[Any]", split)


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
