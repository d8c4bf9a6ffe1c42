"""Successive halving: losses join one by one, then blocks of trials of one seed; the worse half is dropped at rungs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.workflows.advise.budget import FEWEST_SEEDS, MOST_SEEDS, RUNGS, choose_dropped
from edgekd.workflows.advise.verdict import Values, differences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.workflows.advise.budgeted import BudgetedTrials
    from edgekd.workflows.advise.candidates import LossVariant
    from edgekd.workflows.advise.result import AdviceTrial, ValidationFacts


@dataclass(frozen=True)
class HalvingResult:
    """The metrics of all trials, and the losses that were dropped.

    Attributes:
        values: For each loss variant its metric by the index of the seed.
        seeds: Number of blocks that were finished.
        alive: The variants that are left; the first is plain KD.
        dropped: The variants that were dropped, by the number of seeds after which they were.
        failures: Why training failed, for each variant whose training did.
        left_out: The variants that the budget does not hold, in the order in which they would have joined.
    """

    values: Values
    seeds: int
    alive: tuple[LossVariant, ...]
    dropped: dict[int, tuple[str, ...]]
    failures: dict[str, str]
    left_out: tuple[str, ...] = ()


def run_halving(
    trials: BudgetedTrials, variants: Sequence[LossVariant], facts: ValidationFacts, limit: float, first_limit: float
) -> HalvingResult:
    """Let variants join one after the other, and then run blocks of trials until the limit is reached.

    A variant joins with the fewest seeds that tell anything. Those that the limit does not hold are left out, so a
    short budget compares fewer losses. Every variant starts from the same initial weights, with the same order of
    batches, as the others with the same seed, so differences within a seed are paired. A variant whose training fails
    is dropped; where plain KD's training fails, the comparison ends.

    Args:
        trials: Runs the trials.
        variants: The loss variants: plain KD first, then the others in the order in which they join.
        facts: Facts of the validation split.
        limit: Seconds that may be spent in all.
        first_limit: Seconds that may be spent until all have joined with the fewest seeds.
    """
    race = _Race(trials, variants, facts)
    race.join(first_limit)
    while race.goes_on and race.add_block(limit if race.seeds >= FEWEST_SEEDS else first_limit):
        pass
    return race.result()


class _Race:
    """The variants that are compared, and their metrics so far."""

    def __init__(self, trials: BudgetedTrials, variants: Sequence[LossVariant], facts: ValidationFacts) -> None:
        self._trials, self._variants, self._facts = trials, variants, facts
        self._base = variants[0].name
        self._values: Values = {variant.name: {} for variant in variants}
        self._alive: list[LossVariant] = []
        self._dropped: dict[int, tuple[str, ...]] = {}
        self._failures: dict[str, str] = {}
        self._left_out: list[str] = []
        self.seeds = trials.plan.size.seeds

    @property
    def goes_on(self) -> bool:
        """Whether there is anything to compare, and more seeds would be of use."""
        return len(self._alive) > 1 and self.seeds < MOST_SEEDS

    def join(self, limit: float) -> None:
        """Train each variant with the first seeds, as far as the limit allows."""
        base, *others = self._variants
        self.seeds = self._join(base, limit)
        for variant in others if self.seeds else ():
            joined = self._join(variant, limit)
            if joined < self.seeds and variant.name not in self._failures:
                self._left_out.append(variant.name)
                self._alive = [other for other in self._alive if other is not variant]

    def _join(self, variant: LossVariant, limit: float) -> int:
        """Train a variant with the first seeds; return how many of them are finished."""
        joined = self._trials.join(variant, self.seeds, limit)
        for index, trial in enumerate(joined):
            self._keep(variant.name, index, trial)
        if variant.name in self._failures:
            return 0
        self._alive.append(variant)
        return len(joined)

    def _keep(self, name: str, index: int, trial: AdviceTrial) -> None:
        if trial.validation is None:
            self._failures[name] = trial.failure
            self._values[name] = {}
        else:
            self._values[name][index] = trial.validation

    def add_block(self, limit: float) -> bool:
        """Train all variants that are left with one more seed; return False where that does not fit into the limit."""
        gone = self._worse() if self.seeds in RUNGS else ()
        alive = [variant for variant in self._alive if variant.name not in gone]
        block = self._trials.block(alive, self.seeds, limit)
        if block is None:
            return False
        if gone:
            self._dropped[self.seeds] = gone
        for name, trial in block.items():
            self._keep(name, self.seeds, trial)
        self._alive = [variant for variant in alive if variant.name not in self._failures]
        if self._base in self._failures:
            return False
        self.seeds += 1
        return True

    def _worse(self) -> tuple[str, ...]:
        leads = {v.name: differences(self._values, self._base, v.name, self._facts) for v in self._alive[1:]}
        return choose_dropped({name: lead.tolist() for name, lead in leads.items()})

    def result(self) -> HalvingResult:
        """Return what is known."""
        return HalvingResult(
            self._values, self.seeds, tuple(self._alive), self._dropped, self._failures, tuple(self._left_out)
        )
