"""What every measure is: it is given chunks of two networks' outputs, and says how far and how much they differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekd.gram.measures.rows import Rows
    from edgekd.gram.measures.turnover import ChangedClasses
    from edgekd.gram.npz import Array
    from edgekd.gram.streaming import Keys


@dataclass(frozen=True)
class PairedChunk:
    """The outputs of the same samples by two networks.

    Attributes:
        keys: Hashes of the samples' names [B].
        units: Hashes of the names of the independent units [B] that the samples are of.
        ours: The outputs [B, ...] to judge.
        theirs: The reference's outputs [B, ...].
    """

    keys: Keys
    units: Keys
    ours: Array
    theirs: Array


class Measure(ABC):
    """Compares the outputs of one kind, chunk by chunk; what it sums up is asked for after the last."""

    @abstractmethod
    def compare(self, chunk: PairedChunk) -> tuple[Rows, Rows | None]:
        """Return the divergence of each sample [B], and the share of its decisions that changed [B].

        The latter is None where nothing is decided.
        """

    def errors(self, _chunk: PairedChunk) -> Rows | None:
        """Return each sample's error [B], where it is not the length of the difference over the output's length."""
        return None

    def held(self, _chunk: PairedChunk) -> tuple[NDArray[np.bool_], Rows] | None:
        """Return in which samples [B] anything holds in either network, and for each such the share that changed."""
        return None

    def worst_element(self) -> tuple[int, float] | None:
        """Return the number in the output whose divergence is largest, and that; None where no single one matters."""
        return None

    def changed_classes(self) -> ChangedClasses | None:
        """Return the classes that are likeliest to have changed most; None where there are no such."""
        return None
