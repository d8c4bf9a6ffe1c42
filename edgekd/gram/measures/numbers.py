"""Outputs that are numbers, of a regression or of what only the task itself can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.measures.measure import Measure
from edgekd.gram.measures.rows import as_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekd.gram.measures.measure import PairedChunk
    from edgekd.gram.measures.rows import Rows
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputKind

#: An output of more numbers is a map, in which no single one matters.
_NAMED = 64

#: An element that hardly varies is compared with this share of its own power, and of the median power of the elements:
#: they may be of units that are far apart, so a mean would be that of the largest.
_OWN_POWER, _MEDIAN_POWER = 1e-3, 1e-14


class NumberDivergence(Measure):
    """Squared error of each element over its variance: 1 is as bad as always answering the mean."""

    def __init__(self, kind: OutputKind, reference: Iterable[Array]) -> None:
        self._threshold = kind.threshold
        count, first, total, square, power = 0, np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1)
        for outputs in reference:
            rows = as_rows(outputs)
            if not count:
                first = rows[0]
                total, square, power = (np.zeros(rows.shape[1]) for _ in range(3))
            count += len(rows)
            total = total + (rows - first).sum(0)
            square = square + ((rows - first) ** 2).sum(0)
            power = power + (rows**2).sum(0)
        variance = np.maximum(square / count - (total / count) ** 2, 0.0)
        power = power / count
        alive = power[power > 0]
        median = float(np.quantile(alive, 0.5, method="lower")) if len(alive) else 0.0
        scale = np.maximum(np.maximum(variance, _OWN_POWER * power), _MEDIAN_POWER * median)
        # What is always 0 says nothing of its unit: it is taken for that of the others.
        scale = np.where(power > 0, scale, median)
        self._scale: Rows = np.maximum(scale, float(np.finfo(np.float32).tiny))
        self._sums, self._count = np.zeros_like(self._scale), 0

    def compare(self, chunk: PairedChunk) -> tuple[Rows, Rows | None]:
        """Return the mean error over the elements, and the share of the elements that changed sides."""
        ours, theirs = as_rows(chunk.ours), as_rows(chunk.theirs)
        error = (ours - theirs) ** 2 / self._scale
        self._sums, self._count = self._sums + error.sum(0), self._count + len(error)
        if self._threshold is None:
            return error.mean(1), None
        changed = (ours >= self._threshold) != (theirs >= self._threshold)
        return error.mean(1), changed.mean(1)

    def worst_element(self) -> tuple[int, float] | None:
        """Return the element whose mean error is largest, and that; None of a map."""
        if len(self._sums) > _NAMED:
            return None
        index = int(self._sums.argmax())
        return index, float(self._sums[index] / self._count)
