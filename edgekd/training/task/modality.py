"""Inputs of a task: modalities, and the masks and lengths that go with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from edgekd.errors import TaskError, nearest
from edgekd.stages.user_code import describe, shown
from edgekd.training.task.columns import check_text, shape_of

#: Types that an input may have, by their names in a task and in a bundle's manifest.
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class Modality:
    """One named input of a task.

    Attributes:
        name: Name of the input, e.g. "accel".
        shape: Shape of one sample, without the batch, e.g. (3, 100).
        description: What an app must feed, with units, as it stands in the bundle's manifest.
        dtype: Type of its values: "float32", "float16", "uint8", "int32", "int64" or "bool".
        pad: Value with which shorter samples are filled up at their ends to ``shape``; None where every sample has
            exactly this shape.
        absent: Value that stands in for a modality that is missing. None: the training mean of each channel where
            values are floats, else ``pad``, or 0 without one.
        of: "" for a modality. Else the name of the modality that this input describes as its mask, its length or its
            segments: a companion, which is fed to the networks like any input, but has no embedding and no noise, and
            is never missing by itself. Where its modality is missing it takes its own ``absent``, or stays as it is. A
            companion of bools that a split does not give is derived: True where the modality is not ``pad``.

    Raises:
        TaskError: The name, the shape, the type or a value is none.
    """

    name: str
    shape: tuple[int, ...]
    description: str = ""
    dtype: str = "float32"
    pad: float | None = None
    absent: float | None = None
    of: str = ""

    def __post_init__(self) -> None:
        check_text("a modality's name", self.name)
        what = f"modality '{self.name}'"
        object.__setattr__(self, "shape", shape_of(what, self.shape))
        object.__setattr__(self, "dtype", _dtype_name(what, self.dtype))
        for key in ("pad", "absent"):
            value = getattr(self, key)
            if value is not None:
                self._check_value(f"{what}: its {key}", value)
        if not isinstance(self.of, str):
            raise TaskError(f"{what}: its of is {describe(self.of)}, must be the name of another modality")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of its values in torch."""
        return DTYPES[self.dtype]

    @property
    def is_float(self) -> bool:
        """Whether values are floats, which have a mean and may be noisy; ids, masks and bytes have and may not."""
        return self.torch_dtype.is_floating_point

    @property
    def stand_in(self) -> float | None:
        """The number that stands in where it is missing; None for the training mean of each channel."""
        return self.absent if self.absent is not None or self.is_float else self.pad or 0

    def _check_value(self, what: str, value: object) -> None:
        if not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise TaskError(f"{what} is {shown(value)}, must be a finite number")
        lowest, highest = value_range(self.torch_dtype)
        if (not self.is_float and value != int(value)) or not lowest <= value <= highest:
            raise TaskError(f"{what} is {value}, which {self.dtype} does not hold")


def value_range(dtype: torch.dtype) -> tuple[float, float]:
    """Return the smallest and the largest value of a type."""
    if dtype == torch.bool:
        return 0, 1
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return info.min, info.max


def _dtype_name(what: str, dtype: object) -> str:
    """Return the name of a type, which may be numpy's or torch's own object."""
    name = str(dtype).removeprefix("torch.")
    if isinstance(dtype, type) and issubclass(dtype, np.generic | bool):
        name = np.dtype(dtype).name
    if name not in DTYPES:
        raise TaskError(
            f"{what} has the dtype {shown(dtype)}, must be one of {', '.join(DTYPES)}{nearest(name, DTYPES)}"
        )
    return name
