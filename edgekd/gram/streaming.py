"""Sums and subsamples of any number of samples, in memory that does not grow with it.

Which samples are kept depends on their names, not on the chunks in which they come, and is the same for every model.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekd.gram.npz import Array

Keys: TypeAlias = "NDArray[np.uint64]"

#: The most units that :class:`Units` keeps apart. With this many the deviation, and so a bound's distance from the
#: mean, is known to 1 %: 1 / sqrt(2 * 8192).
UNITS = 8192


def hash_names(names: Array) -> Keys:
    """Return a 64-bit hash [N] of each name [N]: it looks random and depends on the name alone."""
    digests = (blake2b(str(name).encode(), digest_size=8).digest() for name in names.tolist())
    return np.frombuffer(b"".join(digests), "<u8")


class Units:
    """The sum and the count of a figure over each unit, where units are independent of each other.

    Up to :data:`UNITS` of them are kept apart. Where there are more, all are dealt into that many blocks by a hash of
    their names, and a block counts as a unit. The blocks of a random partition of independent units are independent
    too, and their spread estimates the variance of the mean (random groups: Wolter, Introduction to Variance
    Estimation, ch. 2).
    """

    def __init__(self) -> None:
        self._units: dict[int, list[float]] = {}
        self._blocks: NDArray[np.float64] | None = None

    def add(self, keys: Keys, values: NDArray[np.float64]) -> None:
        """Add figures [B] of units, which are identified by the hashes [B] of their names; a unit may come again."""
        if self._blocks is not None:
            _deal(self._blocks, keys, values, np.ones(len(values)))
            return
        for key, value in zip(keys.tolist(), values.tolist(), strict=True):
            unit = self._units.setdefault(key, [0.0, 0.0])
            unit[0] += value
            unit[1] += 1
        if len(self._units) > UNITS:
            self._blocks = np.zeros((2, UNITS))
            _deal(self._blocks, np.array(list(self._units), np.uint64), *np.array(list(self._units.values())).T)
            self._units.clear()

    def totals(self) -> NDArray[np.float64]:
        """Return the sums and the counts [2, units]."""
        if self._blocks is None:
            return np.array(list(self._units.values())).T
        return self._blocks[:, self._blocks[1] > 0]


def _deal(blocks: Array, keys: Keys, sums: Array, counts: Array) -> None:
    # bincount would not do: adding one after the other gives the same bits for any chunks.
    np.add.at(blocks[0], keys % UNITS, sums)
    np.add.at(blocks[1], keys % UNITS, counts)


class Subsample:
    """The samples with the smallest hashes of their names, with any arrays of theirs.

    Args:
        size: Number of samples to keep; where there are fewer, all are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._keys = np.empty(0, np.uint64)
        self._rows: list[Array] = []

    def add(self, keys: Keys, rows: list[Array]) -> None:
        """Add samples: the hashes of their names [B], and any number of arrays [B, ...]."""
        if len(self._keys) == self._size:
            smaller = keys < self._keys[-1]
            if not smaller.any():
                return
            keys, rows = keys[smaller], [array[smaller] for array in rows]
        keys = np.concatenate([self._keys, keys])
        kept = np.argsort(keys, kind="stable")[: self._size]
        self._keys = keys[kept]
        before = self._rows or [array[:0] for array in rows]
        self._rows = [np.concatenate(pair)[kept] for pair in zip(before, rows, strict=True)]

    @property
    def keys(self) -> Keys:
        """The hashes of the kept samples' names, in ascending order."""
        return self._keys

    @property
    def rows(self) -> list[Array]:
        """The arrays of the kept samples, each [size, ...], in the order of :attr:`keys`."""
        return self._rows
