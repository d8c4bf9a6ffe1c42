"""What the epochs of a training tell: which was the best, whether to go on, whether it was still improving."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Epochs = Sequence[dict[str, float]]

#: Fewer epochs tell nothing of where the metric was going.
_FEWEST = 10

#: How many standard errors the last fifth of the epochs must be better than the fifth before, to be called better.
_CLEARLY = 2.5


def best_epoch(history: Epochs, *, higher_is_better: bool) -> int | None:
    """Return the index of the epoch with the best metric, of equals the latest; None where no metric is a number."""
    scores = _scores(history, higher_is_better)
    finite = [index for index, score in enumerate(scores) if math.isfinite(score)]
    return max(finite, key=lambda index: (scores[index], index), default=None)


def has_stalled(history: Epochs, patience: int | None, *, higher_is_better: bool) -> bool:
    """Return whether the metric was no better than before for as many epochs as patience lasts."""
    if patience is None:
        return False
    scores = _scores(history, higher_is_better)
    finite = [score for score in scores if math.isfinite(score)]
    return bool(finite) and len(scores) - 1 - scores.index(max(finite)) >= patience


def still_improving(history: Epochs, *, higher_is_better: bool) -> bool:
    """Return whether the metric was clearly better in the last fifth of the epochs than in the fifth before.

    The best epoch must be among the last fifth too. How much epochs differ by chance is told by neighbours among them.
    """
    scores = np.array(_scores(history, higher_is_better))
    part = len(scores) // 5
    if len(scores) < _FEWEST or not np.isfinite(scores).all():
        return False
    before, last = scores[-2 * part : -part], scores[-part:]
    noise = float(np.diff(scores[-2 * part :]).std()) / math.sqrt(2)
    clear = float(last.mean() - before.mean()) > max(_CLEARLY * noise * math.sqrt(2 / part), 1e-12)
    return clear and bool(scores[:-part].max() < last.max())


def _scores(history: Epochs, higher_is_better: bool) -> list[float]:
    """Return the metric of each epoch, turned round where a lower one is better."""
    sign = 1 if higher_is_better else -1
    return [sign * epoch.get("validation", math.nan) for epoch in history]
