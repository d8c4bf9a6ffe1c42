"""Which pairs and modalities carry the transfer: each is switched off in turn, within the rest of the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.report.format import duration
from edgekd.workflows.advise.budget import FEWEST_SEEDS
from edgekd.workflows.advise.result import Ablation
from edgekd.workflows.advise.verdict import Values, make_standings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.config.recipe import LossConfig
    from edgekd.workflows.advise.budgeted import BudgetedTrials
    from edgekd.workflows.advise.candidates import LossFamily, LossVariant
    from edgekd.workflows.advise.result import Standing, ValidationFacts

#: The most seeds of an ablation: a difference that needs more is too small to act on.
_MOST = 8


def choose_families(families: Sequence[LossFamily], standings: Sequence[Standing]) -> tuple[LossFamily, ...]:
    """Return the better of the losses between modalities, and `intra`; the better of these two comes first."""
    means = {standing.name: standing.difference.mean for standing in standings if standing.difference is not None}
    ranked = sorted(families, key=lambda family: -means.get(family.whole.name, float("-inf")))
    chosen: dict[str, LossFamily] = {}
    for family in ranked:
        chosen.setdefault(family.what, family)
    return tuple(chosen.values())


def skip_families(families: Sequence[LossFamily], why: str) -> tuple[Ablation, ...]:
    """Return ablations that were not tried, with the reason."""
    return tuple(Ablation(family.what, family.whole.name, {}, why) for family in families)


def ablate(
    trials: BudgetedTrials,
    families: Sequence[LossFamily],
    facts: ValidationFacts,
    recipe_loss: LossConfig,
    limit: float,
) -> tuple[Ablation, ...]:
    """Try each loss without each of its parts, the first loss first.

    Args:
        trials: Runs the trials; those of the whole loss that were run before are used again.
        families: The losses with their parts, in order of importance.
        facts: Facts of the validation split.
        recipe_loss: The recipe's own loss, which the lines to paste would change.
        limit: Seconds that may be spent in all.
    """
    ablations = [_Parts(family) for family in families]
    for parts in ablations:
        parts.begin(trials, limit)
    for index in range(FEWEST_SEEDS, _MOST):
        for parts in ablations:
            if not parts.skipped:
                parts.add(trials, index, limit)
    return tuple(parts.result(facts, recipe_loss) for parts in ablations)


class _Parts:
    """The trials of one loss and its parts."""

    def __init__(self, family: LossFamily) -> None:
        self.family = family
        self.variants: list[LossVariant] = [family.whole, *family.without.values()]
        self.values: Values = {variant.name: {} for variant in self.variants}
        self.skipped = "" if family.without else "it is of one modality alone"

    def begin(self, trials: BudgetedTrials, limit: float) -> None:
        """Run the fewest seeds that are worth showing, if all of them fit into the limit."""
        if self.skipped:
            return
        lacking = trials.spent - limit + sum(trials.expected(self.variants, index) for index in range(FEWEST_SEEDS))
        if lacking > 0:
            self.skipped = f"{FEWEST_SEEDS} seeds of it need {duration(lacking)} more than the budget has left"
            return
        for index in range(FEWEST_SEEDS):
            self.add(trials, index, limit)

    def add(self, trials: BudgetedTrials, index: int, limit: float) -> None:
        """Run the trials of one seed, if they fit into the limit."""
        block = trials.block(self.variants, index, limit)
        if block is None:
            return
        failed = [trial.failure for trial in block.values() if trial.validation is None]
        if failed:
            self.skipped = failed[0]
            return
        for name, trial in block.items():
            self.values[name][index] = trial.validation or 0.0

    def result(self, facts: ValidationFacts, recipe_loss: LossConfig) -> Ablation:
        """Return the effect of each part."""
        standings = make_standings(self.variants, self.values, facts, recipe_loss)
        parts = dict(zip(self.family.without, standings[1:], strict=True))
        if not self.skipped and any(standing.difference is None for standing in parts.values()):
            self.skipped = "trials took longer than expected, and the budget is spent"
        return Ablation(self.family.what, self.family.whole.name, {} if self.skipped else parts, self.skipped)
