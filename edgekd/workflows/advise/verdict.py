"""The standings of the losses, and the verdict, from the metrics of all trials."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekd.report.format import duration
from edgekd.workflows.advise.budget import FEWEST_SEEDS, MOST_SEEDS, budget_for
from edgekd.workflows.advise.candidates import recipe_lines
from edgekd.workflows.advise.format import MetricFormat, budget_text, count_seeds
from edgekd.workflows.advise.paired import compare, pairs_needed
from edgekd.workflows.advise.result import Standing, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgekd.config.recipe import LossConfig
    from edgekd.workflows.advise.candidates import LossVariant
    from edgekd.workflows.advise.paired import Paired
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


@dataclass(frozen=True)
class Known:
    """Figures of the validation split that the losses are judged by, and what the recipe has already.

    Attributes:
        facts: Facts of the split.
        teacher: The teacher's metric there.
        own: Name of the loss variant that the recipe has.
        error: Standard error of plain KD's metric there; None where it is not known.
    """

    facts: ValidationFacts
    teacher: float
    own: str
    error: float | None = None


def decide_verdict(standings: Sequence[Standing], known: Known, spent: BudgetSpent, block: float) -> Verdict:
    """Return the verdict, before the gate has judged what it recommends.

    Args:
        standings: Standings of all loss variants; the first is plain KD.
        known: What the losses are judged by.
        spent: How the budget was spent.
        block: Seconds that one more seed of the variants that are left would take.
    """
    verdict = _decide(standings, known, spent, block)
    if not spent.left_out:
        return verdict
    return replace(verdict, reasons=(*verdict.reasons, _left_out(spent, block, len(standings))))


def _decide(standings: Sequence[Standing], known: Known, spent: BudgetSpent, block: float) -> Verdict:
    base, *others = standings
    judged = [(standing, standing.difference) for standing in others if standing.difference is not None]
    ranked = sorted(judged, key=lambda pair: -pair[1].mean)
    winners = [standing for standing, _ in ranked if standing.found == "better"]
    scale = MetricFormat.of(known.facts)
    if winners:
        return _use(winners[0], others, base, known.facts)
    if _no_room(base, known):
        return _none_to_gain(base, known.teacher, scale)
    if not ranked:
        return _undecided(_keep(standings, known), FEWEST_SEEDS - spent.seeds, spent, block, _TOO_FEW)
    return _by_lead(ranked, standings, known, spent, block)


def _by_lead(
    ranked: Sequence[tuple[Standing, Paired]],
    standings: Sequence[Standing],
    known: Known,
    spent: BudgetSpent,
    block: float,
) -> Verdict:
    """Return the verdict where no loss was found better than plain KD, by the one that is ahead."""
    base, scale = standings[0], MetricFormat.of(known.facts)
    best, lead = ranked[0]
    so_far = f"{best.name} is {scale.interval(lead)} over {base.name} after {count_seeds(lead.pairs)}"
    if spent.seeds < FEWEST_SEEDS:
        leaning = best if lead.mean > 0 else _keep(standings, known)
        return _undecided(leaning, FEWEST_SEEDS - spent.seeds, spent, block, so_far)
    if lead.mean <= 0:
        tried = "no loss that was tried" if spent.left_out else "no loss"
        return _none(best, lead, base, scale, f"{tried} was above KD in the mean")
    needed = pairs_needed(lead.mean, lead.deviation, 0.05 / len(ranked), most=MOST_SEEDS)
    if needed is None:
        why = f"to tell so little from chance would take more than {MOST_SEEDS} seeds"
        return _none(best, lead, base, scale, why)
    return _undecided(best, max(1, needed - lead.pairs), spent, block, so_far)


#: What is known where no loss was trained with two seeds.
_TOO_FEW = "fewer than 2 seeds of any two losses were finished, which tells nothing"


def _keep(standings: Sequence[Standing], known: Known) -> Standing:
    """Return the standing of what the recipe has."""
    return next(standing for standing in standings if standing.name == known.own)


def _left_out(spent: BudgetSpent, block: float, variants: int) -> str:
    """Return a sentence on the losses that were left out, and on the budget that holds all."""
    trial = block / max(1, variants - len(spent.left_out))
    needed = budget_for(spent.seconds + FEWEST_SEEDS * len(spent.left_out) * trial)
    return (
        f"Left out, since the budget does not hold them: {', '.join(spent.left_out)}. --budget {budget_text(needed)} "
        f"--epochs {spent.epochs} holds all, and goes on from these trials."
    )


def _use(best: Standing, others: Sequence[Standing], base: Standing, facts: ValidationFacts) -> Verdict:
    assert best.difference is not None  # it was found better
    level = [other.name for other in others if other is not best and _level(other, best, facts)]
    reasons = [f"Not told apart from it: {', '.join(level)}."] if level else []
    ahead = f"{MetricFormat.of(facts).interval(best.difference)} over {base.name}, {best.difference.pairs} seeds"
    return Verdict("use", f"use {best.name}: {ahead}", tuple(reasons), best.lines, best.name)


def _level(other: Standing, best: Standing, facts: ValidationFacts) -> bool:
    """Return whether two losses that were trained with the same seeds are not told apart."""
    if len(other.values) != len(best.values):
        return False
    (apart,) = compare([np.array(best.values) - np.array(other.values)], least=least_deviation(facts))
    return not apart.holds


def _no_room(base: Standing, known: Known) -> bool:
    """Return whether KD reaches the teacher: it is not clearly below it over the seeds, nor by more than the error."""
    if len(base.values) < 2:
        return False
    sign = 1.0 if known.facts.higher_is_better else -1.0
    (gap,) = compare([sign * (known.teacher - np.array(base.values))], least=least_deviation(known.facts))
    return gap.mean <= 0 or (gap.low <= 0 and gap.mean <= (known.error or 0.0))


def _none_to_gain(base: Standing, teacher: float, scale: MetricFormat) -> Verdict:
    text = (
        f"no room: {base.name} reaches the teacher within noise ({scale.value(base.mean)} and {scale.value(teacher)})"
    )
    reason = "A smaller student, fewer labels or a better teacher would leave room for a loss to help."
    return Verdict("no room", text, (reason,), base.lines, base.name)


def _none(best: Standing, lead: Paired, base: Standing, scale: MetricFormat, why: str) -> Verdict:
    ahead = f"{scale.interval(lead)} over {base.name}, {lead.pairs} seeds"
    text = f"none helps beyond noise: the best, {best.name}, is {ahead}"
    return Verdict("none", text, (f"{why[0].upper()}{why[1:]}.",), base.lines, base.name)


def _undecided(leaning: Standing, more: int, spent: BudgetSpent, block: float, so_far: str) -> Verdict:
    again = budget_text(budget_for(spent.seconds + more * block))
    lead = leaning.difference
    if lead is not None and lead.mean > 0:
        text = f"not decided with this budget, leaning to {leaning.name}"
        sure = f", which is better with {1 - lead.p / 2:.0%} confidence, were it the only one that was tried"
    else:
        text, sure = f"not decided with this budget: keep {leaning.name}, which the recipe has", ""
    reasons = (
        f"{so_far[0].upper()}{so_far[1:]}{sure}.",
        f"{count_seeds(more, ' more')} (about {duration(more * block)}) would be needed to tell: the same command with "
        f"--budget {again} --epochs {spent.epochs} goes on from these trials.",
    )
    return Verdict("undecided", text, reasons, leaning.lines, leaning.name)


def too_short_verdict(keep: Standing, needed: float, budget: float, epochs: int, recipe_epochs: int) -> Verdict:
    """Return the verdict where not even a trial of plain KD and one of another loss fit into the budget.

    Args:
        keep: Standing of what the recipe has.
        needed: Seconds that the whole budget would have to be for a comparison of two losses.
        budget: Seconds of the given budget.
        epochs: The fewest epochs that a trial must have.
        recipe_epochs: Epochs of the recipe's own training.
    """
    text = f"the budget is too short to compare anything: keep {keep.name}, which the recipe has"
    reason = (
        f"{budget_text(budget)} do not hold a trial of plain KD and one of another loss, {epochs} of the recipe's "
        f"{recipe_epochs} epochs each. --budget {budget_text(needed)} would hold {FEWEST_SEEDS} of each."
    )
    return Verdict("too short", text, (reason,), keep.lines, keep.name)
