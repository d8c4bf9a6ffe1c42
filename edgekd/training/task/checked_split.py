"""Splits of a user's own, whose every sample is looked at when it is read: a dataset may go wrong at any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgekd.errors import TaskError
from edgekd.plugins import converted
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.user_code import describe, shown
from edgekd.training.task.checks import check_returned, check_shapes
from edgekd.training.task.columns import check_text
from edgekd.training.task.protocol import ArraySplit, Batch, Sample

if TYPE_CHECKING:
    from edgekd.training.task.protocol import Split, Task

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
    if not isinstance(split, ArraySplit) or _reads_otherwise(type(split)):
        return checked
    _check_arrays(where, split)
    return split


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
        if hasattr(split, "ids"):
            self.ids: object = split.ids
        if getattr(split, "__getitems__", None) is not None:  # torch's DataLoader calls it where there is one
            self.__getitems__ = self._read_several

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
        with converted(f"{self._where}: samples {indices[0]} and others", TaskError):
            samples: object = getattr(self._split, "__getitems__")(indices)  # noqa: B009 - no part of the protocol
        if isinstance(samples, Batch):
            self._check_inputs(f"sample '{samples.ids[0]}'", {name: x[0] for name, x in samples.inputs.items()})
            return samples
        if not isinstance(samples, Sequence) or len(samples) != len(indices):
            raise TaskError(f"{self._where}: its __getitems__ must return {len(indices)} samples for as many indices")
        return [self._checked(sample, index) for sample, index in zip(samples, indices, strict=True)]

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
        self._check_inputs(name, sample.inputs)
        label = check_label(f"{self._where}: {name}", sample.label)
        return replace(sample, label=label, inputs={key: x.detach() for key, x in sample.inputs.items()})

    def _check_inputs(self, name: str, inputs: Mapping[str, Tensor]) -> None:
        if not isinstance(inputs, Mapping):
            raise TaskError(f"{self._where}: the inputs of {name} are {describe(inputs)}, must be a dict of tensors")
        shapes = {key: tuple(getattr(x, "shape", ())) for key, x in inputs.items()}
        check_shapes(self._where, self._task, shapes, name)
        for key, x in inputs.items():
            if not isinstance(x, Tensor) or x.dtype != torch.float32:
                kind = x.dtype if isinstance(x, Tensor) else f"{describe(x)} of {getattr(x, 'dtype', 'no type')}"
                raise TaskError(f"{self._where}: input '{key}' of {name} is {kind}, must be a tensor of float32")
            if x.device.type != "cpu" or x.layout != torch.strided:
                raise TaskError(
                    f"{self._where}: input '{key}' of {name} is a tensor of layout {x.layout} on {x.device}, must be a "
                    "dense one on the CPU"
                )


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
