"""What to try next where the gate rejects a pruned network: prune less, branch by branch, and tune longer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgekd.config.recipe import Term
from edgekd.training.pruning.groups import FUSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.config.recipe import LossConfig, PruneConfig
    from edgekd.gram.verdict import GateLimits
    from edgekd.stages.artifacts import PruneAttempt

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
        shares: For each branch the share that it gives of the channels that the recipe asks of it: 1 for all.
        epochs: Number of epochs of each fine-tune.
        by_student: Whether the unpruned student takes the teacher's place in the fine-tune, and the labels'. The gate
            asks for the student's answers; a fine-tune by the teacher goes on learning what the student had not.
        reason: What is changed after the attempt before, and why; "" for the first.
    """

    shares: Mapping[str, float]
    epochs: int
    by_student: bool = False
    reason: str = ""

    @property
    def prunes(self) -> bool:
        """Whether anything is to be removed."""
        return any(self.shares.values())


def first_plan(config: PruneConfig, modalities: list[str]) -> PrunePlan:
    """Return the plan that is what the recipe says."""
    return PrunePlan(dict.fromkeys((*modalities, FUSION), 1.0), config.epochs)


def next_plan(plan: PrunePlan, last: PruneAttempt, config: PruneConfig, limits: GateLimits, left_s: float) -> PrunePlan:
    """Return what to try after an attempt that the gate rejected.

    Where the metric did not fall, the network did not lose what it knew but learned something else: it is pruned as
    before and tuned by the student. Otherwise every branch gives half of what it gave, and one that is to blame a
    quarter. The fine-tune takes twice as long, or as long as before where there is no time for that.

    Args:
        plan: The plan of that attempt.
        last: What came of it.
        config: The recipe's section.
        limits: The limits of the gate.
        left_s: Seconds that are left for further attempts.
    """
    shares, blame = _next_shares(plan, last, limits)
    cause = f"{last.row.verdict}, {'; '.join((*last.row.reasons, *blame))}"
    if max(shares.values()) < _LEAST:
        return _unpruned(plan, f"the student stays unpruned, because so little is not worth pruning: {cause}")
    longer = min(_LONGER * plan.epochs, _LONGEST * config.epochs)
    times = {epochs: last.seconds * epochs / plan.epochs for epochs in (longer, plan.epochs)}
    epochs = next((epochs for epochs, seconds in times.items() if seconds <= left_s), None)
    if epochs is None:
        return _unpruned(
            plan,
            f"the student stays unpruned, because another attempt takes about {times[plan.epochs]:.0f} s, and of "
            f"prune.repair_s = {config.repair_s:g} {max(left_s, 0):.0f} s are left: {cause}",
        )
    return PrunePlan(shares, epochs, True, f"{_changes(plan, shares, epochs, last)}, because of {cause}")


def _unpruned(plan: PrunePlan, reason: str) -> PrunePlan:
    return PrunePlan(dict.fromkeys(plan.shares, 0.0), 0, True, reason)


def _next_shares(plan: PrunePlan, last: PruneAttempt, limits: GateLimits) -> tuple[dict[str, float], list[str]]:
    """Return the shares of the next attempt, and in words which branch is to blame, if one is."""
    loss = last.row.loss
    if loss is not None and loss.mean <= 0 and not plan.by_student:
        return dict(plan.shares), ["the metric did not fall, so the fine-tune led it elsewhere"]
    blamed, words = _blame(plan, last, limits)
    shares = {branch: share * (_BLAMED if branch == blamed else _OTHERS) for branch, share in plan.shares.items()}
    return shares, words


def _blame(plan: PrunePlan, last: PruneAttempt, limits: GateLimits) -> tuple[str | None, list[str]]:
    """Return the branch that lost most, if one stands out, and why in words."""
    drifts = {name: drift for name, drift in last.drifts.items() if plan.shares.get(name)}
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
    """Say what the next attempt does otherwise, e.g. "prune a 25% -> 12%, epochs 20 -> 40"."""
    words = [
        f"prune {branch} {ratio:.0%} -> {ratio * shares[branch] / plan.shares[branch]:.0%}"
        for branch, ratio in last.ratios.items()
        if ratio and shares[branch] != plan.shares[branch]
    ]
    if epochs != plan.epochs:
        words.append(f"epochs {plan.epochs} -> {epochs}")
    if not plan.by_student:
        words.append("the student for the teacher")
    return ", ".join(words)


def by_student(loss: LossConfig) -> LossConfig:
    """Return the loss of a fine-tune in which the unpruned student takes the teacher's place, and the labels'."""
    extra = {name: _without_teacher(value) for name, value in loss.extra.items()}
    return replace(loss, ce=0.0, kd=loss.ce + loss.kd, extra=extra)


def _without_teacher(value: float | Term) -> float | Term:
    """Return a loss without taps of the teacher's own, which the student does not have."""
    return replace(value, teacher={}) if isinstance(value, Term) else value
