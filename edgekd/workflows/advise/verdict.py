"""From the figures of all trials to standings and a verdict."""

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

    from edgekd.config.recipe import LossConfig
    from edgekd.gram.paired import Paired
    from edgekd.workflows.advise.candidates import LossVariant
    from edgekd.workflows.advise.result import BudgetSpent, ValidationFacts

#: For each contestant its metric on the validation split, by seed.
Values = dict[str, dict[int, float]]


def differences(
    values: Values, base: str, name: str, facts: ValidationFacts
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return for each seed that both have how much better a contestant is than another [n]."""
    sign = 1.0 if facts.higher_is_better else -1.0
    both = sorted(values[base].keys() & values[name].keys())
    return np.array([sign * (values[name][seed] - values[base][seed]) for seed in both])


def least_deviation(facts: ValidationFacts) -> float:
    """Return the deviation that a difference of two metrics has by being rounded to whole samples alone."""
    return float(facts.step / np.sqrt(6))


def make_standings(
    field: Sequence[LossVariant],
    values: Values,
    facts: ValidationFacts,
    recipe_loss: LossConfig,
    failures: Mapping[str, str] | None = None,
) -> tuple[Standing, ...]:
    """Return how all did, compared with the first.

    Args:
        field: the contestants.
        values: their metrics.
        facts: of the task.
        recipe_loss: what the lines to paste would change.
        failures: of those that failed, why.
    """
    base = field[0].name
    compared = {c.name: differences(values, base, c.name, facts) for c in field[1:]}
    enough = {name: d for name, d in compared.items() if len(d) >= 2}
    found = dict(zip(enough, compare(list(enough.values()), least=least_deviation(facts)), strict=True))
    return tuple(
        Standing(
            one.name,
            recipe_lines(one.loss, recipe_loss),
            tuple(value for _, value in sorted(values[one.name].items())),
            found.get(one.name),
            (failures or {}).get(one.name, ""),
        )
        for one in field
    )


def decide_verdict(
    standings: Sequence[Standing],
    facts: ValidationFacts,
    teacher: float,
    error: float | None,
    spent: BudgetSpent,
    block: float,
) -> Verdict:
    """Return the answer.

    Args:
        standings: of all contestants; the first is plain KD.
        facts: of the task.
        teacher: its metric on the validation split.
        error: standard error of KD's metric there; None where not known.
        spent: of the budget.
        block: seconds that one more seed of those still in the contest would take.
    """
    base, *others = standings
    judged = [(one, one.difference) for one in others if one.difference is not None]
    ranked = sorted(judged, key=lambda pair: -pair[1].mean)
    winners = [one for one, _ in ranked if one.found == "better"]
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
    level = [one.name for one in others if one is not best and _level(one, best, facts)]
    reasons = [f"Not told apart from it: {', '.join(level)}."] if level else []
    ahead = f"{MetricFormat.of(facts).interval(best.difference)} over {base.name}, {best.difference.pairs} seeds"
    return Verdict("use", f"use {best.name}: {ahead}", tuple(reasons), best.lines)


def _level(one: Standing, best: Standing, facts: ValidationFacts) -> bool:
    """Whether two that were trained with the same seeds are not told apart; fewer seeds of one would not count."""
    if len(one.values) != len(best.values):
        return False
    (apart,) = compare([np.array(best.values) - np.array(one.values)], least=least_deviation(facts))
    return not apart.holds


def _no_room(base: Standing, facts: ValidationFacts, teacher: float, error: float | None) -> bool:
    """Whether KD is where the teacher is: not clearly below it over the seeds, nor by more than the metric's error."""
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
    """Return the answer where not even the fewest trials fit.

    Args:
        needed: seconds that the whole budget would have to be.
        budget: seconds given.
        fewest: epochs that a trial must have.
        recipe_epochs: of the recipe's own training.
    """
    text = f"the budget is too short: give at least {budget_text(needed)}"
    reason = (
        f"{budget_text(budget)} do not hold {FEWEST_SEEDS} seeds of every loss, {fewest} of the recipe's "
        f"{recipe_epochs} epochs each."
    )
    return Verdict("too short", text, (reason,))
