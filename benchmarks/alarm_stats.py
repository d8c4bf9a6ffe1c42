"""Rates, areas and limits of the alarm study, and how surely they are known."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from alarm_cases import Array
    from alarm_measures import Evidence

#: More of the metric lost on test than this is harm.
HARM = 0.015
#: Share of the harmed of other tasks that a limit may let through.
SPARED = 0.01
_NEAR = 0.05
_ROUNDING = 1e-9
_LEVEL = 0.95

Subset = Literal["all", "but fusion", "near"]
SUBSETS: tuple[Subset, ...] = ("all", "but fusion", "near")


@dataclass(frozen=True)
class Draw:
    """One draw of everything that is resampled, of one network: its weights in means, and its variants.

    Attributes:
        samples: Weight of each probe sample [N]; they sum to 1.
        test: Weight of each test sample [T].
        variants: Numbers of the variants.
    """

    samples: Array
    test: Array
    variants: Array

    @classmethod
    def everything(cls, evidence: Evidence) -> Draw:
        """Return the draw that is no draw: all, alike."""
        count, test = len(evidence.units), len(evidence.test_units)
        return cls(np.full(count, 1 / count), np.full(test, 1 / test), np.arange(len(evidence.done)))

    @classmethod
    def of(cls, evidence: Evidence, random: np.random.Generator) -> Draw:
        """Draw units of the probe, units of test, and variants, with replacement."""
        variants = random.integers(0, len(evidence.done), len(evidence.done))
        return cls(_weights(evidence.units, random), _weights(evidence.test_units, random), variants)

    def mean(self, evidence: Evidence, measure: str) -> Array:
        """Return a measure's mean of each drawn variant."""
        figures = evidence.measures[measure][self.variants]
        mean: Array = figures[:, 0] if figures.shape[1] == 1 else figures @ self.samples
        return mean

    def harmed(self, evidence: Evidence) -> Array:
        """Return whether each drawn variant is harmed."""
        return is_harm(evidence.losses[self.variants] @ self.test)


def _weights(units: Array, random: np.random.Generator) -> Array:
    known, inverse = np.unique(units, return_inverse=True)
    times = np.bincount(random.integers(0, len(known), len(known)), minlength=len(known))[inverse]
    weights: Array = times / times.sum()
    return weights


def is_harm(drops: Array) -> Array:
    """Return whether each drop is more than the limit."""
    return ~(drops <= HARM + _ROUNDING)


def draws(networks: Sequence[Evidence], count: int) -> Iterator[list[tuple[Evidence, Draw]]]:
    """Yield draws over seeds, variants, probe units and test units at once, the tasks as they are."""
    random = np.random.default_rng(0)
    by_task: dict[str, list[Evidence]] = {}
    for each in networks:
        by_task.setdefault(each.task, []).append(each)
    for _ in range(count):
        chosen = [of[i] for of in by_task.values() for i in random.integers(0, len(of), len(of))]
        yield [(each, Draw.of(each, random)) for each in chosen]


def area(figures: Array, harmed: Array) -> float:
    """Return the area under the ROC: how often a harmed one has the larger figure; ties count half. NaN of no pairs."""
    if harmed.all() or not harmed.any():
        return math.nan
    difference = figures[harmed][:, None] - figures[~harmed][None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def members(evidence: Evidence, draw: Draw, subset: Subset) -> Array:
    """Return which of the drawn variants belong to a subset."""
    if subset == "all":
        return np.ones(len(draw.variants), bool)
    if subset == "but fusion":
        return np.array([where != "fusion" for _, where, _ in evidence.done])[draw.variants]
    drops = evidence.losses[draw.variants] @ draw.test
    moved = (evidence.losses[draw.variants] != 0).any(1)
    return is_harm(drops) & (drops <= _NEAR) | ~is_harm(drops) & moved


def mean_area(drawn: Sequence[tuple[Evidence, Draw]], measure: str, subset: Subset, kind: str) -> float:
    """Return the mean over the tasks of a kind of the mean area of their networks."""
    by_task: dict[str, list[float]] = {}
    for evidence, draw in drawn:
        if evidence.kind == kind and measure in evidence.measures:
            inside = members(evidence, draw, subset)
            found = area(draw.mean(evidence, measure)[inside], draw.harmed(evidence)[inside])
            by_task.setdefault(evidence.task, []).append(found)
    return float(np.mean([np.nanmean(found) for found in by_task.values() if not np.isnan(found).all()]))


def normal_p(difference: float, deviations: Array) -> float:
    """Return the two-sided p-value of a difference by the standard deviation of its draws."""
    sd = float(np.std(deviations))
    if sd == 0:
        return 1.0 if difference == 0 else 0.0
    return 2 * (1 - NormalDist().cdf(abs(difference) / sd))


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Return p-values corrected by Holm's method."""
    corrected, highest = {}, 0.0
    order = sorted(p_values, key=lambda key: p_values[key])
    for index, key in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - index) * p_values[key]))
        corrected[key] = highest
    return corrected


def choose_limit(figures: Sequence[Array], harmed: Sequence[Array], spared: float = SPARED) -> float:
    """Return the largest limit at which at most a share of the harmed is at or below it, each task weighted alike.

    Args:
        figures: Of each task the measure of its variants.
        harmed: Of each task whether they are harmed.
        spared: The share.
    """
    if not any(bad.any() for bad in harmed):
        return math.inf
    values = np.concatenate([x[bad] for x, bad in zip(figures, harmed, strict=True)])
    weights = np.concatenate([np.full(bad.sum(), 1 / bad.sum()) for bad in harmed if bad.any()])
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order]) / sum(bad.any() for bad in harmed)
    first = int(np.searchsorted(cumulated, spared + _ROUNDING, side="right"))
    below = values[order][first] if first < len(order) else math.inf
    return float(np.nextafter(below, -math.inf))


def by_task(networks: Sequence[Evidence], kind: str) -> dict[str, list[Evidence]]:
    """Return the networks of a kind by their task."""
    chosen = [each for each in networks if each.kind == kind]
    return {
        name: list(group) for name, group in itertools.groupby(sorted(chosen, key=lambda e: e.task), lambda e: e.task)
    }


def interval(values: Sequence[float]) -> list[float]:
    """Return the 95 % interval of draws."""
    low, high = np.nanquantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return [float(low), float(high)]
