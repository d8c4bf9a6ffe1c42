"""How much of what either of two networks gives each class the other does not: it shows a class that vanished.

Where a class holds in 1 of 100 positions, a mean over the positions hardly shows that it is never predicted any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekd.gram.measures.rows import Rows
    from edgekd.gram.streaming import Keys

#: A class that the reference gives to less than this share of all there is to decide is not looked at by itself: a few
#: stray pixels are no class.
RARE = 1e-3

#: A decision whose divergence is less, in nats, is a tie, and counts as unchanged: two classes with 0.55 and 0.45 may
#: trade places by 0.02.
TIE = 0.02

#: Independent units that are kept apart; of more, several share a block, which is as independent of the others.
_BLOCKS = 512

#: The most classes that are looked at, the most frequent ones: labels of every position of a map are more.
_MOST = 4096

#: Classes of which bounds are computed, those that changed most.
_BOUNDED = 8


@dataclass(frozen=True)
class ChangedClasses:
    """The classes that are likeliest to have changed most.

    Attributes:
        totals: For each the changes and the decisions [2, units] of the units that have any of it, over the mean unit's
            decisions: so that a unit counts as one trial, however many positions of it are of the class.
        looked_at: Of how many classes these are the likeliest.
    """

    totals: dict[int, Rows]
    looked_at: int


class ClassTurnover:
    """For each class of a reference, how much of what either network gives it the other does not give it.

    Args:
        counts: How often the reference decides for each class [C].
        decisions: How many decisions there are in all.
    """

    def __init__(self, counts: Rows, decisions: float) -> None:
        #: The classes [K] that are looked at.
        self.classes = np.sort(np.argsort(-counts, kind="stable")[:_MOST])
        self.classes = self.classes[(counts > 0)[self.classes] & (counts >= RARE * decisions)[self.classes]]
        self._totals = np.zeros((_BLOCKS, 2, len(self.classes)))
        self._slots: dict[int, int] | None = {}

    def add(self, units: Keys, changed: Rows, union: Rows) -> None:
        """Add samples.

        Args:
            units: Hashes of the names of their units [B].
            changed: For each class how many of the decisions for it, by either network, the other did not make [B, K].
            union: How many decisions for it there are by either network [B, K].
        """
        blocks = self._blocks_of(units)  # which may deal the totals anew
        np.add.at(self._totals, blocks, np.stack([changed, union], 1))

    def likeliest(self) -> ChangedClasses:
        """Return the classes that are likeliest to have changed most."""
        sums, counts = self._totals[:, 0], self._totals[:, 1]
        alive = np.flatnonzero((counts > 0).any(0))
        means = sums[:, alive].sum(0) / counts[:, alive].sum(0)
        spread = np.sqrt(((sums[:, alive] - means * counts[:, alive]) ** 2).sum(0)) / counts[:, alive].sum(0)
        likely = alive[np.argsort(2 * spread - means, kind="stable")[:_BOUNDED]]
        totals = {int(self.classes[index]): self._trials(index) for index in likely.tolist()}
        return ChangedClasses(totals, len(self.classes))

    def _trials(self, index: int) -> Rows:
        totals = self._totals[self._totals[:, 1, index] > 0, :, index].T
        trials: Rows = totals * (totals.shape[1] / totals[1].sum())
        return trials

    def _blocks_of(self, units: Keys) -> NDArray[np.intp]:
        if self._slots is not None:
            for unit in units.tolist():
                self._slots.setdefault(unit, len(self._slots))
            if len(self._slots) <= _BLOCKS:
                return np.array([self._slots[unit] for unit in units.tolist()], np.intp)
            before, names = self._totals, np.array(list(self._slots), np.uint64)[:_BLOCKS]
            self._totals, self._slots = np.zeros_like(before), None
            np.add.at(self._totals, (names % _BLOCKS).astype(np.intp), before[: len(names)])
        return (units % _BLOCKS).astype(np.intp)
