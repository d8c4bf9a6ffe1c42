"""Make the inputs that a split gives those that the task says: types, padding, and masks that are derived."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from edgekd.errors import TaskError
from edgekd.stages.user_code import describe
from edgekd.training.task.checks import check_shapes
from edgekd.training.task.modality import value_range

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.training.task.modality import Modality
    from edgekd.training.task.protocol import Task


def fitted_inputs(
    where: str, task: Task, inputs: Mapping[str, Tensor], sample: str, batch: int = 0
) -> dict[str, Tensor]:
    """Return inputs as the task says, those that are derived among them.

    Args:
        where: The split, at the beginning of errors.
        task: The task.
        inputs: What the split gives: one sample's inputs, or those of many stacked.
        sample: The sample, as errors call it.
        batch: Number of dimensions before a sample's own: 0, or 1 where samples are stacked.

    Raises:
        TaskError: An input is of a wrong type or shape, or lacks.
    """
    known = {modality.name: modality for modality in task.modalities}
    fitted = {
        name: _fitted(f"{where}: input '{name}' of {sample}", known[name], x, batch) if name in known else x
        for name, x in inputs.items()
    }
    lacking = _lacking(where, known, fitted, sample)
    if list(fitted) == [name for name in known if name not in lacking]:
        derived = {name: _derived(known[name], known[known[name].of], fitted, batch) for name in lacking}
        fitted = {name: (fitted | derived)[name] for name in known}
    shapes = {name: tuple(getattr(x, "shape", ()))[batch:] for name, x in fitted.items()}
    check_shapes(where, task, shapes, sample)
    return fitted


def _fitted(what: str, modality: Modality, x: object, batch: int) -> Tensor:
    if not isinstance(x, Tensor):
        raise TaskError(
            f"{what} is {describe(x)} of {getattr(x, 'dtype', 'no type')}, must be a tensor of {modality.dtype}"
        )
    if x.device.type != "cpu" or x.layout != torch.strided:
        raise TaskError(f"{what} is a tensor of layout {x.layout} on {x.device}, must be a dense one on the CPU")
    return _padded(what, modality, _converted(what, modality, x.detach()), batch)


def _converted(what: str, modality: Modality, x: Tensor) -> Tensor:
    """Return an input in the modality's type, where that changes no value."""
    wanted = modality.torch_dtype
    if x.dtype == wanted:
        return x
    exact_floats = x.dtype in (torch.float16, torch.bfloat16) and wanted == torch.float32
    integers = not x.is_floating_point() and not x.is_complex() and not modality.is_float
    if not exact_floats and not integers:
        raise TaskError(f"{what} is {x.dtype}, must be a tensor of {modality.dtype}{_hint(modality, x.dtype)}")
    lowest, highest = value_range(wanted)
    if integers and x.numel() and not (lowest <= int(x.min()) and int(x.max()) <= highest):
        outside = x[(x < lowest) | (x > highest)].flatten()[0]
        raise TaskError(f"{what} holds {int(outside)}, which the modality's dtype {modality.dtype} does not hold")
    return x.to(wanted)


def _hint(modality: Modality, found: torch.dtype) -> str:
    if modality.is_float and found == torch.float64:
        return "; convert it with .float()"
    if modality.is_float and not found.is_floating_point and not found.is_complex:
        name = str(found).removeprefix("torch.")
        kind = name if name in ("uint8", "int32", "bool") else "int64"
        return f'; to feed ids, bytes or masks say dtype="{kind}" in the modality, else convert it with .float()'
    if not modality.is_float and found == torch.float32:
        return '; for numbers that are measured say dtype="float32" in the modality'
    return ""


def _padded(what: str, modality: Modality, x: Tensor, batch: int) -> Tensor:
    """Return an input filled up at the end of each dimension to the modality's shape; others stay as they are."""
    shape = tuple(x.shape[batch:])
    if shape == modality.shape or len(shape) != len(modality.shape):
        return x
    if modality.pad is None:
        return x
    if any(has > most for has, most in zip(shape, modality.shape, strict=True)):
        raise TaskError(
            f"{what} has the shape {shape}, longer than the modality's {modality.shape}: cut it, or raise the "
            "modality's shape"
        )
    sizes = [size for has, most in zip(shape, modality.shape, strict=True) for size in (most - has, 0)]
    return functional.pad(x, sizes[::-1], value=modality.pad)  # torch has the last dimension first


def _lacking(where: str, known: Mapping[str, Modality], given: Mapping[str, Tensor], sample: str) -> list[str]:
    """Return the companions that are not given and can be derived."""
    lacking = [name for name, modality in known.items() if modality.of and name not in given]
    for name in lacking:
        mask, described = known[name], known[known[name].of]
        if mask.dtype != "bool" or described.pad is None or described.shape[: len(mask.shape)] != mask.shape:
            raise TaskError(
                f"{where}: {sample} has no '{name}', which can be derived only if it is of bools, '{mask.of}' has a "
                f"pad, and its shape {mask.shape} is a beginning of {described.shape}"
            )
    return lacking


def _derived(mask: Modality, described: Modality, inputs: Mapping[str, Tensor], batch: int) -> Tensor:
    """Return where a modality is not padding, reduced to the mask's shape: True where any value of a place is not."""
    there = torch.ne(inputs[described.name], described.pad if described.pad is not None else 0)
    over = there.dim() - batch - len(mask.shape)
    return there.flatten(there.dim() - over).any(-1) if over else there
