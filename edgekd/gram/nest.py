"""Nests of arrays: what a network answers, and what it should: an array, or dicts, lists and tuples of such.

Every array has one row for each sample. In an ``.npz`` a nest is one array for each of its leaves, under the name of
the leaf: ``target``, ``target.boxes``, ``target.boxes.0``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from edgekd.gram.npz import Array

#: An array [N, ...], or any nest of such.
Nest: TypeAlias = "Array | dict[str, Nest] | list[Nest] | tuple[Nest, ...]"

#: A class that is none: a target of it is not known.
_UNKNOWN = -100

#: What stands in an ``.npz`` for a dict, and for a list or tuple, in which there is nothing.
_EMPTY_DICT, _EMPTY_TUPLE = "{}", "()"


#: What the targets of samples are called in an ``.npz``, where they are no labels.
TARGET = "target"


def targets_of(arrays: Mapping[str, Array]) -> Nest | None:
    """Return what the samples of an ``.npz`` are labelled with: a task's targets, or labels; None where none is.

    Args:
        arrays: The arrays by name. Of a target that is -100 or, of floats, NaN throughout, nothing is known.
    """
    targets = unflatten(arrays, TARGET)
    targets = arrays.get("labels") if targets is None else targets
    return None if targets is None or not known_rows(targets).any() else targets


def known_rows(targets: Nest) -> NDArray[np.bool_]:
    """Return of which samples [N] any target is known: is not -100 or, of floats, not NaN."""
    found: NDArray[np.bool_] = np.any([_is_known(array) for array in arrays_of(targets)], 0)
    return found


def _is_known(array: Array) -> NDArray[np.bool_]:
    known = ~np.isnan(array) if np.issubdtype(array.dtype, np.floating) else array != _UNKNOWN
    some: NDArray[np.bool_] = np.any(known.reshape(len(array), -1), 1)
    return some


def map_nest(nest: Nest, function: Callable[[Array], Array]) -> Nest:
    """Return a nest of the same shape, of what a function returns for each array."""
    if isinstance(nest, dict):
        return {name: map_nest(item, function) for name, item in nest.items()}
    if isinstance(nest, (list, tuple)):
        items = [map_nest(item, function) for item in nest]
        return tuple(items) if isinstance(nest, tuple) else items
    return function(nest)


def take_rows(nest: Nest, rows: NDArray[np.generic] | slice) -> Nest:
    """Return a nest of these rows of each array: a mask [N], their indices, or a slice."""
    return map_nest(nest, lambda array: array[rows])


def arrays_of(nest: Nest) -> Iterator[Array]:
    """Yield the arrays of a nest, in order."""
    if isinstance(nest, (dict, list, tuple)):
        for item in nest.values() if isinstance(nest, dict) else nest:
            yield from arrays_of(item)
    else:
        yield nest


def count_rows(nest: Nest) -> int:
    """Return the number of rows that each array has.

    Raises:
        ValueError: The arrays differ in rows, or there is none, or one is a single value.
    """
    arrays = flatten(nest, "")
    single = [name for name, array in arrays.items() if not array.ndim]
    counts = {
        name.removeprefix("."): len(array) for name, array in arrays.items() if array.ndim and not _stands_in(name)
    }
    if single or not counts:
        raise ValueError("a nest needs an array with a row for each sample")
    if len(set(counts.values())) > 1:
        raise ValueError(f"the arrays differ in rows: {counts}")
    return next(iter(counts.values()))


def flatten(nest: Nest, prefix: str) -> dict[str, Array]:
    """Return the arrays of a nest by their names: the prefix, and after a dot each the keys and places on the way.

    Raises:
        ValueError: A key of a dict is no text, is empty, is a number, or has a dot or a slash.
    """
    return dict(_leaves(nest, prefix))


def unflatten(arrays: Mapping[str, Array], prefix: str) -> Nest | None:
    """Return the nest of the arrays with these names, as :func:`flatten` names them; None where there is none.

    A list comes back as a tuple, since names do not tell them apart.

    Raises:
        ValueError: The names are no nest's: one is a leaf and has leaves, or places are missing.
    """
    if prefix in arrays:
        if inner := [name for name in arrays if name.startswith(f"{prefix}.")]:
            raise ValueError(f"'{prefix}' is an array, so there cannot be '{inner[0]}'")
        return arrays[prefix]
    keys = dict.fromkeys(name[len(prefix) + 1 :].partition(".")[0] for name in arrays if name.startswith(f"{prefix}."))
    if not keys:
        return None
    if list(keys) in ([_EMPTY_DICT], [_EMPTY_TUPLE]):
        return {} if _EMPTY_DICT in keys else ()
    items = {key: unflatten(arrays, f"{prefix}.{key}") for key in keys}
    found: dict[str, Nest] = {key: item for key, item in items.items() if item is not None}
    if not all(key.isdecimal() for key in keys):
        return found
    places = [str(place) for place in range(len(keys))]
    if missing := [place for place in places if place not in found]:
        raise ValueError(f"there is no '{prefix}.{missing[0]}' beside {[f'{prefix}.{key}' for key in keys]}")
    return tuple(found[place] for place in places)


def _leaves(nest: Nest, name: str) -> Iterator[tuple[str, Array]]:
    if isinstance(nest, dict):
        for key, item in nest.items():
            _require_key(key, name)
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(nest, (list, tuple)):
        for place, item in enumerate(nest):
            yield from _leaves(item, f"{name}.{place}")
    else:
        yield name, nest
    if isinstance(nest, (dict, list, tuple)) and not nest:
        yield f"{name}.{_EMPTY_DICT if isinstance(nest, dict) else _EMPTY_TUPLE}", np.zeros(0, bool)


def _require_key(key: object, where: str) -> None:
    said = f"the name {key!r}" + (f" in '{where}'" if where else "")
    if not isinstance(key, str) or not key or key in (_EMPTY_DICT, _EMPTY_TUPLE):
        raise ValueError(f"{said} is no name: give text")
    if key.isdecimal():
        raise ValueError(f"{said} is a number: use a list, or another name")
    if wrong := next((sign for sign in "./\\\0" if sign in key), None):
        raise ValueError(f"{said} has {wrong!r} in it: use another name, as dots and slashes part names in files")


def _stands_in(name: str) -> bool:
    return name.endswith((f".{_EMPTY_DICT}", f".{_EMPTY_TUPLE}"))
