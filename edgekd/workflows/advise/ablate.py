"""Which pairs, and which modalities, carry the transfer: each switched off in turn, in what is left of the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.report.format import duration
from edgekd.workflows.advise.budget import FEWEST_SEEDS
from edgekd.workflows.advise.result import Ablation
from edgekd.workflows.advise.verdict import Values, make_standings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.config.recipe import LossConfig
    from edgekd.workflows.advise.candidates import LossFamily, LossVariant
    from edgekd.workflows.advise.result import Standing, ValidationFacts
    from edgekd.workflows.advise.trials import BudgetedTrials

#: Seeds of an ablation at most: what needs more is too small to act on.
_MOST = 8


def choose_families(families: Sequence[LossFamily], standings: Sequence[Standing]) -> tuple[LossFamily, ...]:
    """Return the better of the losses between modalities, and `intra`: the better of the two first."""
    means = {one.name: one.difference.mean for one in standings if one.difference is not None}
    ranked = sorted(families, key=lambda family: -means.get(family.whole.name, float("-inf")))
    chosen: dict[str, LossFamily] = {}
    for family in ranked:
        chosen.setdefault(family.what, family)
    return tuple(chosen.values())


def skip_families(families: Sequence[LossFamily], why: str) -> tuple[Ablation, ...]:
    """Return ablations of which none was tried."""
    return tuple(Ablation(family.what, family.whole.name, {}, why) for family in families)


def ablate(
    bench: BudgetedTrials, families: Sequence[LossFamily], facts: ValidationFacts, recipe_loss: LossConfig, limit: float
) -> tuple[Ablation, ...]:
    """Try each family without each of its parts, the first family first.

    Args:
        bench: makes the trials; those of the whole loss that the contest made are used again.
        families: in order of importance.
        facts: of the task.
        recipe_loss: what the lines to paste would change.
        limit: seconds up to which may be spent.
    """
    found = [_Parts(family) for family in families]
    for parts in found:
        parts.begin(bench, limit)
    for index in range(FEWEST_SEEDS, _MOST):
        for parts in found:
            if not parts.skipped:
                parts.add(bench, index, limit)
    return tuple(parts.result(facts, recipe_loss) for parts in found)


class _Parts:
    """The trials of one family."""

    def __init__(self, family: LossFamily) -> None:
        self.family = family
        self.field: list[LossVariant] = [family.whole, *family.without.values()]
        self.values: Values = {one.name: {} for one in self.field}
        self.skipped = "" if family.without else "it is of one modality alone"

    def begin(self, bench: BudgetedTrials, limit: float) -> None:
        """Run the fewest seeds that are worth showing, if all of them fit."""
        if self.skipped:
            return
        lacking = bench.spent - limit + sum(bench.expected(self.field, index) for index in range(FEWEST_SEEDS))
        if lacking > 0:
            self.skipped = f"{FEWEST_SEEDS} seeds of it need {duration(lacking)} more than the budget has left"
            return
        for index in range(FEWEST_SEEDS):
            self.add(bench, index, limit)

    def add(self, bench: BudgetedTrials, index: int, limit: float) -> None:
        """Run one seed, if it fits."""
        made = bench.block(self.field, index, limit)
        if made is None:
            return
        failed = [trial.failure for trial in made.values() if trial.validation is None]
        if failed:
            self.skipped = failed[0]
            return
        for name, trial in made.items():
            self.values[name][index] = trial.validation or 0.0

    def result(self, facts: ValidationFacts, recipe_loss: LossConfig) -> Ablation:
        """Return what was found."""
        standings = make_standings(self.field, self.values, facts, recipe_loss)
        parts = dict(zip(self.family.without, standings[1:], strict=True))
        if not self.skipped and any(one.difference is None for one in parts.values()):
            self.skipped = "trials took longer than expected, and the budget is spent"
        return Ablation(self.family.what, self.family.whole.name, {} if self.skipped else parts, self.skipped)
