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

#: At most this share of the budget is reserved for the gate's judgement of what is recommended.
JUDGING = 0.35

#: Trials have at least this share of the recipe's epochs where as many losses, KD among them, can be compared with it:
#: shorter trials rank the losses otherwise than the whole training does, so losses are rather left out.
_GOOD_SHARE, _WORTHWHILE = 0.5, 4

#: A trial has at least this share of the recipe's epochs, and at least this many, however short the budget is.
_SHORTEST_SHARE, _SHORTEST = 0.2, 3

#: Trials whose numbers of epochs differ by no more than this factor are as good as each other.
_ALIKE = 1.25

#: Epochs of the trial that is timed, of which the quickest counts: the first epochs measure gradient norms at every
#: step. A short trial is run before it to warm up, since the first trial of a process takes longer than later ones.
#: Where this many epochs would take more than the share of the budget, the warm-up alone is timed.
WARM_UP_EPOCHS, TIMING_EPOCHS, TIMING_SHARE = 1, 4, 0.1


@dataclass(frozen=True)
class TrialCost:
    """The cost of a trial in seconds: ``fixed + epochs * epoch``."""

    fixed: float
    epoch: float

    def of(self, epochs: int) -> float:
        """Return the seconds that a trial of this many epochs takes."""
        return self.fixed + epochs * self.epoch


@dataclass(frozen=True)
class TrialSize:
    """Length and number of the trials of each loss.

    Attributes:
        epochs: Epochs of each trial.
        seeds: Seeds with which a loss is trained before the next one joins the comparison.
    """

    epochs: int
    seeds: int


def shortest_epochs(recipe_epochs: int) -> int:
    """Return the fewest epochs that a trial must have."""
    return _share_of(recipe_epochs, _SHORTEST_SHARE)


def _share_of(recipe_epochs: int, share: float) -> int:
    return min(recipe_epochs, max(_SHORTEST, math.ceil(share * recipe_epochs)))


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


def choose_size(budget: float, cost: TrialCost, variants: int, recipe_epochs: int) -> TrialSize | None:
    """Return the size of the trials; None where the budget does not hold one of plain KD and one of another loss.

    Trials have as many epochs as leave room for the planned seeds of all losses. Where that is few, they are kept at
    half of the recipe's, and losses are left out; where that leaves hardly any, they are shorter, and in the end there
    are fewer seeds.

    Args:
        budget: Seconds left for the comparison of the losses.
        cost: Cost of a trial.
        variants: Number of loss variants.
        recipe_epochs: Epochs of the recipe's own training, which are the most that a trial has.
    """
    for share, contestants in ((_GOOD_SHARE, min(_WORTHWHILE, variants)), (_SHORTEST_SHARE, 2)):
        fewest = _share_of(recipe_epochs, share)
        if FEWEST_SEEDS * contestants * cost.of(fewest) <= budget:
            count = count_trials(PLANNED_SEEDS, variants)
            affordable = (budget / count - cost.fixed) / cost.epoch if cost.epoch > 0 else recipe_epochs
            return TrialSize(max(fewest, min(recipe_epochs, int(affordable))), FEWEST_SEEDS)
    return fixed_size(budget, cost, shortest_epochs(recipe_epochs))


def fixed_size(budget: float, cost: TrialCost, epochs: int) -> TrialSize | None:
    """Return the size of trials of a given length; None where not even two of them fit into the budget."""
    pair = 2 * cost.of(epochs)
    seeds = FEWEST_SEEDS if FEWEST_SEEDS * pair <= budget else int(budget / pair)
    return TrialSize(epochs, seeds) if seeds else None


def alike(epochs: int, recipe_epochs: int) -> list[int]:
    """Return the numbers of epochs that differ little from a number, the nearest first.

    Trials of an earlier run that are about as long as planned go on, however the timing of this run came out.
    """
    low, high = math.ceil(epochs / _ALIKE), min(recipe_epochs, math.floor(epochs * _ALIKE))
    return sorted(range(max(low, shortest_epochs(recipe_epochs)), high + 1), key=lambda other: abs(other - epochs))


def budget_for(seconds: float) -> float:
    """Return the whole budget, of which this many seconds are for the comparison of the losses."""
    return seconds / (1 - RESERVE)


def choose_dropped(differences: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Return the losses that are dropped at a rung: all but the better half by their mean difference to KD."""
    means = {name: sum(values) / len(values) for name, values in differences.items()}
    ranked = sorted(means, key=lambda name: -means[name])
    return tuple(ranked[count_kept(len(ranked)) :])
