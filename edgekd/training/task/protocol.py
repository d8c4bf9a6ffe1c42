"""What a user's task gives edgekd: modalities, samples in splits, and two networks.

A task is a class, or a function that returns an object, in the user's own Python file. It is called with the recipe's
``task.options`` as keyword arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from edgekd.errors import TaskError, nearest
from edgekd.stages.labels import UNLABELLED
from edgekd.training.task.columns import check_text, float_tensor, label_tensor, presence_tensor, shape_of, texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Sized

    from _typeshed import DataclassInstance
    from torch import nn
    from torch.utils.data import Dataset

    Size = TypeVar("Size", bound=DataclassInstance)

#: Names of the splits that every task has.
SPLITS = ("train", "val", "calibration", "test")


@dataclass(frozen=True)
class Modality:
    """One named input of a task.

    Attributes:
        name: Name of the modality, e.g. "accel".
        shape: Shape of one sample, without the batch, e.g. (3, 100).
        description: What an app must feed, with units, as it stands in the bundle's manifest.

    Raises:
        TaskError: The name or the shape is none.
    """

    name: str
    shape: tuple[int, ...]
    description: str = ""

    def __post_init__(self) -> None:
        check_text("a modality's name", self.name)
        object.__setattr__(self, "shape", shape_of(f"modality '{self.name}'", self.shape))


@dataclass(frozen=True)
class Sample:
    """One sample of a split.

    Attributes:
        id: Name of the sample, unique among all splits and the same in every run.
        inputs: For each modality, in order, a float32 tensor of its shape.
        label: Class index, or :data:`UNLABELLED` (-100) where there is none.
        group: Name of what makes samples dependent (a subject, a clip), or "" where samples are independent.
        missing: Names of the modalities that the sample lacks. What stands in for them in ``inputs`` (zeros, say) is
            fed to the networks, but no loss compares its embeddings.
    """

    id: str
    inputs: Mapping[str, Tensor]
    label: int = UNLABELLED
    group: str = ""
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class Batch:
    """Several samples stacked.

    Attributes:
        ids: Names of the B samples.
        inputs: For each modality, in order, float32 [B, ...].
        labels: Class indices, or UNLABELLED, int64 [B].
        groups: Names of the samples' groups.
        present: For each modality that some sample lacks, 1.0 where a sample has it and 0.0 where not [B].
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
    """A split: any torch map-style dataset of :class:`Sample`.

    It may have the attribute ``ids``, the id of each sample in order. Without it, every sample is read for its id when
    the task is loaded.
    """

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""


@dataclass(frozen=True)
class ArraySplit:
    """A split in memory. Numpy arrays, and lists of ids, labels and groups, are converted.

    Attributes:
        ids: Names of the N samples, unique among all splits.
        inputs: For each modality, in order, float32 [N, ...].
        labels: Class indices, int64 [N]; UNLABELLED (-100) where a sample has none.
        groups: Names of the N samples' groups, or None where samples are independent.
        present: For each modality that some samples lack, booleans [N]: whether a sample has it.

    Raises:
        TaskError: The columns differ in length, labels are no class indices, or inputs no arrays of float32.
    """

    ids: Sequence[str]
    inputs: Mapping[str, Tensor]
    labels: Tensor
    groups: Sequence[str] | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", texts("ids", self.ids))
        object.__setattr__(self, "inputs", {name: float_tensor(name, x) for name, x in self.inputs.items()})
        object.__setattr__(self, "labels", label_tensor(self.labels))
        if self.groups is not None:
            object.__setattr__(self, "groups", texts("groups", self.groups))
        object.__setattr__(self, "present", {name: presence_tensor(name, x) for name, x in self.present.items()})
        columns: list[tuple[str, Sized]] = [("labels", self.labels), *self.inputs.items(), *self.present.items()]
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
        """Return several samples at once; torch's DataLoader calls this method where there is one."""
        return Batch(
            [self.ids[i] for i in indices],
            {name: x[indices] for name, x in self.inputs.items()},
            self.labels[indices],
            [self.groups[i] for i in indices] if self.groups else [""] * len(indices),
            {name: there[indices] for name, there in self.present.items()},
        )


@runtime_checkable
class Task(Protocol):
    """What a user's task must have.

    It may also have these attributes:

    - ``classes``: names of the logits, for the manifest; by default their numbers.
    - ``files``: paths of the data that the task reads. With them, a build that is up to date does not load the task.
    - ``teacher_taps`` and ``student_taps``: for each modality where its embedding is; the recipe overrides them.
    - ``metric(logits, labels) -> float`` of logits [N, C] and labels [N], ``metric_name`` and ``higher_is_better``; by
      default accuracy.
    - ``licence`` and ``citation`` of the data.

    Attributes:
        modalities: The inputs, two or more, in the order in which the networks take them.
    """

    modalities: Sequence[Modality]

    def splits(self) -> Mapping[str, Split]:
        """Return the splits train, val, calibration and test, in which no sample is twice."""

    def teacher(self) -> nn.Module:
        """Return the untrained teacher, which is called with the modalities' batches in order and returns logits.

        A task may do without where the recipe has the student's weights.
        """

    def student(self) -> nn.Module:
        """Return the untrained student, which is called like the teacher."""


def resized(size: Size, options: Mapping[str, object] | None) -> Size:
    """Return a dataclass, such as the widths of a network, with the fields replaced that a task's options name.

    Raises:
        TaskError: It has no such field.
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
    """Stack samples to a batch; a batch, from a split that makes its own, is returned as it is."""
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
