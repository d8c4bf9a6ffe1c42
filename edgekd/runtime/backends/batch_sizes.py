"""Batches of any size in a few sizes, for a library that compiles kernels for every size, and keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.runtime.session import Array, Feeds

    Run: TypeAlias = Callable[[Feeds], dict[str, Array]]

#: The sizes that are run as they come: an app has one or two, and none of its batches is ever padded or divided.
_AS_THEY_COME = 8
#: The most rows of a part, where a batch of yet another size is divided.
_LARGEST_PART = 64
#: Every size that is ever run: those as they come, and the powers of two up to the largest part.
MOST_SIZES = _AS_THEY_COME + _LARGEST_PART.bit_length()

#: The rows of the batches by which a graph is tried, and which of them are changed: each while each other is kept.
_TRIED, _CHANGES = 4, ((0, 1), (2, 3), (0, 2), (1, 3))
#: The largest difference between two sizes of a batch, relative to the answers: their kernels round differently.
_ROUNDING = 0.02


class BatchSizes:
    """Runs batches in at most :data:`MOST_SIZES` sizes, where the rows of a graph have nothing to do with each other.

    The first few sizes run as they come. A batch of any further size is divided into parts, which are padded to powers
    of two with the last row, unless that would change an answer: :func:`mixes_rows` tries that once.

    Args:
        batched: The names of the inputs that have a batch.
    """

    def __init__(self, batched: Sequence[str]) -> None:
        self._batched = batched
        self._seen: set[int] = set()
        self._mixes: bool | None = None

    def run(self, run: Run, feeds: Feeds, rows: int) -> dict[str, Array]:
        """Return the outputs of a batch.

        Args:
            run: Runs the graph on a batch as it is; raises RuntimeError where it fails.
            feeds: The inputs.
            rows: The size of the batch.
        """
        if len(self._seen) < _AS_THEY_COME:
            self._seen.add(rows)
        if rows in self._seen:
            return run(feeds)
        if self._mixes is None:
            self._mixes = mixes_rows(run, feeds, self._batched)
        return run(feeds) if self._mixes else self._in_parts(run, feeds, rows)

    def _in_parts(self, run: Run, feeds: Feeds, rows: int) -> dict[str, Array]:
        parts = []
        for start in range(0, rows, _LARGEST_PART):
            size = min(rows - start, _LARGEST_PART)
            chosen = np.minimum(np.arange(start, start + (1 << (size - 1).bit_length())), rows - 1)
            found = run(_take(feeds, self._batched, chosen))
            parts.append({name: array[:size] for name, array in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def mixes_rows(run: Run, feeds: Feeds, batched: Sequence[str]) -> bool:
    """Return whether a row's answer depends on the batch that it is in, as in a graph that quantizes dynamically.

    Rows are changed while others are kept, whose answers must stay the same to the last bit; rows that change places
    must take their answers along; and a smaller batch must give the same but for rounding. Where the graph does not
    run on such batches, its rows may depend on each other.

    Args:
        run: As for :meth:`BatchSizes.run`.
        feeds: Real inputs, of one row or more.
        batched: The names of the inputs that have a batch.
    """
    rows = len(feeds[batched[0]])
    four = _take(feeds, batched, np.arange(_TRIED) % rows)
    try:
        answers = run(four)
        if any(array.shape[:1] != (_TRIED,) for array in answers.values()):
            return True
        turned, half = (run(_take(four, batched, order)) for order in (np.arange(_TRIED)[::-1], np.arange(_TRIED // 2)))
        changed = [run(_change(four, batched, rows)) for rows in _CHANGES]
    except RuntimeError:
        return True
    return any(
        not _same(array, turned[name][::-1])
        or not _close(array[: _TRIED // 2], half[name])
        or any(
            not _same(np.delete(array, rows, 0), np.delete(other[name], rows, 0)) for rows, other in _changes(changed)
        )
        for name, array in answers.items()
    )


def _changes(changed: list[dict[str, Array]]) -> zip[tuple[tuple[int, int], dict[str, Array]]]:
    return zip(_CHANGES, changed, strict=True)


def _take(feeds: Feeds, batched: Sequence[str], rows: Array) -> dict[str, Array]:
    return {name: array[rows] if name in batched else array for name, array in feeds.items()}


def _change(feeds: Feeds, batched: Sequence[str], rows: Sequence[int]) -> dict[str, Array]:
    """Return feeds whose ``rows`` are others: larger by far, or where numbers are indices, others of the same range."""
    changed = dict(feeds)
    for name in batched:
        array = changed[name] = feeds[name].copy()
        old = array[list(rows)]
        if array.dtype.kind == "f":
            array[list(rows)] = 1 - 8 * old
        elif array.dtype.kind == "b":
            array[list(rows)] = ~old
        else:
            array[list(rows)] = array.max() - (old - array.min())
    return changed


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _close(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    difference = np.linalg.norm(one.astype(np.float64) - other.astype(np.float64))
    return bool(difference <= _ROUNDING * np.linalg.norm(one.astype(np.float64)))
