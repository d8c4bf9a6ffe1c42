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

    from numpy.typing import NDArray

#: Ids are kept in arrays of texts that are all as long as the longest.
_LONGEST_TEXT = 1000

#: Types of arrays that are read as they are, and those that are read as a wider one.
_TYPES = ("float32", "float16", "uint8", "int32", "int64", "bool")
_WIDER = {"int8": "int32", "int16": "int32", "uint16": "int32", "uint32": "int64"}
_OTHERS = ", ".join(_TYPES[1:])


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


def input_column(name: str, x: object) -> Tensor | list[Tensor]:
    """Return an input of all samples as a tensor on the CPU, or where they are of unlike shapes as a list of such.

    Args:
        name: Name of the input.
        x: A tensor, an array of numpy's in any order of bytes, or a list with one for each sample.

    Raises:
        TaskError: It is none of these, of a type that no modality has, or masked.
    """
    what = f"a split's input '{name}'"
    if isinstance(x, Tensor):
        return x.detach()
    if isinstance(x, np.ndarray):
        return _input_tensor(what, x)
    if not isinstance(x, list | tuple) or not all(
        isinstance(row, Tensor | np.ndarray | list | tuple | int) for row in x
    ):
        raise TaskError(f"{what} is {describe(x)}, must be one tensor or array of float32 or another type [N, ...]")
    rows = [row.detach() if isinstance(row, Tensor) else _input_tensor(what, _array(what, row)) for row in x]
    kinds = {(row.shape, row.dtype) for row in rows}
    return torch.stack(rows) if len(kinds) == 1 else rows


def _array(what: str, row: object) -> NDArray[np.generic]:
    try:
        array = np.asarray(row)
    except ValueError as error:
        raise TaskError(f"{what} holds {shown(row)}, which is no array: {error}") from error
    whole = isinstance(row, np.ndarray) or array.dtype.kind != "f"  # Python's own floats have no type to keep
    return array if whole else array.astype(np.float32)


def _input_tensor(what: str, x: NDArray[np.generic]) -> Tensor:
    if isinstance(x, np.ma.MaskedArray):
        raise TaskError(
            f"{what} is a masked array, whose mask would be lost: fill it, and say by 'present' which samples lack the "
            "modality"
        )
    wider = _WIDER.get(x.dtype.newbyteorder("=").name, x.dtype.newbyteorder("=").name)
    if wider not in _TYPES:
        hint = "; convert it with .astype(np.float32)" if x.dtype.kind in "uf" else ""
        ragged = (
            "; samples of unlike shapes make an array of objects: give a list of arrays" if x.dtype.kind == "O" else ""
        )
        raise TaskError(f"{what} is an array of {x.dtype}, must be one of float32{hint or ragged} (or {_OTHERS})")
    return torch.from_numpy(np.require(x, wider, ["C", "W"]))


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
