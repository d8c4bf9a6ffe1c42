"""Paired differences, Holm's correction and mean ranks of what the comparison found."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Paired difference of a metric over seeds, with Student's t.

    Attributes:
        mean: of the differences.
        low: of the interval, widened by Holm's correction where there are several comparisons.
        high: of it.
        p: two-sided, uncorrected.
        p_holm: corrected over the family of comparisons.
    """

    mean: float
    low: float
    high: float
    p: float
    p_holm: float


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, standard error and two-sided p of the paired differences."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    mean = statistics.fmean(differences)
    if error == 0:
        return mean, 0.0, 1.0 if mean == 0 else 0.0
    return mean, error, float(2 * stats.t.sf(abs(mean / error), len(differences) - 1))


def compare(columns: Mapping[str, Sequence[float]], base: str) -> dict[str, Difference]:
    """Compare every column with one of them, as one family of Holm (1979).

    The smallest p is multiplied by the number of comparisons, the next by one less, and so on, never below the one
    before. The interval of each has the confidence that its own factor leaves.
    """
    found = {name: paired(column, columns[base]) for name, column in columns.items() if name != base}
    seeds = len(columns[base])
    compared: dict[str, Difference] = {}
    largest = 0.0
    for index, (name, (mean, error, p)) in enumerate(sorted(found.items(), key=lambda item: item[1][2])):
        factor = len(found) - index
        largest = max(largest, min(1.0, p * factor))
        half = error * float(stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / factor, seeds - 1))
        compared[name] = Difference(mean, mean - half, mean + half, p, largest)
    return compared


def ranks(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return each column's rank among all, 1 for the highest, mean over seeds; equal values share the mean rank."""
    names = list(columns)
    by_seed = [stats.rankdata([-value for value in row]) for row in zip(*columns.values(), strict=True)]
    return {name: statistics.fmean(row[index] for row in by_seed) for index, name in enumerate(names)}
