"""Prune until the gate lets the network through: attempt after attempt, each from the unpruned student."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

from edgekd.stages.artifacts import PruneAttempt
from edgekd.stages.cache import ROUNDS
from edgekd.stages.sealed import read_sealed, write_sealed
from edgekd.training.loop import distributed
from edgekd.training.pruning.attempts import first_plan, next_plan
from edgekd.training.pruning.tracing import copy_network

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from edgekd.config.recipe import PruneConfig
    from edgekd.gram.verdict import GateLimits
    from edgekd.training.loop.loop import Epoch
    from edgekd.training.pruning.attempts import PrunePlan
    from edgekd.training.pruning.groups import History
    from edgekd.training.pruning.judge import PruneJudge
    from edgekd.training.stage_run import StageRun

#: Record of an attempt that was judged, in its folder.
_ATTEMPT = "attempt.json"


@dataclass(frozen=True)
class PrunedNetwork:
    """What came of one attempt.

    Attributes:
        model: The pruned network.
        removed: The channels that were removed.
        history: One entry for each epoch.
        left: Of each branch how many of the channels that could go are left, and how many there were.
    """

    model: nn.Module
    removed: History = field(default_factory=list)
    history: list[Epoch] = field(default_factory=list)
    left: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float]:
        """The share that went of the channels of each branch that could."""
        return {branch: 1 - left / before for branch, (left, before) in self.left.items()}

    @property
    def ratio(self) -> float:
        """The share that went of all channels that could."""
        before = sum(before for _, before in self.left.values())
        return 1 - sum(left for left, _ in self.left.values()) / before if before else 0.0


class Prune(Protocol):
    """Makes one attempt."""

    def __call__(self, plan: PrunePlan, model: nn.Module, folder: Path, done: int) -> PrunedNetwork:
        """Prune and fine-tune a network in place.

        Args:
            plan: How.
            model: A copy of the unpruned student.
            folder: Folder from which a killed run goes on.
            done: Number of epochs of all attempts before.
        """


def prune_until_released(
    prune: Prune, judge: PruneJudge, model: nn.Module, modalities: list[str], config: PruneConfig, stage: StageRun
) -> tuple[PrunedNetwork, tuple[PruneAttempt, ...]]:
    """Prune until the gate lets the network through; the last resort is the unpruned student itself.

    A killed run goes on in the attempt in which it was killed: those before it are on record, with the time that they
    took, so what was decided is decided again.

    Args:
        prune: Makes an attempt.
        judge: Judges what comes of it.
        model: The unpruned student, which the first attempt prunes in place.
        modalities: Names of the modalities.
        config: The recipe's section.
        stage: The stage's run.

    Returns:
        The last attempt's network, and all attempts.
    """
    unpruned = copy_network(model)  # a fine-tune freezes the student that holds it
    attempts: list[PruneAttempt] = []
    plan, done = first_plan(config, modalities), 0
    while True:
        number = len(attempts) + 1
        folder = stage.folder / ROUNDS / (f"attempt-{number}" if attempts else "")
        total = done + config.steps * plan.epochs
        if attempts:
            _tell(stage, done, total, f"attempt {number}: {plan.reason}")
        recorded = distributed.broadcast_object(_recorded(folder) if distributed.is_main() else None)
        attempt: PruneAttempt | None = recorded
        if attempt is None or _ends(attempt, config, judge.limits):
            began = time.monotonic()
            pruned = prune(plan, copy_network(unpruned) if attempts else model, folder, done)
            if attempt is None:
                attempt = _judge(judge, pruned, plan, time.monotonic() - began, folder)
            if _ends(attempt, config, judge.limits):
                _tell(stage, total, total, _verdict(number, attempt))
                return pruned, (*attempts, attempt)
        _tell(stage, total, total, _verdict(number, attempt))
        attempts.append(attempt)
        spent_s = sum(each.seconds for each in attempts[1:])
        plan, done = next_plan(plan, attempt, config, judge.limits, config.repair_s - spent_s), total


def _ends(attempt: PruneAttempt, config: PruneConfig, limits: GateLimits) -> bool:
    """Whether no attempt follows."""
    verdict = attempt.row.verdict or "pass"
    return limits.releases(verdict) or config.repair == "off" or not attempt.ratio


def _judge(judge: PruneJudge, pruned: PrunedNetwork, plan: PrunePlan, seconds: float, folder: Path) -> PruneAttempt:
    """Judge a network, and keep a record of that for a run that goes on after a kill; rank 0 does both."""
    attempt = None
    if distributed.is_main():
        judged = judge(pruned.model)
        attempt = PruneAttempt(
            ratio=pruned.ratio,
            ratios=pruned.ratios,
            epochs=plan.epochs,
            parameters=sum(p.numel() for p in pruned.model.parameters()),
            seconds=seconds,
            row=judged.row,
            reason=plan.reason,
            drifts=judged.drifts,
        )
        write_sealed(folder / _ATTEMPT, msgspec.to_builtins(attempt))
    result: PruneAttempt = distributed.broadcast_object(attempt)
    return result


def _recorded(folder: Path) -> PruneAttempt | None:
    """Return an attempt that was judged before a kill; where its record is damaged, it is judged again."""
    path = folder / _ATTEMPT
    content = read_sealed(path) if path.is_file() else None
    return None if content is None else msgspec.convert(content, PruneAttempt)


def _tell(stage: StageRun, done: int, total: int, note: str) -> None:
    if distributed.is_main():
        stage.report.advance(done, total, note)


def _verdict(number: int, attempt: PruneAttempt) -> str:
    return f"attempt {number}: {attempt.row.verdict}" + "".join(f", {reason}" for reason in attempt.row.reasons)


def describe_repair(attempts: tuple[PruneAttempt, ...], config: PruneConfig) -> str:
    """Say what became of the recipe's pruning where the gate rejected it; "" where it did not.

    Args:
        attempts: All attempts, the first of which is as the recipe has it; none where nobody judged.
        config: The recipe's section.
    """
    if not attempts:
        return ""
    first, kept = attempts[0], attempts[-1]
    said = f"on the validation split the gate said of the network pruned as [prune] asks: {first.row.verdict}, "
    said += "; ".join(first.row.reasons)
    if len(attempts) == 1:
        return f"{said}; prune.repair = 'off' leaves it so" if first.row.verdict == "fail" else ""
    unmet = "prune.budget is not met: " if config.budget else ""
    if not kept.ratio:
        return f"{said}. {unmet}{kept.reason}. It ships with its {kept.parameters:,} parameters instead of " + (
            f"{first.parameters:,}; more prune.epochs, less pruning, or more prune.repair_s may prune it after all"
        )
    return (
        f"{said}. {unmet}{kept.ratio:.0%} of the channels went instead of {first.ratio:.0%}, {kept.parameters:,} "
        f"parameters are left instead of {first.parameters:,}, in attempt {len(attempts)}, of {kept.epochs} epochs"
    )
