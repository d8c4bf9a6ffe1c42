"""What to try next where the gate rejects a pruned network: prune less, branch by branch, and tune longer.

It imports no torch: what was tried is told of finished results, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from msgspec.structs import replace

from edgekd.config.recipe import without_teacher
from edgekd.gram.blame import FUSION
from edgekd.gram.output_kind import MEASURES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekd.config.recipe import LossConfig, PruneConfig
    from edgekd.gram.gate import LedgerRow
    from edgekd.gram.verdict import GateLimits
    from edgekd.stages.trained import PruneAttempt

#: What the next attempt takes of what the last one took: of a branch that is to blame, and of every other.
_BLAMED, _OTHERS = 0.25, 0.5

#: Where no branch is to give more than this share of what was asked for, the student stays as it is.
_LEAST = 0.2

#: A modality is to blame where its drift is that many times the mean of the others'.
_STANDS_OUT = 1.5

#: The fine-tune of an attempt takes twice the epochs of the one before, and at most this many times the recipe's.
_LONGER, _LONGEST = 2, 4


@dataclass(frozen=True)
class PrunePlan:
    """How one attempt prunes.

    Attributes:
        shares: For each branch the share that it gives of the channels that the recipe asks of it; 1 for branches that
            are not named.
        epochs: Number of epochs of each fine-tune, or "auto"; 0 where the student stays as it is.
        by_student: Whether the unpruned student takes the teacher's place in the fine-tune, and the labels'. The gate
            asks for the student's answers; a fine-tune by the teacher goes on learning what the student had not.
        reason: What is changed after the attempt before, and why; "" for the first.
    """

    epochs: int | Literal["auto"]
    shares: Mapping[str, float] = field(default_factory=dict)
    by_student: bool = False
    reason: str = ""

    def share(self, branch: str) -> float:
        """Return the share that a branch gives."""
        return self.shares.get(branch, 1.0)

    def identity(self) -> dict[str, object]:
        """Return what a network that is pruned so depends on, as JSON."""
        return {"shares": dict(self.shares), "epochs": self.epochs, "by_student": self.by_student}


def next_plan(
    plan: PrunePlan, attempts: Sequence[PruneAttempt], config: PruneConfig, limits: GateLimits, left_s: float
) -> PrunePlan:
    """Return what to try after an attempt that the gate rejected.

    First the student teaches: the same is pruned, and tuned by the student. Where that is not enough, every branch
    gives half of what it gave, and one that is to blame a quarter. The fine-tune takes twice as long, or as long as
    before where there is no time for that.

    Args:
        plan: The plan of that attempt.
        attempts: All attempts, the last of which it is.
        config: The recipe's section.
        limits: The limits of the gate.
        left_s: Seconds that are left for further attempts.
    """
    last, usual = attempts[-1], attempts[0].epochs
    shares, blame = _next_shares(plan, last, limits)
    cause = "; ".join((describe_verdict(last.row), *_beyond(last.row, limits), *blame))
    if max(share for branch, share in shares.items() if last.ratios[branch]) < _LEAST:
        return _unpruned(last, f"the student stays unpruned, because so little is not worth pruning: {cause}")
    longer = min(_LONGER * last.epochs, _LONGEST * usual)
    times = {epochs: last.seconds * epochs / last.epochs for epochs in (longer, last.epochs)}
    epochs = next((epochs for epochs, seconds in times.items() if seconds <= left_s), None)
    if epochs is None:
        return _unpruned(
            last,
            f"the student stays unpruned, because another attempt takes about {times[last.epochs]:.0f} s, and of "
            f"prune.repair_s = {config.repair_s:g} {max(left_s, 0):.0f} s are left: {cause}",
        )
    return PrunePlan(epochs, shares, True, f"{_changes(plan, shares, epochs, last)}, because of {cause}")


def _unpruned(last: PruneAttempt, reason: str) -> PrunePlan:
    return PrunePlan(0, dict.fromkeys(last.ratios, 0.0), True, reason)


def _next_shares(plan: PrunePlan, last: PruneAttempt, limits: GateLimits) -> tuple[dict[str, float], list[str]]:
    """Return the shares of the next attempt, and in words which branch is to blame, if one is."""
    if not plan.by_student:
        return {branch: plan.share(branch) for branch in last.ratios}, []
    blamed, words = _blame(last, limits)
    shares = {branch: plan.share(branch) * (_BLAMED if branch == blamed else _OTHERS) for branch in last.ratios}
    return shares, words


def _blame(last: PruneAttempt, limits: GateLimits) -> tuple[str | None, list[str]]:
    """Return the branch that lost most, if one stands out, and why in words."""
    drifts = {name: drift for name, drift in last.drifts.items() if last.ratios.get(name)}
    if not drifts:
        return None, []
    if last.ratios.get(FUSION) and max(drifts.values()) <= limits.tau_pass:
        return FUSION, [f"no modality drifted by more than {limits.tau_pass:g}, so it was lost after the encoders"]
    worst = max(drifts, key=drifts.__getitem__)
    others = [drift for name, drift in last.drifts.items() if name != worst]
    if not others or drifts[worst] < _STANDS_OUT * sum(others) / len(others):
        return None, []
    return worst, [f"'{worst}' drifted most, {drifts[worst]:.4f} against {sum(others) / len(others):.4f}"]


def _changes(plan: PrunePlan, shares: Mapping[str, float], epochs: int, last: PruneAttempt) -> str:
    """Say what the next attempt does otherwise, e.g. "prune a 25% -> at most 12%, epochs 20 -> 40"."""
    words = [
        f"prune {branch} {ratio:.0%} -> at most {ratio * shares[branch] / plan.share(branch):.0%}"
        for branch, ratio in last.ratios.items()
        if ratio and shares[branch] != plan.share(branch)
    ]
    if epochs != last.epochs:
        words.append(f"epochs {last.epochs} -> {epochs}")
    if not plan.by_student:
        words.append("the student for the teacher")
    return ", ".join(words)


def follow(
    plan: PrunePlan, attempts: Sequence[PruneAttempt], config: PruneConfig, limits: GateLimits
) -> PrunePlan | None:
    """Return what is to be tried after some attempts; None where the last of them is kept.

    Args:
        plan: The plan of the last attempt.
        attempts: All attempts.
        config: The recipe's section.
        limits: The limits of the gate.
    """
    last = attempts[-1]
    if lets_through(last.row, limits) or config.repair == "off" or not last.ratio:
        return None
    left_s = config.repair_s - sum(each.seconds for each in attempts[1:])
    following = next_plan(plan, attempts, config, limits, left_s)
    return following if following.epochs or not _releases(last.row, limits) else None


def lets_through(row: LedgerRow, limits: GateLimits) -> bool:
    """Whether a row needs no repair: undecided alone, with outputs beyond their limit, it would fail on other samples.

    Args:
        row: A row of the ledger that was judged.
        limits: The limits of the gate.
    """
    return _releases(row, limits) and not _beyond(row, limits)


def _releases(row: LedgerRow, limits: GateLimits) -> bool:
    return limits.releases(row.verdict or "pass")


def _beyond(row: LedgerRow, limits: GateLimits) -> list[str]:
    """Return, where a row is undecided, the divergence that as measured is beyond its limit, in words."""
    if row.verdict != "undecided":
        return []
    return [
        f"{MEASURES[answers.kind]} {answers.divergence.mean:.3g}, more than {limit:g}"
        for answers in row.answers.values()
        if answers.divergence.mean > (limit := limits.divergence(answers.kind))
    ]


def describe_attempts(attempts: Sequence[PruneAttempt], config: PruneConfig, limits: GateLimits) -> str:
    """Say what became of the recipe's pruning where the gate did not let it through; "" where it did.

    Args:
        attempts: All attempts, the first of which is as the recipe has it.
        config: The recipe's section.
        limits: The limits of the gate.
    """
    first, kept = attempts[0], attempts[-1]
    if len(attempts) == 1 and _releases(first.row, limits):
        return ""
    cause = "; ".join((describe_verdict(first.row), *_beyond(first.row, limits)))
    rejected = f"pruned as [prune] asks, the network is not let through on the validation split: {cause}"
    if len(attempts) == 1:
        return f"{rejected}; prune.repair = 'off' leaves it so"
    unmet = "prune.budget is not met: " if config.budget else ""
    if not kept.ratio:
        return (
            f"{rejected}. {unmet}It ships unpruned, with {kept.parameters:,} parameters instead of "
            f"{first.parameters:,}: {kept.reason}"
        )
    if kept.parameters == first.parameters:
        return f"{rejected}. As much is pruned in attempt {len(attempts)}, which is kept: {kept.reason}"
    return (
        f"{rejected}. {unmet}Of the channels {kept.ratio:.0%} went instead of {first.ratio:.0%}, and "
        f"{kept.parameters:,} parameters are left instead of {first.parameters:,}, in attempt {len(attempts)}"
    )


def describe_verdict(row: LedgerRow) -> str:
    """Return the verdict of a row and its reasons in one line; of "undecided" the reason says so itself."""
    reasons, verdict = "; ".join(row.reasons), row.verdict or "pass"
    return reasons if reasons.startswith(verdict) else ", ".join(filter(None, (verdict, reasons)))


def by_student(loss: LossConfig) -> LossConfig:
    """Return the loss of a fine-tune in which the unpruned student takes the teacher's place, and the labels'."""
    return replace(without_teacher(loss), ce=0.0, kd=loss.ce + loss.kd)
