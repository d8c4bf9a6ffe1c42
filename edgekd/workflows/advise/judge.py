"""The gate's word on a recommendation: what a build makes of the loss is judged before the loss is recommended."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.report.format import duration
from edgekd.workflows.advise.format import MetricFormat, budget_text
from edgekd.workflows.advise.result import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.workflows.advise.result import BudgetSpent, LossJudgement, Standing, ValidationFacts

#: What the judgement is about, and what it cannot know.
_SCOPE = "of the pruned student in float, on the validation split; of INT8 and of the test split the build decides"

_KEYS = (
    "Cut less (prune.ratio, prune.budget) or train longer after it (prune.epochs, prune.steps); 'edgekd check "
    "--suggest-limits' tells which limits of [gate] suit the task."
)


def judge_verdict(
    verdict: Verdict,
    standings: Sequence[Standing],
    facts: ValidationFacts,
    judge: Callable[[str], LossJudgement | None],
) -> tuple[Verdict, tuple[LossJudgement, ...]]:
    """Let the gate judge what is recommended, and where it rejects that, what comes next.

    Args:
        verdict: The verdict of the trials.
        standings: Standings of all loss variants; the first is plain KD.
        facts: Facts of the validation split.
        judge: Returns the gate's judgement of a loss variant; None where the budget does not hold it.

    Returns:
        The verdict, whose loss the gate lets through or is said to be not judged, and all judgements.
    """
    judgements: list[LossJudgement] = []
    for name in _in_turn(verdict, standings):
        judgement = judge(name)
        if judgement is None:
            break
        judgements.append(judgement)
        if not judgement.rejected:
            return _released(verdict, standings, judgements, facts), tuple(judgements)
    return (_rejected(judgements) if judgements else verdict), tuple(judgements)


def _in_turn(verdict: Verdict, standings: Sequence[Standing]) -> list[str]:
    """Return the recommended loss, the others that were found better than plain KD, the best first, and plain KD."""
    base, *others = standings
    better = [(standing, standing.difference) for standing in others if standing.found == "better"]
    ranked = sorted(better, key=lambda pair: -pair[1].mean if pair[1] else 0.0)
    return list(dict.fromkeys((verdict.name, *(standing.name for standing, _ in ranked), base.name)))


def _released(
    verdict: Verdict, standings: Sequence[Standing], judgements: Sequence[LossJudgement], facts: ValidationFacts
) -> Verdict:
    *before, last = judgements
    scale = MetricFormat.of(facts)
    said = (
        f"The gate lets it through ({last.verdict}): trained and pruned as in a build, {facts.metric} "
        f"{scale.value(last.before)} before pruning and {scale.value(last.metric)} after, {_SCOPE}."
    )
    if last.verdict not in ("pass",):
        said = f"{said[:-1]}. It does not simply pass: {'; '.join(last.reasons)}."
    if not before:
        return replace(verdict, reasons=(*verdict.reasons, said))
    chosen = next(standing for standing in standings if standing.name == last.name)
    rejected = ", ".join(judgement.name for judgement in before)
    text = f"use {last.name}: the gate rejects what a build makes of {rejected}"
    return Verdict("use", text, (f"{_because(before[0])}.", *verdict.reasons, said), chosen.lines, chosen.name)


def _rejected(judgements: Sequence[LossJudgement]) -> Verdict:
    names = ", ".join(judgement.name for judgement in judgements)
    text = f"no loss can be recommended: the gate rejects what a build makes of {names}"
    reasons = tuple(f"{_because(judgement)}." for judgement in judgements)
    return Verdict("rejected", text, (*reasons, f"Judged: {_SCOPE[3:]}.", _KEYS))


def _because(judgement: LossJudgement) -> str:
    return f"{judgement.name} is rejected: {'; '.join(judgement.reasons)}"


def not_judged(verdict: Verdict, spent: BudgetSpent, cost: float) -> Verdict:
    """Return a verdict that says that the gate has not judged what it recommends.

    Args:
        verdict: The verdict.
        spent: How the budget was spent.
        cost: Seconds that the judgement is expected to take.
    """
    said = (
        f"Not judged by the gate: a build trains {verdict.name} in full and prunes it, which takes about "
        f"{duration(cost)}; --budget {budget_text(spent.seconds + cost)} holds that, or 'edgekd check' judges it."
    )
    return replace(verdict, reasons=(*verdict.reasons, said))
