"""Successive halving: blocks of trials of one seed for all losses that are left; the worse half is dropped at rungs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.workflows.advise.budget import FEWEST_SEEDS, MOST_SEEDS, RUNGS, choose_dropped
from edgekd.workflows.advise.verdict import Values, differences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.workflows.advise.budgeted import BudgetedTrials
    from edgekd.workflows.advise.candidates import LossVariant
    from edgekd.workflows.advise.result import ValidationFacts


@dataclass(frozen=True)
class HalvingResult:
    """The metrics of all trials, and the losses that were dropped.

    Attributes:
        values: For each loss variant its metric by the index of the seed.
        seeds: Number of blocks that were finished.
        alive: The variants that are left; the first is plain KD.
        dropped: The variants that were dropped, by the number of seeds after which they were.
        failures: Why training failed, for each variant whose training did.
    """

    values: Values
    seeds: int
    alive: tuple[LossVariant, ...]
    dropped: dict[int, tuple[str, ...]]
    failures: dict[str, str]


def run_halving(
    trials: BudgetedTrials, variants: Sequence[LossVariant], facts: ValidationFacts, limit: float
) -> HalvingResult:
    """Run blocks of trials until the limit is reached.

    Every block trains all variants that are left from the same initial weights, with the same order of batches, so
    differences within a block are paired. A variant whose training fails is dropped; where plain KD's training fails,
    the comparison ends.

    Args:
        trials: Runs the trials.
        variants: The loss variants, plain KD first.
        facts: Facts of the validation split.
        limit: Seconds that may be spent in all; the whole budget may be spent on the fewest seeds that tell anything.
    """
    alive, base = list(variants), variants[0].name
    values: Values = {variant.name: {} for variant in variants}
    dropped: dict[int, tuple[str, ...]] = {}
    failures: dict[str, str] = {}
    seeds = 0
    while seeds < MOST_SEEDS:
        gone: tuple[str, ...] = ()
        if seeds in RUNGS:
            leads = {v.name: differences(values, base, v.name, facts).tolist() for v in alive[1:]}
            gone = choose_dropped(leads)
            alive = [variant for variant in alive if variant.name not in gone]
        block = trials.block(alive, seeds, limit if seeds >= FEWEST_SEEDS else trials.plan.budget)
        if block is None:
            break
        dropped |= {seeds: gone} if gone else {}
        for name, trial in block.items():
            if trial.validation is None:
                failures[name] = trial.failure
                values[name] = {}
            else:
                values[name][seeds] = trial.validation
        if base in failures:
            break
        alive = [variant for variant in alive if variant.name not in failures]
        seeds += 1
    return HalvingResult(values, seeds, tuple(alive), dropped, failures)
