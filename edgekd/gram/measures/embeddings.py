"""Outputs that are vectors which are compared by their directions, as for retrieval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.measures.measure import Measure
from edgekd.gram.measures.rows import as_rows, lengths, near_zero
from edgekd.gram.streaming import Subsample

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from edgekd.gram.measures.measure import PairedChunk
    from edgekd.gram.measures.rows import Rows
    from edgekd.gram.npz import Array
    from edgekd.gram.streaming import Keys

#: Samples of the reference that an embedding is compared with, and how many of them are its nearest.
_INDEX, _NEAREST = 512, 5


class FloatIndexDivergence(Measure):
    """How the cosines to a sample's own embedding and to its nearest move, and how many of the nearest are others.

    The index, which holds the reference's samples, stays as it is: so it is where queries are compressed and the
    index is not, and a rotation of all shows.
    """

    def __init__(self, reference: Iterable[tuple[Keys, Array]]) -> None:
        self._index = _Index(reference)

    def compare(self, chunk: PairedChunk) -> tuple[Rows, Rows | None]:
        """Return by how much the cosines moved, and the share of the nearest that are others now."""
        index = self._index
        mine, other = index.directions(as_rows(chunk.ours)), index.directions(as_rows(chunk.theirs))
        itself = ((mine - other) ** 2).sum(1, keepdims=True) / 2  # of unit length: 1 - cosine
        count = min(_NEAREST, len(index.keys) - 1)
        if count < 1:
            return itself[:, 0], None
        found, expected = (index.cosines(chunk.keys, z) for z in (mine, other))
        before, after = _nearest(expected, count), _nearest(found, count)
        change: Rows = np.concatenate([itself, _moved(found, expected, before)], 1).mean(1)
        return change, _turned_over(before, after)


class OwnIndexDivergence(Measure):
    """How the cosines to a sample's nearest move, and how many are others, each network with an index of its own.

    A rotation of all embeddings changes nothing, and no vector is held against another network's. Those that are near
    in either network count, since where all embeddings become one it is the far ones that come near. An error is that
    of the inner products with the index.
    """

    def __init__(self, reference: Iterable[tuple[Keys, Array]], own: Iterable[tuple[Keys, Array]]) -> None:
        self._theirs, self._ours = _Index(reference), _Index(own)
        products = self._theirs.rows @ self._theirs.rows.T
        self._floor = near_zero(float((products**2).sum()), len(products))

    def compare(self, chunk: PairedChunk) -> tuple[Rows, Rows | None]:
        """Return by how much the cosines moved, and the share of the nearest that are others now."""
        found = self._ours.cosines(chunk.keys, self._ours.directions(as_rows(chunk.ours)))
        expected = self._theirs.cosines(chunk.keys, self._theirs.directions(as_rows(chunk.theirs)))
        count = min(_NEAREST, len(self._theirs.keys) - 1)
        if count < 1:
            return np.zeros(len(found)), None
        before, after = _nearest(expected, count), _nearest(found, count)
        change: Rows = _moved(found, expected, np.concatenate([before, after], 1)).mean(1)
        return change, _turned_over(before, after)

    def errors(self, chunk: PairedChunk) -> Rows | None:
        """Return the relative error of the inner products with the index."""
        found, expected = as_rows(chunk.ours) @ self._ours.rows.T, as_rows(chunk.theirs) @ self._theirs.rows.T
        errors: Rows = lengths(found - expected) / np.maximum(lengths(expected), self._floor)
        return errors


class _Index:
    """Some of a network's embeddings [I, D], the same samples of every network."""

    def __init__(self, embeddings: Iterable[tuple[Keys, Array]]) -> None:
        index = Subsample(_INDEX)
        count, square = 0, 0.0
        for keys, outputs in embeddings:
            rows = as_rows(outputs)
            index.add(keys, [rows])
            count, square = count + len(rows), square + float((rows**2).sum())
        self._floor = near_zero(square, count)
        self.keys: Keys = index.keys
        self.rows: Rows = index.rows[0]
        self._directions = self.directions(self.rows)

    def directions(self, rows: Rows) -> Rows:
        """Return rows [B, D] scaled to unit length, shorter where they are as good as zero."""
        directions: Rows = rows / np.maximum(lengths(rows), self._floor)[:, None]
        return directions

    def cosines(self, keys: Keys, directions: Rows) -> Rows:
        """Return the cosines [B, I] of samples with the index; -inf with itself."""
        cosines: Rows = np.where(keys[:, None] != self.keys[None], directions @ self._directions.T, -np.inf)
        return cosines


def _nearest(cosines: Rows, count: int) -> NDArray[np.intp]:
    order: NDArray[np.intp] = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return order


def _moved(found: Rows, expected: Rows, places: NDArray[np.intp]) -> Rows:
    moved: Rows = np.abs(np.take_along_axis(found, places, 1) - np.take_along_axis(expected, places, 1))
    return moved


def _turned_over(before: NDArray[np.intp], after: NDArray[np.intp]) -> Rows:
    share: Rows = 1 - (after[:, :, None] == before[:, None, :]).any(2).mean(1)
    return share
