"""What a user's task gives as arrays and texts: converted where that is safe, refused where it is not."""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgekd.errors import TaskError
from edgekd.stages.user_code import describe, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Ids are kept in arrays of texts that are all as long as the longest.
_LONGEST_TEXT = 1000


def check_text(what: str, text: object, longest: int = _LONGEST_TEXT) -> None:
    """Check that a name is a text that can be stored.

    Raises:
        TaskError: It is none, is empty or long, has a character 0, or half a surrogate pair, which is not in UTF-8.
    """
    if not isinstance(text, str):
        raise TaskError(f"{what} is {describe(text)} ({shown(text)}), must be a text (str)")
    if not text:
        raise TaskError(f"{what} is empty")
    if len(text) > longest:
        raise TaskError(f"{what} has {len(text):,} characters, may have {longest:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"{what} is {shown(text)}, which holds half a surrogate pair and cannot be stored") from error
    if "\0" in text:
        raise TaskError(f"{what} is {shown(text)}, which holds the character 0 and cannot be stored")


def shape_of(what: str, shape: object) -> tuple[int, ...]:
    """Return the shape of one sample as Python's whole numbers: numpy's would not go into a manifest.

    Raises:
        TaskError: It is none.
    """
    sizes = tuple(shape) if isinstance(shape, tuple | list | np.ndarray) else None
    if sizes is None or not all(isinstance(size, int | np.integer) and size > 0 for size in sizes):
        raise TaskError(f"{what} has the shape {shown(shape)}, must be a tuple of whole numbers from 1, as (12,)")
    return tuple(int(size) for size in sizes)


def texts(name: str, values: Iterable[object]) -> list[str]:
    """Return ids or groups as texts: numbers and paths, too, can be ids.

    Raises:
        TaskError: They have no length, or hold bytes.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Sized):
        raise TaskError(f"a split's {name} are {describe(values)}, must be a list of texts")
    listed = list(values)
    wrong = next((value for value in listed if isinstance(value, bytes | None.__class__)), "")
    if wrong != "":
        raise TaskError(f"a split's {name} hold {describe(wrong)} ({shown(wrong)}), each must be a text (str)")
    return [str(value) for value in listed]


def float_tensor(name: str, x: object) -> Tensor:
    """Return an input of all samples, numpy's float32 in any order of bytes, or a tensor, as a tensor on the CPU.

    Raises:
        TaskError: It is no array, of another type, or masked.
    """
    if isinstance(x, Tensor):
        return x.detach()
    if not isinstance(x, np.ndarray):
        raise TaskError(f"a split's input '{name}' is {describe(x)}, must be one tensor or array of float32 [N, ...]")
    if isinstance(x, np.ma.MaskedArray):
        raise TaskError(
            f"a split's input '{name}' is a masked array, whose mask would be lost: fill it, and say by 'present' "
            "which samples lack the modality"
        )
    if x.dtype.kind != "f" or x.dtype.itemsize != 4:
        hint = "; convert it with .astype(np.float32)" if x.dtype.kind in "biuf" else ""
        ragged = "; samples of unlike shapes make an array of objects" if x.dtype.kind == "O" else ""
        raise TaskError(f"a split's input '{name}' is an array of {x.dtype}, must be one of float32{hint}{ragged}")
    return torch.from_numpy(np.require(x, np.float32, ["C", "W"]))


def label_tensor(labels: object) -> Tensor:
    """Return the labels of all samples as int64 [N].

    Raises:
        TaskError: They are no class indices.
    """
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TaskError(f"a split's labels must be class indices: {error}") from error
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.is_complex():
        raise TaskError(
            f"a split's labels are {tensor.dtype} of shape {tuple(tensor.shape)}, must be one int64 for each sample"
        )
    return tensor.long()


def presence_tensor(name: str, present: object) -> Tensor:
    """Return which samples have a modality as 1.0 or 0.0 [N].

    Raises:
        TaskError: It is not one truth value for each sample.
    """
    try:
        tensor = torch.as_tensor(present)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(f"a split's present '{name}' must be one truth value for each sample: {error}") from error
    if tensor.dim() != 1 or bool(((tensor != 0) & (tensor != 1)).any()):
        raise TaskError(
            f"a split's present '{name}' is {tensor.dtype} of shape {tuple(tensor.shape)}, must be one truth value for "
            "each sample"
        )
    return tensor.bool().float()
