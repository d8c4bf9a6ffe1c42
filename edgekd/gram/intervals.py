"""How surely the mean of a figure over samples is known: bounds by bootstrap, Student's t and the binomial."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgekd.gram.stats import t_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Array: TypeAlias = "NDArray[np.float64]"

#: Halvings of an interval of probabilities: to 1e-12.
_HALVINGS = 40

#: The most samples that a verdict is said to need; where more would be, it says "more than".
MOST_NEEDED = 1_000_000


@dataclass(frozen=True)
class Bootstrap:
    """How the bounds of a mean are computed.

    Attributes:
        confidence: Confidence of each one-sided bound.
        resamples: Number of bootstrap resamples.
        seed: Seed for drawing the resamples.
    """

    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """A mean with a bound on either side, each of the same one-sided confidence.

    Attributes:
        mean: The mean over samples.
        low: Lower bound; -inf where the samples give none.
        high: Upper bound; inf where the samples give none.
    """

    mean: float
    low: float
    high: float


def upper_bound(sums: _Array, counts: _Array, bootstrap: Bootstrap, largest: float = math.inf) -> float:
    """Return the one-sided upper bound of a mean over samples: the larger of the bootstrap's and Student's.

    The units that are drawn and counted are independent, each with the sum and the count [units] of its samples'
    figures. Where samples come in groups the units are the groups, since windows of one subject are not independent.
    The percentile bootstrap is far too low for a handful of groups (three of them: 76 % of the bounds hold where 95 %
    should), and Student's t ignores skew; each covers for the other. Fewer samples give a higher bound, so too little
    data fails a gate: one sample or group alone is bounded only by the largest figure there is.

    Args:
        sums: Sum of the figure over each unit.
        counts: Number of samples of each unit.
        bootstrap: How to bound.
        largest: The largest figure that a sample can have.
    """
    if len(sums) < 2:
        return largest
    mean = sums.sum() / counts.sum()
    # Of a ratio of sums over groups, as a mean over groups of unequal size is (Cochran, Sampling Techniques, 6.4).
    deviation = np.sqrt(((sums - mean * counts) ** 2).sum() / (len(sums) - 1)) / counts.mean()
    student = mean + t_quantile(bootstrap.confidence, len(sums) - 1) * deviation / np.sqrt(len(sums))
    return float(min(max(student, _bootstrap_quantile(sums, counts, bootstrap)), largest))


def _bootstrap_quantile(sums: _Array, counts: _Array, bootstrap: Bootstrap) -> float:
    random = np.random.default_rng(bootstrap.seed)
    means = np.empty(bootstrap.resamples)
    for index in range(bootstrap.resamples):
        chosen = random.integers(0, len(sums), len(sums))
        means[index] = sums[chosen].sum() / counts[chosen].sum()
    return float(np.quantile(means, bootstrap.confidence, method="higher"))


def estimate(totals: _Array, bootstrap: Bootstrap, smallest: float, largest: float) -> Estimate:
    """Return a mean with its bounds.

    Args:
        totals: Sum of the figure over each independent unit, and number of its samples [2, units].
        bootstrap: How to bound.
        smallest: The smallest figure that a sample can have.
        largest: The largest.
    """
    sums, counts = totals
    low = 0.0 - upper_bound(-sums, counts, bootstrap, -smallest)  # of 0 it is 0 and not -0
    return Estimate(float(sums.sum() / counts.sum()), low, upper_bound(sums, counts, bootstrap, largest))


def estimate_share(totals: _Array, bootstrap: Bootstrap) -> Estimate:
    """Return a mean share with its bounds, which none of few samples do not let be 0 or 1.

    Each bound is the wider of that of :func:`estimate` and the binomial's (Clopper and Pearson, Biometrika 26, 1934),
    as if samples of one unit were independent: no change in 20 samples says no more than fewer than 14 in 100.

    Args:
        totals: Sum over each unit of its samples' shares, each from 0 to 1, and number of its samples [2, units].
        bootstrap: How to bound.
    """
    sums, counts = totals
    bounds = estimate(totals, bootstrap, 0.0, 1.0)
    if math.isnan(bounds.mean):
        return bounds
    total, count = float(sums.sum()), round(float(counts.sum()))
    high = binomial_upper(math.ceil(total - 1e-9), count, bootstrap.confidence)
    low = 1 - binomial_upper(count - math.floor(total + 1e-9), count, bootstrap.confidence)
    return Estimate(bounds.mean, min(bounds.low, low), max(bounds.high, high))


@lru_cache(maxsize=4096)
def binomial_upper(events: int, trials: int, confidence: float) -> float:
    """Return the exact one-sided upper bound of a probability, of so many events in so many independent trials."""
    if events >= trials:
        return 1.0
    low, high = events / trials, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _at_most(events, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(events: int, trials: int, probability: float) -> float:
    """Return the probability of at most so many events, for a probability of each above 0 and below 1."""
    k = np.arange(events + 1)
    steps = np.log(np.arange(trials, trials - events, -1)) - np.log(np.arange(1, events + 1))
    ways = np.concatenate([[0.0], np.cumsum(steps)])
    return float(np.exp(ways + k * math.log(probability) + (trials - k) * math.log1p(-probability)).sum())


def share_needs(share: float, limit: float, confidence: float) -> int | None:
    """Return about how many independent samples would show a share to be within a limit, were it as it was measured.

    Args:
        share: The measured share.
        limit: The limit, above the share for there to be such a number.
        confidence: Confidence of the bound.

    Returns:
        The number, with two digits; None where more samples would not show it.
    """
    if not share < limit:
        return None
    few, many = 1, MOST_NEEDED
    while few < many:
        middle = (few + many) // 2
        if binomial_upper(round(share * middle), middle, confidence) <= limit:
            many = middle
        else:
            few = middle + 1
    return round_up(few)


def mean_needs(bounds: Estimate, limit: float, samples: int) -> int | None:
    """Return about how many samples would show a mean to be within a limit, were it as it was measured.

    The distance from a mean to its bound shrinks with the root of the number of samples.

    Args:
        bounds: The mean with its bounds.
        limit: The limit.
        samples: Number of samples of the estimate.
    """
    if not bounds.mean < limit or math.isinf(bounds.high):
        return None
    return round_up(min(MOST_NEEDED, samples * ((bounds.high - bounds.mean) / (limit - bounds.mean)) ** 2))


def round_up(count: float) -> int:
    """Return a number of samples rounded up to two digits."""
    step: int = 10 ** max(0, len(str(math.ceil(count))) - 2)
    return math.ceil(count / step) * step
