"""Paired comparisons of several contestants with one: intervals, Holm's correction, and how many pairs would do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.gram.stats import t_quantile, t_tail

if TYPE_CHECKING:
    from collections.abc import Sequence

_Array = np.ndarray[Any, np.dtype[np.float64]]

#: Chance of calling any of a family's differences real where none is.
ALPHA = 0.05


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences, with Student's interval.

    Attributes:
        mean: of the differences.
        low: end of the interval of ``1 - level``.
        high: its other end.
        deviation: standard deviation of the differences.
        p: chance of a mean as far from 0 where the true one is 0, before any correction.
        level: at which Holm's procedure tests it; the interval excludes 0 exactly where the difference holds.
        pairs: how many.
    """

    mean: float
    low: float
    high: float
    deviation: float
    p: float
    level: float
    pairs: int

    @property
    def holds(self) -> bool:
        """Whether the difference is told from 0."""
        return self.low > 0 or self.high < 0


def compare(family: Sequence[_Array], alpha: float = ALPHA, least: float = 0.0) -> list[Paired]:
    """Return the intervals of a family of differences, each as wide as Holm's procedure asks.

    Args:
        family: for each comparison the differences of its pairs [n], n at least 2; n may differ.
        alpha: chance of any false claim in the whole family.
        least: the smallest standard deviation that is believed. Differences of a metric that moves in steps can be
            equal by chance, which would make an interval of no width.
    """
    spreads = [max(float(d.std(ddof=1)), least) for d in family]
    p_values = [_p(float(d.mean()), spread, len(d)) for d, spread in zip(family, spreads, strict=True)]
    found = []
    for d, spread, p, level in zip(family, spreads, p_values, holm(p_values, alpha), strict=True):
        mean, half = float(d.mean()), t_quantile(1 - level / 2, len(d) - 1) * spread / math.sqrt(len(d))
        found.append(Paired(mean, mean - half, mean + half, spread, p, level, len(d)))
    return found


def _p(mean: float, spread: float, pairs: int) -> float:
    if spread == 0:
        return 0.0 if mean else 1.0
    return t_tail(mean * math.sqrt(pairs) / spread, pairs - 1)


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """Return the level at which Holm's step-down procedure tests each hypothesis.

    The smallest p is held against alpha / k, the next against alpha / (k - 1), and so on; from the first that is not
    below its level on, none is rejected, and all keep that level. So a hypothesis is rejected exactly where its p is
    at most its level, and the chance of any false rejection is at most alpha.
    """
    levels = [alpha] * len(p_values)
    stopped = None
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        level = alpha / (len(p_values) - step)
        if stopped is None and p_values[index] > level:
            stopped = level
        levels[index] = level if stopped is None else stopped
    return levels


def pairs_needed(
    mean: float, deviation: float, level: float = ALPHA, power: float = 0.8, most: int = 200
) -> int | None:
    """Return how many pairs tell a true mean from 0 with a chance of ``power``; None where ``most`` do not.

    Args:
        mean: the true mean, as far as is known.
        deviation: of the differences.
        level: of the two-sided test.
        power: chance of success.
        most: where to stop looking.
    """
    if not mean:
        return None
    effect = abs(mean) / max(deviation, 1e-12 * abs(mean))
    normal = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power)
    for pairs in range(max(2, math.ceil((normal / effect) ** 2)), most + 1):  # Student's ask for more than the normal
        needed = t_quantile(1 - level / 2, pairs - 1) + t_quantile(power, pairs - 1)
        if effect * math.sqrt(pairs) >= needed:
            return pairs
    return None
