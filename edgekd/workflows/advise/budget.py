"""The plan of the trials within a budget of seconds: their epochs, their seeds, and when losses are dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: With fewer seeds than the first number the trials tell next to nothing; the second number is planned for; more than
#: the third would look for differences that nobody needs.
FEWEST_SEEDS, PLANNED_SEEDS, MOST_SEEDS = 3, 6, 30

#: After these numbers of seeds the worse half of the losses that are compared with KD is dropped, down to two.
RUNGS = (3, 6, 12)
_KEPT = 2

#: This share of the budget is reserved for the ablation of pairs and modalities.
RESERVE = 0.2

#: A trial has at least this share of the recipe's epochs, and at least this many: shorter trials rank the losses
#: otherwise than the whole training does.
_SHORTEST_SHARE, _SHORTEST = 0.2, 3

#: Epochs of the trial that is timed, of which the quickest counts: the first epochs measure gradient norms at every
#: step. A short trial is run before it to warm up, since the first trial of a process takes longer than later ones.
WARM_UP_EPOCHS, TIMING_EPOCHS = 1, 4


@dataclass(frozen=True)
class TrialCost:
    """The cost of a trial in seconds: ``fixed + epochs * epoch``."""

    fixed: float
    epoch: float

    def of(self, epochs: int) -> float:
        """Return the seconds that a trial of this many epochs takes."""
        return self.fixed + epochs * self.epoch


def shortest_epochs(recipe_epochs: int) -> int:
    """Return the fewest epochs that a trial must have."""
    return min(recipe_epochs, max(_SHORTEST, math.ceil(_SHORTEST_SHARE * recipe_epochs)))


def count_trials(seeds: int, variants: int) -> int:
    """Return the number of trials that this many seeds take, plain KD being one of the loss variants."""
    others, total = variants - 1, 0
    for seed in range(seeds):
        others = count_kept(others) if seed in RUNGS else others
        total += others + 1
    return total


def count_kept(others: int) -> int:
    """Return how many of this many losses are kept after a rung."""
    return min(others, max(_KEPT, math.ceil(others / 2)))


def choose_epochs(budget: float, cost: TrialCost, variants: int, recipe_epochs: int) -> int | None:
    """Return the epochs of each trial, as many as leave room for the planned seeds; None where the budget is too short.

    Args:
        budget: Seconds left for the comparison of the losses.
        cost: Cost of a trial.
        variants: Number of loss variants.
        recipe_epochs: Epochs of the recipe's own training, which are the most that a trial has.
    """
    fewest = shortest_epochs(recipe_epochs)
    if count_trials(FEWEST_SEEDS, variants) * cost.of(fewest) > budget:
        return None
    count = count_trials(PLANNED_SEEDS, variants)
    affordable = (budget / count - cost.fixed) / cost.epoch if cost.epoch > 0 else recipe_epochs
    return max(fewest, min(recipe_epochs, int(affordable)))


def budget_for(seconds: float) -> float:
    """Return the whole budget, of which this many seconds are for the comparison of the losses."""
    return seconds / (1 - RESERVE)


def choose_dropped(differences: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Return the losses that are dropped at a rung: all but the better half by their mean difference to KD."""
    means = {name: sum(values) / len(values) for name, values in differences.items()}
    ranked = sorted(means, key=lambda name: -means[name])
    return tuple(ranked[count_kept(len(ranked)) :])
