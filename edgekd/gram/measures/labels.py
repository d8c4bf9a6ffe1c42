"""Outputs that are scores of labels, any of which may be right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.measures.measure import Measure
from edgekd.gram.measures.rows import EDGE, as_rows, sigmoid
from edgekd.gram.measures.turnover import TIE, ClassTurnover

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from edgekd.gram.measures.measure import PairedChunk
    from edgekd.gram.measures.rows import Rows
    from edgekd.gram.measures.turnover import ChangedClasses
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputKind


class LabelDivergence(Measure):
    """The mean over labels of the divergence of each one's probability, and the share of them that changed sides."""

    def __init__(self, kind: OutputKind, reference: Iterable[Array]) -> None:
        self._kind = kind
        self._threshold = 0.5 if kind.threshold is None else kind.threshold
        counts, samples = np.zeros(1), 0
        for outputs in reference:
            counts = counts + self._holds(self._probabilities(outputs)).sum(0)
            samples += len(outputs)
        self._turnover = ClassTurnover(counts, samples)

    def compare(self, chunk: PairedChunk) -> tuple[Rows, Rows | None]:
        """Return the mean divergence over the labels, and the share of the labels that changed sides."""
        mine, other = self._probabilities(chunk.ours), self._probabilities(chunk.theirs)
        ratio = other * np.log(other / mine) + (1 - other) * np.log((1 - other) / (1 - mine))
        changed = self._holds(mine) != self._holds(other)
        kept = self._turnover.classes
        either = (self._holds(mine) | self._holds(other))[:, kept].astype(np.float64)
        self._turnover.add(chunk.units, (changed & ~(ratio < TIE))[:, kept].astype(np.float64), either)
        return np.maximum(ratio.mean(1), 0.0), changed.mean(1)

    def held(self, chunk: PairedChunk) -> tuple[NDArray[np.bool_], Rows] | None:
        """Return in which samples any label holds, and the share of the holding ones that changed."""
        mine, other = (self._holds(self._probabilities(outputs)) for outputs in (chunk.ours, chunk.theirs))
        union = (mine | other).sum(1)
        some: NDArray[np.bool_] = union > 0
        return some, (mine ^ other).sum(1)[some] / union[some]

    def changed_classes(self) -> ChangedClasses | None:
        """Return the labels that are likeliest to have changed most."""
        return self._turnover.likeliest()

    def _holds(self, probabilities: Rows) -> NDArray[np.bool_]:
        holds: NDArray[np.bool_] = probabilities >= self._threshold
        return holds

    def _probabilities(self, outputs: Array) -> Rows:
        scores = as_rows(outputs)
        clipped: Rows = (scores if self._kind.probabilities else sigmoid(scores)).clip(EDGE, 1 - EDGE)
        return clipped
