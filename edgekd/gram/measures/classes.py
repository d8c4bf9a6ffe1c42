"""Outputs that are scores of classes: of a sample, of every position of a map, of every step of a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.measures.measure import Measure
from edgekd.gram.measures.rows import log_of_probabilities, log_softmax
from edgekd.gram.measures.tokens import collapse, edit_distance
from edgekd.gram.measures.turnover import TIE, ClassTurnover

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from edgekd.gram.measures.measure import PairedChunk
    from edgekd.gram.measures.rows import Rows
    from edgekd.gram.measures.turnover import ChangedClasses
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputKind


class ClassDivergence(Measure):
    """The Kullback-Leibler divergence from the reference's distribution, and whether the top-1 class changed.

    It is ``sum p log(p / q) - p + q``, which tells of probabilities that no longer sum to 1, too.
    """

    def __init__(self, kind: OutputKind) -> None:
        self._kind = kind
        self._log = log_of_probabilities if kind.probabilities else log_softmax

    def compare(self, chunk: PairedChunk) -> tuple[Rows, Rows | None]:
        """Return the mean divergence over the positions, and the share of the top-1 classes that changed."""
        ours, theirs = (at_positions(outputs, self._kind) for outputs in (chunk.ours, chunk.theirs))
        mine, other = self._log(ours), self._log(theirs)
        p = np.exp(other)
        with np.errstate(invalid="ignore"):  # a class that is ruled out by -inf in both
            terms = np.where(p == 0, 0.0, p * (other - mine))
        divergence: Rows = np.maximum((terms - p + np.exp(mine)).sum(2), 0.0)
        return divergence.mean(1), self._changed(chunk, ours.argmax(2), theirs.argmax(2), divergence)

    def _changed(
        self, _chunk: PairedChunk, ours: NDArray[np.intp], theirs: NDArray[np.intp], _divergence: Rows
    ) -> Rows:
        """Return the share of the classes [B, P] of positions that changed [B], of which the divergence [B, P] is."""
        changed: Rows = (ours != theirs).mean(1)
        return changed


class PositionDivergence(ClassDivergence):
    """The same at every position of a map, or at every step; and of each class how much of it is another now."""

    def __init__(self, kind: OutputKind, reference: Iterable[Array]) -> None:
        super().__init__(kind)
        counts, decisions = np.zeros(0), 0
        for outputs in reference:
            for decided in self._decisions(at_positions(outputs, kind).argmax(2)):
                counts = _add_counts(counts, decided)
                decisions += decided.size
        self._turnover = ClassTurnover(counts, decisions)

    def changed_classes(self) -> ChangedClasses | None:
        """Return the classes that are likeliest to have changed most."""
        return self._turnover.likeliest()

    def _decisions(self, classes: NDArray[np.intp]) -> Iterable[NDArray[np.intp]]:
        """Yield what is decided by the classes [B, P] at the positions."""
        yield classes

    def _changed(self, chunk: PairedChunk, ours: NDArray[np.intp], theirs: NDArray[np.intp], divergence: Rows) -> Rows:
        other = ours != theirs
        changed = other & ~(divergence < TIE)
        mine, its = self._count(ours), self._count(theirs)
        both = self._count(theirs, ~other)
        self._turnover.add(chunk.units, self._count(ours, changed) + self._count(theirs, changed), mine + its - both)
        share: Rows = other.mean(1)
        return share

    def _count(self, classes: NDArray[np.intp], where: NDArray[np.bool_] | None = None) -> Rows:
        """Return how many positions [B, P], of those to look at, have each of the classes that are looked at [B, K]."""
        kept = self._turnover.classes
        if not len(kept):
            return np.zeros((len(classes), 0))
        place = np.minimum(np.searchsorted(kept, classes), len(kept) - 1)
        known = kept[place] == classes
        sample, position = np.nonzero(known if where is None else known & where)
        flat = sample * len(kept) + place[sample, position]
        return np.bincount(flat, minlength=len(classes) * len(kept)).reshape(len(classes), -1).astype(np.float64)


class TokenDivergence(PositionDivergence):
    """The same of a network that was trained by CTC: what is decided are the tokens, and not the steps.

    What changed is the edit distance between the two networks' tokens over the longer one's number of them. A class
    that is another now is one of which there are more or fewer tokens.
    """

    def _decisions(self, classes: NDArray[np.intp]) -> Iterable[NDArray[np.intp]]:
        return (collapse(row, self._kind.blank) for row in classes)

    def _changed(self, chunk: PairedChunk, ours: NDArray[np.intp], theirs: NDArray[np.intp], _divergence: Rows) -> Rows:
        pairs = list(zip(self._decisions(ours), self._decisions(theirs), strict=True))
        mine, its = (np.concatenate([self._count(row[None]) for row in rows]) for rows in zip(*pairs, strict=True))
        self._turnover.add(chunk.units, np.abs(mine - its), np.maximum(mine, its))
        return np.array([edit_distance(a, b) / max(len(a), len(b), 1) for a, b in pairs])


def at_positions(outputs: Array, kind: OutputKind) -> Rows:
    """Return scores of classes, in the layout of their kind, as [B, positions, C]."""
    scores = outputs.astype(np.float64)
    if kind.name == "sequence-classes":
        return scores.reshape(len(scores), -1, scores.shape[-1])
    found: Rows = np.moveaxis(scores.reshape(*scores.shape[:2], -1), 1, 2)
    return found


def _add_counts(counts: Rows, classes: NDArray[np.intp]) -> Rows:
    found = np.bincount(classes.ravel(), minlength=len(counts)).astype(np.float64)
    found[: len(counts)] += counts
    return found
