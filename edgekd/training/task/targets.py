"""Targets of samples: any nest of dicts, lists and tuples with tensors at its leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from edgekd.errors import TaskError
from edgekd.gram.nest import TARGET
from edgekd.stages.user_code import describe, shown
from edgekd.training.task.columns import check_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from edgekd.gram.nest import Nest as ArrayNest

T = TypeVar("T")
R = TypeVar("R")

#: A value, or a dict, list or tuple of nests.
Nest: TypeAlias = "T | Mapping[str, Nest[T]] | Sequence[Nest[T]]"


def map_nest(function: Callable[[T], R], nest: Nest[T]) -> Nest[R]:
    """Return a nest of the same form, with a function applied to each leaf."""
    if isinstance(nest, Mapping):
        return {key: map_nest(function, part) for key, part in nest.items()}
    if isinstance(nest, Sequence):
        return [map_nest(function, part) for part in nest]
    return function(nest)


def leaves(nest: Nest[T], name: str = TARGET) -> dict[str, T]:
    """Return the leaves of a nest by their names, as "target.boxes.0"."""
    if isinstance(nest, Mapping | Sequence):
        parts = nest.items() if isinstance(nest, Mapping) else enumerate(nest)
        return {key: leaf for part, inner in parts for key, leaf in leaves(inner, f"{name}.{part}").items()}
    return {name: nest}


def join_nests(function: Callable[[list[T]], R], nests: Sequence[Nest[T]]) -> Nest[R]:
    """Return one nest of several of the same form: at each place a function of their leaves there."""
    first = nests[0]
    if isinstance(first, Mapping):
        return {key: join_nests(function, [_part(nest, key) for nest in nests]) for key in first}
    if isinstance(first, Sequence):
        return [join_nests(function, [_part(nest, index) for nest in nests]) for index in range(len(first))]
    return function([nest for nest in nests if not isinstance(nest, Mapping | Sequence)])


def _part(nest: Nest[T], key: str | int) -> Nest[T]:
    part: Nest[T] = nest[key]  # type: ignore[index]  # all nests have one form
    return part


def target_nest(what: str, value: object) -> Nest[Tensor]:
    """Return a target that a user gives with tensors at its leaves: whole numbers as int64, others as float32.

    Args:
        what: The target, at the beginning of errors.
        value: Tensors, arrays and numbers, and dicts, lists and tuples of such; a list of numbers is an array.

    Raises:
        TaskError: A leaf is no tensor, or a key is no name.
    """
    if isinstance(value, Mapping):
        for key in value:
            check_text(f"{what}: a key", key)
            if "." in key or "/" in key or key.isdecimal():
                raise TaskError(f"{what}: the key '{key}' may be no number, and hold no '.' or '/'")
        return {key: target_nest(f"{what}.{key}", part) for key, part in value.items()}
    if isinstance(value, list | tuple) and not _is_numbers(value):
        return [target_nest(f"{what}.{index}", part) for index, part in enumerate(value)]
    try:
        leaf = torch.as_tensor(value if isinstance(value, Tensor) else _native(value))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TaskError(
            f"{what} is {describe(value)} ({shown(value)}), must be a tensor, an array or a number, or a dict, a list "
            "or a tuple of such"
        ) from error
    if leaf.is_complex() or leaf.layout != torch.strided:
        raise TaskError(
            f"{what} is a tensor of {leaf.dtype} and layout {leaf.layout}, must be a dense one of real numbers"
        )
    leaf = leaf.detach().cpu()
    if leaf.dtype == torch.bool:
        return leaf
    return leaf.float() if leaf.is_floating_point() else leaf.long()


def _is_numbers(values: object) -> bool:
    if isinstance(values, list | tuple):
        return bool(values) and all(_is_numbers(value) for value in values)
    return isinstance(values, int | float | np.number | np.bool_)


def _native(value: object) -> object:
    """Return an array in this machine's order of bytes, which alone torch takes."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(str(array.dtype))
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise OverflowError(f"{int(array.max())} is no int64")
    wider = {"u": np.int64}.get(array.dtype.kind, array.dtype.newbyteorder("="))
    return np.require(array, wider, ["C", "W"])


def stack_targets(targets: Sequence[Nest[Tensor]]) -> Nest[Tensor]:
    """Return the targets of several samples as one nest, whose leaves are [B, ...]."""
    return join_nests(torch.stack, targets)


def numpy_nest(nest: Nest[Tensor]) -> ArrayNest:
    """Return a nest of tensors as one of arrays, as metrics get it."""
    if isinstance(nest, Mapping):
        return {key: numpy_nest(part) for key, part in nest.items()}
    if isinstance(nest, Sequence):
        return [numpy_nest(part) for part in nest]
    array: NDArray[np.generic] = nest.numpy()
    return array


def target_rows(targets: Nest[Tensor], rows: int | list[int] | Tensor) -> Nest[Tensor]:
    """Return some samples' part of targets whose leaves are [B, ...]."""
    return map_nest(lambda leaf: leaf[rows], targets)


def target_forms(nest: Nest[Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each leaf by its name."""
    return {name: tuple(leaf.shape) for name, leaf in leaves(nest).items()}


def check_same_forms(where: str, found: Mapping[str, tuple[int, ...]], first: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a sample's target has the form of the first sample's.

    Raises:
        TaskError: It has not.
    """
    if found == first:
        return
    differing: Iterable[str] = (name for name in {**first, **found} if found.get(name) != first.get(name))
    name = next(iter(differing))
    has, other = (f"has the shape {side[name]}" if name in side else "is not there" for side in (found, first))
    raise TaskError(
        f"{where}: its {name} {has}, but in the split's first sample {other}; targets have one form and one shape in "
        "all samples: pad them, or give the task a function collate"
    )
