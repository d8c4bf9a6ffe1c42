"""Paired comparisons of several candidates with one: intervals, Holm's correction, and the number of pairs needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias

from edgekd.gram.stats import t_quantile, t_tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

_Array: TypeAlias = "NDArray[np.float64]"

#: The probability of calling any difference of a family real where none is.
ALPHA = 0.05


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences, with Student's interval.

    Attributes:
        mean: Mean of the differences.
        low: Lower end of the interval that has the confidence ``1 - level``.
        high: Upper end of the interval.
        deviation: Standard deviation of the differences.
        p: Probability of a mean as far from 0 where the true mean is 0, before any correction.
        level: Level at which Holm's procedure tests the mean; the interval excludes 0 exactly where the difference
            holds.
        pairs: Number of pairs.
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
        """Whether the difference is distinguished from 0."""
        return self.low > 0 or self.high < 0


def compare(family: Sequence[_Array], alpha: float = ALPHA, least: float = 0.0) -> list[Paired]:
    """Return the intervals of a family of differences, each as wide as Holm's procedure asks.

    Args:
        family: For each comparison the differences of its pairs [n], n at least 2; n may differ.
        alpha: Probability of any false claim in the whole family.
        least: The smallest standard deviation that is believed. Differences of a metric that moves in steps can be
            equal by chance, which would make an interval of no width.
    """
    spreads = [max(float(d.std(ddof=1)), least) for d in family]
    p_values = [_p(float(d.mean()), spread, len(d)) for d, spread in zip(family, spreads, strict=True)]
    intervals = []
    for d, spread, p, level in zip(family, spreads, p_values, holm(p_values, alpha), strict=True):
        mean, half = float(d.mean()), t_quantile(1 - level / 2, len(d) - 1) * spread / math.sqrt(len(d))
        intervals.append(Paired(mean, mean - half, mean + half, spread, p, level, len(d)))
    return intervals


def _p(mean: float, spread: float, pairs: int) -> float:
    if spread == 0:
        return 0.0 if mean else 1.0
    return t_tail(mean * math.sqrt(pairs) / spread, pairs - 1)


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """Return the level at which Holm's step-down procedure tests each hypothesis.

    The smallest p is compared with alpha / k, the next with alpha / (k - 1), and so on. From the first that is not
    below its level on, no hypothesis is rejected, and all keep that level. So a hypothesis is rejected exactly where
    its p is at most its level, and the probability of any false rejection is at most alpha.
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
    """Return how many pairs distinguish a mean from 0 with the probability ``power``; None where ``most`` do not.

    Args:
        mean: The true mean, as far as is known.
        deviation: Standard deviation of the differences.
        level: Level of the two-sided test.
        power: Probability that the test succeeds.
        most: The largest number of pairs to try.
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
