"""How a budget of seconds becomes trials: epochs of each, seeds, and who is dropped on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Fewer seeds than this tell next to nothing; this many are planned for; more than this would look for differences that
#: nobody needs.
FEWEST_SEEDS, PLANNED_SEEDS, MOST_SEEDS = 3, 6, 30

#: After these numbers of seeds the worse half of what is compared with KD is dropped, down to two.
RUNGS = (3, 6, 12)
_KEPT = 2

#: Of the budget this is kept for what the pairs and modalities are worth.
RESERVE = 0.2

#: Trials are no shorter than this share of the recipe's epochs, nor than this many: rankings of shorter ones are not
#: those of the whole training.
_SHORTEST_SHARE, _SHORTEST = 0.2, 3

#: Epochs of the trial that is timed, of which the quickest counts: the first ones measure gradient norms at every step.
#: Another trial goes before it, since the first of a process takes longer than those to come.
WARM_UP_EPOCHS, TIMING_EPOCHS = 1, 4


@dataclass(frozen=True)
class TrialCost:
    """Seconds of a trial: ``fixed + epochs * epoch``."""

    fixed: float
    epoch: float

    def of(self, epochs: int) -> float:
        """Return the seconds of a trial of so many epochs."""
        return self.fixed + epochs * self.epoch


def shortest_epochs(recipe_epochs: int) -> int:
    """Return how many epochs a trial must have."""
    return min(recipe_epochs, max(_SHORTEST, math.ceil(_SHORTEST_SHARE * recipe_epochs)))


def count_trials(seeds: int, contestants: int) -> int:
    """Return how many trials so many seeds take, plain KD among the contestants."""
    others, total = contestants - 1, 0
    for seed in range(seeds):
        others = count_kept(others) if seed in RUNGS else others
        total += others + 1
    return total


def count_kept(others: int) -> int:
    """Return how many of so many go on after a rung."""
    return min(others, max(_KEPT, math.ceil(others / 2)))


def choose_epochs(budget: float, cost: TrialCost, contestants: int, recipe_epochs: int) -> int | None:
    """Return the epochs of each trial, as many as leave room for the planned seeds; None where the budget is too short.

    Args:
        budget: seconds left for the contest.
        cost: of a trial.
        contestants: how many.
        recipe_epochs: of the recipe's own training, the most that a trial has.
    """
    fewest = shortest_epochs(recipe_epochs)
    if count_trials(FEWEST_SEEDS, contestants) * cost.of(fewest) > budget:
        return None
    count = count_trials(PLANNED_SEEDS, contestants)
    affordable = (budget / count - cost.fixed) / cost.epoch if cost.epoch > 0 else recipe_epochs
    return max(fewest, min(recipe_epochs, int(affordable)))


def budget_for(seconds: float) -> float:
    """Return the whole budget of which so many seconds are the contest's."""
    return seconds / (1 - RESERVE)


def choose_dropped(differences: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Return who is dropped at a rung, the better half of the mean differences to KD staying."""
    means = {name: sum(values) / len(values) for name, values in differences.items()}
    ranked = sorted(means, key=lambda name: -means[name])
    return tuple(ranked[count_kept(len(ranked)) :])
