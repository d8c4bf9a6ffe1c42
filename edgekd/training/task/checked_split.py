"""Splits of a user's own, whose every sample is looked at when it is read: a dataset may go wrong at any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgekd.errors import TaskError
from edgekd.plugins import converted
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.user_code import describe, shown
from edgekd.training.task.checks import check_returned
from edgekd.training.task.columns import check_text
from edgekd.training.task.inputs import fitted_inputs
from edgekd.training.task.protocol import ArraySplit, Batch, Sample
from edgekd.training.task.targets import check_same_forms, target_forms, target_nest, target_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.training.task.protocol import Split, Task
    from edgekd.training.task.targets import Nest

#: Above this no label is a class; networks of that many logits do not fit into memory.
_MOST_CLASSES = 1 << 24


def checked_split(where: str, task: Task, split: Split) -> Split:
    """Return a split that is checked: at once where it is in memory, else each sample when it is read.

    Raises:
        TaskError: It is empty, or its first sample, or any in memory, is not as the task says.
    """
    with converted(f"{where}: its __len__", TaskError):
        count = len(split)
    if count == 0:
        raise TaskError(f"{where}: is empty")
    checked = CheckedSplit(where, task, split)
    checked[0]
    if not isinstance(split, ArraySplit) or hasattr(task, "collate") or _reads_otherwise(type(split)):
        return checked
    _check_arrays(where, split)
    fitted = copy(split)
    object.__setattr__(fitted, "inputs", _fitted_columns(where, task, split))
    return fitted


def _fitted_columns(where: str, task: Task, split: ArraySplit) -> dict[str, Tensor]:
    """Return the inputs of all samples in memory as the task says."""
    if all(isinstance(x, Tensor) for x in split.inputs.values()):
        return fitted_inputs(where, task, split.inputs, "a sample", batch=1)
    names = (f"sample '{name}'" for name in split.ids)
    rows = [fitted_inputs(where, task, split[index].inputs, name) for index, name in enumerate(names)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _reads_otherwise(kind: type[ArraySplit]) -> bool:
    return any(getattr(kind, name) is not getattr(ArraySplit, name) for name in ("__getitem__", "__getitems__"))


class CheckedSplit:
    """A user's split; what it raises, and what is wrong with a sample, is one line that names the sample.

    Args:
        where: The split, at the beginning of errors.
        task: The task, whose modalities the samples have.
        split: The user's split.
    """

    def __init__(self, where: str, task: Task, split: Split) -> None:
        self._where, self._task, self._split = where, task, split
        self._forms: dict[str, tuple[int, ...]] | None = None
        if hasattr(split, "ids"):
            self.ids: object = split.ids
        self._collate: Callable[[list[Sample]], object] | None = getattr(task, "collate", None)
        # The batches of a split in memory are stacked, which a task's own function is to do otherwise.
        stacks = isinstance(split, ArraySplit) and not _reads_otherwise(type(split)) and self._collate is not None
        self._reader: Callable[[list[int]], object] | None = None if stacks else getattr(split, "__getitems__", None)
        if self._reader is not None or self._collate is not None:
            self.__getitems__ = self._read_several  # torch's DataLoader calls it where there is one

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample.

        Raises:
            TaskError: The user's code raises something, or gives what is no sample of the task.
        """
        with converted(f"{self._where}: sample {index}", TaskError):
            sample = self._split[index]
        return self._checked(sample, index)

    def _read_several(self, indices: list[int]) -> Batch | list[Sample]:
        if self._reader is None:
            return self._collated([self[index] for index in indices])
        with converted(f"{self._where}: samples {indices[0]} and others", TaskError):
            samples: object = self._reader(indices)
        if isinstance(samples, Batch):
            return self._checked_batch(samples)
        if not isinstance(samples, Sequence) or len(samples) != len(indices):
            raise TaskError(f"{self._where}: its __getitems__ must return {len(indices)} samples for as many indices")
        checked = [self._checked(sample, index) for sample, index in zip(samples, indices, strict=True)]
        return checked if self._collate is None else self._collated(checked)

    def _collated(self, samples: list[Sample]) -> Batch:
        """Return the batch that the task's own function makes of samples."""
        assert self._collate is not None
        with converted(f"{self._where}: the task's collate", TaskError):
            batch: object = self._collate(samples)
        if not isinstance(batch, Batch):
            check_returned(f"{self._where}: the task's collate", batch, Batch, "an edgekd.Batch")
            raise AssertionError
        if list(batch.ids) != [sample.id for sample in samples]:
            raise TaskError(
                f"{self._where}: the task's collate must give the ids of its samples in their order, but gives "
                f"{shown(batch.ids)}"
            )
        return self._checked_batch(batch)

    def _checked_batch(self, batch: Batch) -> Batch:
        name = f"sample '{batch.ids[0]}'"
        inputs = fitted_inputs(self._where, self._task, batch.inputs, name, batch=1)
        if not batch.has_targets:
            return replace(batch, inputs=inputs, targets=batch.labels)
        targets = target_nest(f"{self._where}: the target of {name}", batch.targets)
        for key, shape in target_forms(targets).items():
            if shape[:1] != (len(batch.ids),):
                raise TaskError(
                    f"{self._where}: {key} of a batch of {len(batch.ids)} has the shape {shape}, must begin with the "
                    "batch"
                )
        self._check_form(name, target_rows(targets, 0))
        return replace(batch, inputs=inputs, targets=targets)

    def _check_form(self, name: str, target: Nest[Tensor]) -> None:
        forms = target_forms(target)
        self._forms = self._forms or forms
        check_same_forms(f"{self._where}: {name}", forms, self._forms)

    def _checked(self, sample: object, index: int) -> Sample:
        if not isinstance(sample, Sample):
            check_returned(f"{self._where}: its __getitem__", sample, Sample, "an edgekd.Sample")
            raise AssertionError
        check_text(f"{self._where}: the id of sample {index}", sample.id)
        name = f"sample '{sample.id}'"
        if sample.group != "":
            check_text(f"{self._where}: the group of {name}", sample.group)
        missing = sample.missing
        if not isinstance(missing, tuple | list | set | frozenset) or not all(isinstance(key, str) for key in missing):
            raise TaskError(f"{self._where}: {name} lacks {shown(missing)}, must be a tuple of modalities' names")
        if not isinstance(sample.inputs, Mapping):
            raise TaskError(
                f"{self._where}: the inputs of {name} are {describe(sample.inputs)}, must be a dict of tensors"
            )
        inputs = fitted_inputs(self._where, self._task, sample.inputs, name)
        label = check_label(f"{self._where}: {name}", sample.label)
        return replace(sample, label=label, inputs=inputs, target=self._checked_target(name, sample.target))

    def _checked_target(self, name: str, target: object) -> Nest[Tensor] | None:
        if target is None:
            if self._forms and self._collate is None:
                raise TaskError(f"{self._where}: {name} has no target, but the split's first sample has one")
            return None
        nest = target_nest(f"{self._where}: the target of {name}", target)
        if self._collate is None:
            self._check_form(name, nest)
        return nest


def check_label(what: str, label: object) -> int:
    """Return a sample's label.

    Raises:
        TaskError: It is no class number.
    """
    if isinstance(label, Tensor) and label.dim() == 0 and not label.is_floating_point() and not label.is_complex():
        label = label.item()
    if not isinstance(label, int | np.integer):
        raise TaskError(f"{what} has the label {shown(label)}, {describe(label)}; must be a class number (int)")
    if label != UNLABELLED and not 0 <= label < _MOST_CLASSES:
        raise TaskError(f"{what} has the label {label}; classes are numbered from 0, and {UNLABELLED} stands for none")
    return int(label)


def _check_arrays(where: str, split: ArraySplit) -> None:
    """Check the ids, groups and labels of all samples in memory; their inputs have one shape and type."""
    for index, (name, label) in enumerate(zip(split.ids, split.labels.tolist(), strict=True)):
        check_text(f"{where}: the id of sample {index}", name)
        check_label(f"{where}: sample '{name}'", label)
    for index, group in enumerate(split.groups or ()):
        if group:
            check_text(f"{where}: the group of sample {index}", group)
