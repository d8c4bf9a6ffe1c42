"""The contest: blocks of one seed for all that are still in it, the worse half dropped on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.workflows.advise.budget import FEWEST_SEEDS, MOST_SEEDS, RUNGS, choose_dropped
from edgekd.workflows.advise.verdict import Values, differences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.workflows.advise.candidates import LossVariant
    from edgekd.workflows.advise.result import ValidationFacts
    from edgekd.workflows.advise.trials import BudgetedTrials


@dataclass(frozen=True)
class HalvingResult:
    """What came of it.

    Attributes:
        values: of each contestant by number of the seed.
        seeds: how many blocks were finished.
        alive: with whom it would go on; the first is plain KD.
        dropped: after how many seeds who was dropped.
        failures: of those whose training failed, why.
    """

    values: Values
    seeds: int
    alive: tuple[LossVariant, ...]
    dropped: dict[int, tuple[str, ...]]
    failures: dict[str, str]


def run_halving(
    bench: BudgetedTrials, field: Sequence[LossVariant], facts: ValidationFacts, limit: float
) -> HalvingResult:
    """Run blocks until the limit is reached.

    Every block trains all that are in the contest from the same initial weights, with the same order of batches, so
    differences within a block are paired. A contestant whose training fails is out; the contest is over where
    plain KD's does.

    Args:
        bench: makes the trials.
        field: the contestants, plain KD first.
        facts: of the task.
        limit: seconds up to which may be spent; for the fewest seeds that tell anything, the whole budget may be.
    """
    alive, base = list(field), field[0].name
    values: Values = {one.name: {} for one in field}
    dropped: dict[int, tuple[str, ...]] = {}
    failures: dict[str, str] = {}
    seeds = 0
    while seeds < MOST_SEEDS:
        gone: tuple[str, ...] = ()
        if seeds in RUNGS:
            gone = choose_dropped({one.name: differences(values, base, one.name, facts).tolist() for one in alive[1:]})
            alive = [one for one in alive if one.name not in gone]
        made = bench.block(alive, seeds, limit if seeds >= FEWEST_SEEDS else bench.budget)
        if made is None:
            break
        dropped |= {seeds: gone} if gone else {}
        for name, trial in made.items():
            if trial.validation is None:
                failures[name] = trial.failure
                values[name] = {}
            else:
                values[name][seeds] = trial.validation
        if base in failures:
            break
        alive = [one for one in alive if one.name not in failures]
        seeds += 1
    return HalvingResult(values, seeds, tuple(alive), dropped, failures)
