"""The standings of the losses, and the verdict, from the metrics of all trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.paired import compare, pairs_needed
from edgekd.report.format import duration
from edgekd.workflows.advise.budget import FEWEST_SEEDS, MOST_SEEDS, budget_for
from edgekd.workflows.advise.candidates import recipe_lines
from edgekd.workflows.advise.format import MetricFormat, budget_text, count_seeds
from edgekd.workflows.advise.result import Standing, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgekd.config.recipe import LossConfig
    from edgekd.gram.paired import Paired
    from edgekd.workflows.advise.candidates import LossVariant
    from edgekd.workflows.advise.result import BudgetSpent, ValidationFacts

#: For each loss variant its metric on the validation split, by the index of the seed.
Values = dict[str, dict[int, float]]


def differences(values: Values, base: str, name: str, facts: ValidationFacts) -> NDArray[np.float64]:
    """Return for each of the n seeds that both variants have how much better ``name`` is than ``base`` [n]."""
    sign = 1.0 if facts.higher_is_better else -1.0
    shared = sorted(values[base].keys() & values[name].keys())
    return np.array([sign * (values[name][seed] - values[base][seed]) for seed in shared])


def least_deviation(facts: ValidationFacts) -> float:
    """Return the deviation of a difference of two metrics that comes from rounding them to whole samples."""
    return float(facts.step / np.sqrt(6))


def make_standings(
    variants: Sequence[LossVariant],
    values: Values,
    facts: ValidationFacts,
    recipe_loss: LossConfig,
    failures: Mapping[str, str] | None = None,
) -> tuple[Standing, ...]:
    """Return the standing of each loss variant, compared with the first.

    Args:
        variants: The loss variants.
        values: Metrics of the variants.
        facts: Facts of the validation split.
        recipe_loss: The recipe's own loss, which the lines to paste would change.
        failures: Why training failed, for each variant whose training did.
    """
    base = variants[0].name
    compared = {c.name: differences(values, base, c.name, facts) for c in variants[1:]}
    enough = {name: d for name, d in compared.items() if len(d) >= 2}
    intervals = dict(zip(enough, compare(list(enough.values()), least=least_deviation(facts)), strict=True))
    return tuple(
        Standing(
            variant.name,
            recipe_lines(variant.loss, recipe_loss),
            tuple(value for _, value in sorted(values[variant.name].items())),
            intervals.get(variant.name),
            (failures or {}).get(variant.name, ""),
        )
        for variant in variants
    )


def decide_verdict(
    standings: Sequence[Standing],
    facts: ValidationFacts,
    teacher: float,
    error: float | None,
    spent: BudgetSpent,
    block: float,
) -> Verdict:
    """Return the verdict.

    Args:
        standings: Standings of all loss variants; the first is plain KD.
        facts: Facts of the validation split.
        teacher: The teacher's metric on the validation split.
        error: Standard error of plain KD's metric there; None where it is not known.
        spent: How the budget was spent.
        block: Seconds that one more seed of the variants that are left would take.
    """
    base, *others = standings
    judged = [(standing, standing.difference) for standing in others if standing.difference is not None]
    ranked = sorted(judged, key=lambda pair: -pair[1].mean)
    winners = [standing for standing, _ in ranked if standing.found == "better"]
    scale = MetricFormat.of(facts)
    if winners:
        return _use(winners[0], others, base, facts)
    if _no_room(base, facts, teacher, error):
        return _none_to_gain(base, teacher, scale)
    if spent.seeds < FEWEST_SEEDS or not ranked:
        return _undecided(
            FEWEST_SEEDS - spent.seeds,
            spent,
            block,
            f"{count_seeds(spent.seeds)} of {FEWEST_SEEDS} were finished, which tells next to nothing",
        )
    best, lead = ranked[0]
    if lead.mean <= 0:
        return _none(best, lead, base, scale, "no loss was above KD in the mean")
    needed = pairs_needed(lead.mean, lead.deviation, 0.05 / len(ranked), most=MOST_SEEDS)
    if needed is None:
        why = f"to tell so little from chance would take more than {MOST_SEEDS} seeds"
        return _none(best, lead, base, scale, why)
    more = max(1, needed - lead.pairs)
    return _undecided(more, spent, block, f"{best.name} is {scale.interval(lead)} over {base.name} so far")


def _use(best: Standing, others: Sequence[Standing], base: Standing, facts: ValidationFacts) -> Verdict:
    assert best.difference is not None  # it was found better
    level = [other.name for other in others if other is not best and _level(other, best, facts)]
    reasons = [f"Not told apart from it: {', '.join(level)}."] if level else []
    ahead = f"{MetricFormat.of(facts).interval(best.difference)} over {base.name}, {best.difference.pairs} seeds"
    return Verdict("use", f"use {best.name}: {ahead}", tuple(reasons), best.lines)


def _level(other: Standing, best: Standing, facts: ValidationFacts) -> bool:
    """Return whether two losses that were trained with the same seeds are not told apart."""
    if len(other.values) != len(best.values):
        return False
    (apart,) = compare([np.array(best.values) - np.array(other.values)], least=least_deviation(facts))
    return not apart.holds


def _no_room(base: Standing, facts: ValidationFacts, teacher: float, error: float | None) -> bool:
    """Return whether KD reaches the teacher: it is not clearly below it over the seeds, nor by more than the error."""
    if len(base.values) < 2:
        return False
    sign = 1.0 if facts.higher_is_better else -1.0
    (gap,) = compare([sign * (teacher - np.array(base.values))], least=least_deviation(facts))
    return gap.mean <= 0 or (gap.low <= 0 and gap.mean <= (error or 0.0))


def _none_to_gain(base: Standing, teacher: float, scale: MetricFormat) -> Verdict:
    text = (
        f"no room: {base.name} reaches the teacher within noise ({scale.value(base.mean)} and {scale.value(teacher)})"
    )
    reason = "A smaller student, fewer labels or a better teacher would leave room for a loss to help."
    return Verdict("no room", text, (reason,), base.lines)


def _none(best: Standing, lead: Paired, base: Standing, scale: MetricFormat, why: str) -> Verdict:
    ahead = f"{scale.interval(lead)} over {base.name}, {lead.pairs} seeds"
    text = f"none helps beyond noise: the best, {best.name}, is {ahead}"
    return Verdict("none", text, (f"{why[0].upper()}{why[1:]}.",), base.lines)


def _undecided(more: int, spent: BudgetSpent, block: float, so_far: str) -> Verdict:
    again = budget_text(budget_for(spent.seconds + more * block))
    text = (
        f"not decided with this budget: {count_seeds(more, ' more')} (about {duration(more * block)}) would be needed"
    )
    reasons = (
        f"{so_far[0].upper()}{so_far[1:]}.",
        f"The same command with --budget {again} --epochs {spent.epochs} goes on from these trials.",
    )
    return Verdict("undecided", text, reasons)


def too_short_verdict(needed: float, budget: float, fewest: int, recipe_epochs: int) -> Verdict:
    """Return the verdict where not even the fewest trials fit into the budget.

    Args:
        needed: Seconds that the whole budget would have to be.
        budget: Seconds of the given budget.
        fewest: The fewest epochs that a trial must have.
        recipe_epochs: Epochs of the recipe's own training.
    """
    text = f"the budget is too short: give at least {budget_text(needed)}"
    reason = (
        f"{budget_text(budget)} do not hold {FEWEST_SEEDS} seeds of every loss, {fewest} of the recipe's "
        f"{recipe_epochs} epochs each."
    )
    return Verdict("too short", text, (reason,))
