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
from edgekd.training.task.columns import input_column, label_tensor, presence_tensor, texts
from edgekd.training.task.modality import Modality as Modality  # noqa: PLC0414, TC001 - of the protocol
from edgekd.training.task.output import Output as Output  # noqa: PLC0414 - of the protocol
from edgekd.training.task.targets import leaves, map_nest, stack_targets, target_nest, target_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Sized

    from _typeshed import DataclassInstance
    from torch import nn
    from torch.utils.data import Dataset

    from edgekd.training.task.targets import Nest

    Size = TypeVar("Size", bound=DataclassInstance)

#: Names of the splits that every task has.
SPLITS = ("train", "val", "calibration", "test")


@dataclass(frozen=True)
class Sample:
    """One sample of a split.

    Attributes:
        id: Name of the sample, unique among all splits and the same in every run.
        inputs: For each input of the task, in order, a tensor of its type and its shape, or shorter where it has a pad.
        label: Class index, or :data:`UNLABELLED` (-100) where there is none.
        group: Name of what makes samples dependent (a subject, a clip), or "" where samples are independent.
        missing: Names of the modalities that the sample lacks. What stands in for them in ``inputs`` (zeros, say) is
            fed to the networks, but no loss compares its embeddings.
        target: What the sample's answer should be: a tensor, an array or a number, or any nest of dicts, lists and
            tuples of such, of one form and shape in all samples. None: its label.
    """

    id: str
    inputs: Mapping[str, Tensor]
    label: int = UNLABELLED
    group: str = ""
    missing: Sequence[str] = ()
    target: object = None


@dataclass(frozen=True)
class Batch:
    """Several samples stacked.

    Attributes:
        ids: Names of the B samples.
        inputs: For each input of the task, in order, [B, ...].
        labels: Class indices, or UNLABELLED, int64 [B].
        groups: Names of the samples' groups.
        present: For each modality that some sample lacks, 1.0 where a sample has it and 0.0 where not [B].
        targets: The samples' targets, each leaf [B, ...]; the labels where they have none.
    """

    ids: list[str]
    inputs: dict[str, Tensor]
    labels: Tensor
    groups: list[str]
    present: dict[str, Tensor] = field(default_factory=dict)
    targets: Nest[Tensor] = None  # type: ignore[assignment]  # never when it is made

    def __post_init__(self) -> None:
        given: object = self.targets
        if given is None:
            object.__setattr__(self, "targets", self.labels)

    @property
    def has_targets(self) -> bool:
        """Whether samples have targets beside their labels."""
        return self.targets is not self.labels

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        inputs, present = (
            {name: x.to(device, non_blocking=True) for name, x in table.items()}
            for table in (self.inputs, self.present)
        )
        labels = self.labels.to(device, non_blocking=True)
        targets = map_nest(lambda x: x.to(device, non_blocking=True), self.targets) if self.has_targets else labels
        return Batch(self.ids, inputs, labels, self.groups, present, targets)

    def part(self, rows: Tensor) -> Batch:
        """Return a batch of the samples with these places, int64 on the batch's device."""
        inputs, present = ({name: x[rows] for name, x in table.items()} for table in (self.inputs, self.present))
        chosen, labels = rows.tolist(), self.labels[rows]
        targets = target_rows(self.targets, rows) if self.has_targets else labels
        return Batch([self.ids[i] for i in chosen], inputs, labels, [self.groups[i] for i in chosen], present, targets)

    def pin_memory(self) -> Batch:
        """Return the batch in memory from which a GPU copies while the CPU goes on; torch's DataLoader calls it."""
        inputs, present = ({name: x.pin_memory() for name, x in table.items()} for table in (self.inputs, self.present))
        return replace(self, inputs=inputs, labels=self.labels.pin_memory(), present=present)


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
        inputs: For each input of the task, in order, [N, ...]; a list of N tensors or arrays where samples are of
            unlike length and the modality has a ``pad``.
        labels: Class indices, int64 [N]; UNLABELLED (-100) where a sample has none. None: no sample has one.
        groups: Names of the N samples' groups, or None where samples are independent.
        present: For each modality that some samples lack, booleans [N]: whether a sample has it.
        targets: What the samples' answers should be: an array [N, ...], or any nest of such. None: the labels.

    Raises:
        TaskError: The columns differ in length, labels are no class indices, inputs or targets no arrays of numbers, or
            there are neither labels nor targets.
    """

    ids: Sequence[str]
    inputs: Mapping[str, Tensor]
    labels: Tensor = None  # type: ignore[assignment]  # never when it is made
    groups: Sequence[str] | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Nest[Tensor] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", texts("ids", self.ids))
        object.__setattr__(self, "inputs", {name: input_column(name, x) for name, x in self.inputs.items()})
        object.__setattr__(self, "labels", self._labels())
        if self.groups is not None:
            object.__setattr__(self, "groups", texts("groups", self.groups))
        object.__setattr__(self, "present", {name: presence_tensor(name, x) for name, x in self.present.items()})
        if self.targets is not None:
            object.__setattr__(self, "targets", target_nest("a split's targets", self.targets))
        columns: list[tuple[str, Sized]] = [("labels", self.labels), *self.inputs.items(), *self.present.items()]
        columns += [] if self.groups is None else [("groups", self.groups)]
        columns += [] if self.targets is None else _sized_leaves(self.targets)
        for name, column in columns:
            if len(column) != len(self.ids):
                raise TaskError(f"a split has {len(self.ids)} ids, but {len(column)} of '{name}'")

    def _labels(self) -> Tensor:
        given: object = self.labels
        if given is not None:
            return label_tensor(given)
        if self.targets is None:
            raise TaskError("a split has neither labels nor targets; give one of them, or -100 as the label of each")
        return torch.full((len(self.ids),), UNLABELLED)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        inputs = {name: x[index] for name, x in self.inputs.items()}
        missing = tuple(name for name, there in self.present.items() if not there[index])
        group = self.groups[index] if self.groups else ""
        target = None if self.targets is None else target_rows(self.targets, index)
        return Sample(self.ids[index], inputs, int(self.labels[index]), group, missing, target)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return several samples at once; torch's DataLoader calls this method where there is one."""
        labels = self.labels[indices]
        return Batch(
            [self.ids[i] for i in indices],
            {name: x[indices] for name, x in self.inputs.items()},
            labels,
            [self.groups[i] for i in indices] if self.groups else [""] * len(indices),
            {name: there[indices] for name, there in self.present.items()},
            labels if self.targets is None else target_rows(self.targets, indices),
        )


def _sized_leaves(targets: Nest[Tensor]) -> list[tuple[str, Sized]]:
    sized: list[tuple[str, Sized]] = []
    for name, leaf in leaves(targets).items():
        if leaf.dim() == 0:
            raise TaskError(f"a split's {name} is a single number, must be one of each sample [N, ...]")
        sized.append((name, leaf))
    return sized


@runtime_checkable
class Task(Protocol):
    """What a user's task must have.

    It may also have these attributes:

    - ``outputs``: a list of :class:`Output`; by default one, the logits of classes, with the names in ``classes``.
    - ``files``: paths of the data that the task reads. With them, a build that is up to date does not load the task.
    - ``teacher_taps`` and ``student_taps``: for each modality where its embedding is; the recipe overrides them.
    - ``loss(outputs, targets)`` and ``distill(student, teacher)`` of a batch's tensors, scalar tensors; by default
      those of the outputs' kinds.
    - ``metric(outputs, targets) -> float`` of a split's arrays, ``metric_name`` and ``higher_is_better``; by default
      that of the outputs' kinds.
    - ``same(outputs, reference)``: of a split's arrays, which share of each answer changed [N].

    Where there is one output, these functions get it as it is, and where there are several a dict by their names;
    targets are what the samples give.

    - ``collate(samples) -> Batch``, which makes a batch of samples in place of stacking them.
    - ``licence`` and ``citation`` of the data.

    Attributes:
        modalities: The inputs, in the order in which the networks take them.
    """

    modalities: Sequence[Modality]

    def splits(self) -> Mapping[str, Split]:
        """Return the splits train, val, calibration and test, in which no sample is twice."""

    def teacher(self) -> nn.Module:
        """Return the untrained teacher, which is called with the inputs' batches in order and returns outputs.

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
    labels = torch.tensor([s.label for s in samples])
    targets = [target_nest(f"the target of sample '{s.id}'", s.target) for s in samples if s.target is not None]
    return Batch(
        [s.id for s in samples],
        {name: torch.stack([s.inputs[name] for s in samples]) for name in samples[0].inputs},
        labels,
        [s.group for s in samples],
        {
            name: torch.tensor([float(name not in s.missing) for s in samples])
            for name in sorted({name for s in samples for name in s.missing})
        },
        stack_targets(targets) if targets else labels,
    )


def read_batch(split: Split, indices: Sequence[int]) -> Batch:
    """Return some samples of a split as one batch, made as training makes it."""
    read = getattr(split, "__getitems__", None)
    samples: Batch | list[Sample] = [split[index] for index in indices] if read is None else read(list(indices))
    return collate(samples)
