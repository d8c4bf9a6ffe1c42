"""Prune until the gate lets the network through: one stage for each attempt, and one that judges it.

An attempt does not depend on the gate, which only decides whether another one follows: whoever changes a limit trains
nothing again that was trained before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from edgekd.stages.stage import Done, StageSpec
from edgekd.stages.trained import PruneAttempt, PruneCheck, Trained
from edgekd.training.pruning.attempts import PrunePlan, describe_attempts, describe_verdict, follow

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.config.recipe import PruneConfig
    from edgekd.gram.verdict import GateLimits

    Tell = Callable[[PruneCheck], str]


def _describe_trained(trained: Trained) -> str:
    left, before = (sum(counts[index] for counts in trained.channels.values()) for index in (0, 1))
    said = f"metric {trained.metric:.4f}, {trained.parameters:,} parameters"
    said = f"{said}, {left} of {before} channels left" if before else said
    return ", ".join(filter(None, (said, trained.longer)))


def _describe_check(checked: PruneCheck) -> str:
    return describe_verdict(checked.row)


PRUNE: StageSpec[Trained] = StageSpec(
    "prune",
    10,
    Trained,
    ("torch-pruning",),
    "remove channels of the student and fine-tune what is left",
    _describe_trained,
)
PRUNE_CHECK: StageSpec[PruneCheck] = StageSpec(
    "prune_check", 4, PruneCheck, (), "judge the pruned network on the validation split", _describe_check
)


class PruningStages(Protocol):
    """Runs the stages of one attempt, or reads their results."""

    def prune(self, plan: PrunePlan, label: str) -> Done[Trained]:
        """Prune and fine-tune the student.

        Args:
            plan: How.
            label: What tells the attempt from the others; "" for the first.
        """

    def check(self, pruned: Done[Trained], label: str, tell: Tell) -> Done[PruneCheck]:
        """Judge a pruned network.

        Args:
            pruned: The network.
            label: As for :meth:`prune`.
            tell: Returns what the user is warned of; "" for nothing.
        """

    @property
    def limits(self) -> GateLimits:
        """The limits of the gate."""


def prune_until_released(stages: PruningStages, config: PruneConfig) -> Done[Trained]:
    """Prune until the gate lets the network through; the last resort is the unpruned student itself.

    Args:
        stages: Runs an attempt.
        config: The recipe's section.

    Returns:
        The network of the last attempt, with all attempts.
    """
    attempts: tuple[PruneAttempt, ...] = ()
    plan = PrunePlan(config.epochs)
    while True:
        label = f"attempt {len(attempts) + 1}" if attempts else ""
        pruned = stages.prune(plan, label)
        if not attempts and not _ratio(pruned.result):
            return pruned  # nothing was to be pruned, or could be

        def attempt(checked: PruneCheck, trained: Trained = pruned.result, plan: PrunePlan = plan) -> PruneAttempt:
            return _attempt(trained, plan, checked)

        def tell(checked: PruneCheck, plan: PrunePlan = plan, before: tuple[PruneAttempt, ...] = attempts) -> str:
            tried = (*before, attempt(checked))
            return "" if follow(plan, tried, config, stages.limits) else describe_attempts(tried, config, stages.limits)

        checked = stages.check(pruned, label, tell)
        attempts = (*attempts, attempt(checked.result))
        following = follow(plan, attempts, config, stages.limits)
        if following is None:
            return replace(pruned, result=replace(pruned.result, attempts=attempts))
        plan = following


def _attempt(trained: Trained, plan: PrunePlan, checked: PruneCheck) -> PruneAttempt:
    return PruneAttempt(
        ratio=_ratio(trained),
        ratios={branch: 1 - left / before for branch, (left, before) in trained.channels.items()},
        epochs=trained.epochs,
        parameters=trained.parameters,
        seconds=trained.seconds,
        row=checked.row,
        reason=plan.reason,
        drifts=checked.drifts,
    )


def _ratio(trained: Trained) -> float:
    """Return the share that went of all channels that could."""
    before = sum(before for _, before in trained.channels.values())
    return 1 - sum(left for left, _ in trained.channels.values()) / before if before else 0.0
