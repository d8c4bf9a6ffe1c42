"""The gate's word on a recommendation: what a build makes of the loss is judged before the loss is recommended."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.report.format import duration
from edgekd.workflows.advise.format import MetricFormat, budget_text
from edgekd.workflows.advise.result import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.workflows.advise.result import BudgetSpent, Kind, LossJudgement, Standing, ValidationFacts
    from edgekd.workflows.advise.verdict import Known

#: What the judgement is about, and what it cannot know.
_SCOPE = "the pruned student in float, on the validation split; of INT8 and of the test split the build decides"

_KEYS = (
    "Cut less (prune.ratio, prune.budget) or train longer after it (prune.epochs, prune.steps); 'edgekd check "
    "--suggest-limits' tells which limits of [gate] suit the task."
)


def judge_verdict(
    verdict: Verdict,
    standings: Sequence[Standing],
    known: Known,
    judge: Callable[[str], LossJudgement | None],
) -> tuple[Verdict, tuple[LossJudgement, ...]]:
    """Let the gate judge what is recommended, and where it rejects that, what comes next.

    Args:
        verdict: The verdict of the trials.
        standings: Standings of all loss variants; the first is plain KD.
        known: What the losses were judged by in the trials, and what the recipe has.
        judge: Returns the gate's judgement of a loss variant; None where the budget does not hold it.

    Returns:
        The verdict, whose loss the gate lets through or has not judged, and all judgements. Where the gate rejects all
        that may be recommended, no loss is.
    """
    by_name = {standing.name: standing for standing in standings}
    rejected: list[LossJudgement] = []
    for name in _in_turn(verdict, standings, known.own):
        judgement = judge(name)
        if judgement is None or not judgement.rejected:
            chosen = _instead(verdict, by_name[name], known.own, rejected) if rejected else verdict
            if judgement is None:
                return chosen, tuple(rejected)
            said = _released(judgement, known.facts)
            return replace(chosen, reasons=(*chosen.reasons, said)), (*rejected, judgement)
        rejected.append(judgement)
    return _none_left(verdict, rejected), tuple(rejected)


def _in_turn(verdict: Verdict, standings: Sequence[Standing], own: str) -> list[str]:
    """Return the names of what may be recommended, in turn.

    After the verdict's loss come the others that were found better than plain KD, the best first, then what the recipe
    has, and plain KD.
    """
    base, *others = standings
    better = [(standing, standing.difference) for standing in others if standing.found == "better"]
    ranked = sorted(better, key=lambda pair: -pair[1].mean if pair[1] else 0.0)
    return list(dict.fromkeys((verdict.name, *(standing.name for standing, _ in ranked), own, base.name)))


def _released(judgement: LossJudgement, facts: ValidationFacts) -> str:
    """Return a sentence on a judgement that lets a loss through."""
    scale = MetricFormat.of(facts)
    warned = f"; {'; '.join(judgement.reasons)}" if judgement.reasons else ""
    return (
        f"The gate lets {judgement.name} through ({judgement.verdict}{warned}): trained and pruned as in a build, "
        f"{facts.metric} {scale.value(judgement.before)} before pruning and {scale.value(judgement.metric)} after. "
        f"Judged: {_SCOPE}."
    )


def _instead(verdict: Verdict, chosen: Standing, own: str, rejected: Sequence[LossJudgement]) -> Verdict:
    """Return the verdict that recommends another loss than the trials do, since the gate rejects that."""
    what = f"keep {own}, which the recipe has" if chosen.name == own else f"use {chosen.name}"
    names = ", ".join(judgement.name for judgement in rejected)
    kind: Kind = "use" if chosen.found == "better" else "undecided"
    reasons = (*map(_because, rejected), *verdict.reasons)
    return Verdict(kind, f"{what}: the gate rejects what a build makes of {names}", reasons, chosen.lines, chosen.name)


def _none_left(verdict: Verdict, rejected: Sequence[LossJudgement]) -> Verdict:
    """Return the verdict where the gate rejects all that may be recommended."""
    names = ", ".join(judgement.name for judgement in rejected)
    text = f"no loss can be recommended: the gate rejects what a build makes of {names}"
    return Verdict("rejected", text, (*map(_because, rejected), f"Judged: {_SCOPE}.", _KEYS, *verdict.reasons))


def _because(judgement: LossJudgement) -> str:
    return f"With {judgement.name} it is rejected: {'; '.join(judgement.reasons)}."


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
