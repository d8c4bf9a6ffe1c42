"""Targets of an imported model's samples: whatever a user's own metric is given besides the outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ModelError
from edgekd.gram.nest import TARGET, unflatten

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from edgekd.runtime.session import Array

_LABELS = "labels"

#: What a user may write before the name of a target.
_PREFIXES = (f"{TARGET}s.", f"{TARGET}.")


def read_targets(
    path: Path, arrays: Mapping[str, Array], others: Iterable[str], extra: dict[str, Array]
) -> dict[str, Array]:
    """Return what a metric is given besides the outputs, under the names with which samples are stored.

    ``labels`` alone, or ``target``, is the target itself; others are a dict of arrays by their names, without
    ``target.`` or ``targets.`` before them.

    Args:
        path: The file, for errors.
        arrays: Its arrays.
        others: Names of those that are neither inputs nor in ``extra``.
        extra: Labels, ids and groups; labels that are no class indices are removed, in place.

    Returns:
        The targets; none where ``labels`` are class indices and all that there is.

    Raises:
        ModelError: An array is neither of numbers nor of texts, or is a single value, or the names make no dict.
    """
    found = {_plain(name): arrays[name] for name in others}
    labels = extra.get(_LABELS)
    if labels is not None and not _are_class_indices(labels):
        del extra[_LABELS]
    if labels is not None and _LABELS in extra and not found:
        return {}
    found |= {} if labels is None else {_LABELS: labels}
    for name, array in found.items():
        if array.ndim == 0 or array.dtype.kind not in "biufUS":
            is_now = f"{array.dtype} {list(array.shape)}"
            raise ModelError(f"{path}: '{name}' must be numbers or texts, a row a sample, but is {is_now}")
    if len(found) == 1 and {_LABELS, TARGET}.issuperset(found):
        return {TARGET: next(iter(found.values()))}
    named = {f"{TARGET}.{name}": array for name, array in found.items()}
    try:
        unflatten(named, TARGET)
    except ValueError as error:
        raise ModelError(f"{path}: its targets cannot be told apart by their names: {error}") from error
    return named


def _are_class_indices(labels: Array) -> bool:
    return bool(labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer))


def _plain(name: str) -> str:
    return next((name[len(prefix) :] for prefix in _PREFIXES if name.startswith(prefix)), name) or name
