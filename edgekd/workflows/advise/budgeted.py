"""The trials of an advice: each is run once, and the seconds that they take are added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.report.format import duration
from edgekd.stages.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.stages.progress import Observer
    from edgekd.workflows.advise.budget import TrialCost, TrialSize
    from edgekd.workflows.advise.candidates import LossVariant
    from edgekd.workflows.advise.result import AdviceTrial

#: The stage that all trials are shown as.
TRIALS = "trials"

#: A block of trials that takes longer than expected is finished all the same, up to this multiple of the limit.
OVERRUN = 1.1

#: A loss that was not trained yet takes at most this many times as long as the slowest that was: the timing before all
#: trials may have come out too long.
_DEARER = 1.5


class TrialProgress(Silent):
    """Receives the progress of each trial, and reports all of them to the user's observer as one stage.

    Args:
        observer: The user's observer.
        clock: Returns the time in seconds.

    Attributes:
        clock: As given.
        ticks: The time at which each epoch of the current trial ended, in seconds.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float]) -> None:
        self._observer, self.clock = observer, clock
        self._warned: set[str] = set()
        self._at: tuple[int, int, str] = (0, 1, "")
        self.ticks: list[float] = []

    def begin(self, what: str, done: int, total: int, left: float) -> None:
        """Report that a trial begins: ``done`` of about ``total`` are over, and ``left`` seconds remain."""
        self._at = (done, total, f"{done + 1} of {total}, {duration(max(left, 0))} left: {what}")
        self._observer.advance(TRIALS, *self._at)

    def advance(self, stage: str, done: int, total: int, note: str) -> None:  # noqa: ARG002 - the protocol's
        """Report that an epoch of the trial is over."""
        self.ticks.append(self.clock())
        self._observer.advance(TRIALS, self._at[0], self._at[1], f"{self._at[2]}, epoch {done}/{total}")

    def warn(self, stage: str, message: str) -> None:
        """Pass on a warning that no other trial has given."""
        if message not in self._warned:
            self._warned.add(message)
            self._observer.warn(stage, message)


@dataclass(frozen=True)
class TrialPlan:
    """Length and cost of trials, and the budget for them.

    Attributes:
        first_seed: Seed of the first block of trials; the others follow it.
        size: Epochs of each trial, and seeds with which a variant joins the comparison.
        cost: Expected cost of a trial of a variant that was not run yet.
        budget: Seconds for everything.
        spent: Seconds that are spent before the first trial.
    """

    first_seed: int
    size: TrialSize
    cost: TrialCost
    budget: float
    spent: float

    @property
    def epochs(self) -> int:
        """Epochs of each trial."""
        return self.size.epochs

    @property
    def expected(self) -> float:
        """Seconds that a trial is expected to take."""
        return self.cost.of(self.epochs)


class BudgetedTrials:
    """Runs trials of one length, and adds up the seconds that they take.

    Args:
        run_trial: Trains a loss variant with a seed for some epochs, or reads the result of an earlier run.
        progress: Receives the progress of each trial.
        plan: Length and cost of the trials, and the budget.

    Attributes:
        plan: As given.
        spent: Seconds that are spent so far.
    """

    def __init__(
        self,
        run_trial: Callable[[LossVariant, int, int], AdviceTrial],
        progress: TrialProgress,
        plan: TrialPlan,
    ) -> None:
        self._run_trial, self._progress = run_trial, progress
        self.plan, self.spent = plan, plan.spent
        self._done: dict[tuple[str, int], AdviceTrial] = {}
        self._seconds: dict[str, float] = {}

    @property
    def count(self) -> int:
        """The number of trials that were run."""
        return len(self._done)

    def __call__(self, variant: LossVariant, index: int) -> AdviceTrial:
        """Return the trial of a loss variant with the seed of this index, counted from 0."""
        if (variant.name, index) not in self._done:
            plan, seed = self.plan, self.plan.first_seed + index
            left = plan.budget - self.spent
            mean = self.spent / self.count if self.count else plan.expected
            total = self.count + max(1, int(left / mean))
            self._progress.begin(f"{variant.name}, seed {seed}", self.count, total, left)
            trial = self._run_trial(variant, seed, plan.epochs)
            self._done[variant.name, index] = trial
            self._seconds[variant.name] = trial.seconds
            self.spent += trial.seconds
        return self._done[variant.name, index]

    def expected(self, variants: Sequence[LossVariant], index: int) -> float:
        """Return the seconds that the trials of these variants with one seed will take; finished ones take none."""
        usual = self.plan.expected
        if self._seconds:
            usual = min(usual, _DEARER * max(self._seconds.values()))
        names = [variant.name for variant in variants if (variant.name, index) not in self._done]
        return sum(self._seconds.get(name, usual) for name in names)

    def join(self, variant: LossVariant, seeds: int, limit: float) -> list[AdviceTrial]:
        """Run the first trials of a variant, unless they do not fit into the limit.

        Args:
            variant: The loss variant.
            seeds: Number of trials.
            limit: Seconds that may be spent in all.

        Returns:
            The trials in the order of their seeds: none where they do not fit, and fewer where they took longer than
            expected, or where the last of them failed.
        """
        joined: list[AdviceTrial] = []
        if self.spent + sum(self.expected([variant], index) for index in range(seeds)) > limit:
            return joined
        for index in range(seeds):
            if self.spent + self.expected([variant], index) > OVERRUN * limit:
                break
            joined.append(self(variant, index))
            if joined[-1].validation is None:
                break
        return joined

    def charge(self, seconds: float) -> None:
        """Add seconds that were spent on something else than a trial."""
        self.spent += seconds

    def block(self, variants: Sequence[LossVariant], index: int, limit: float) -> dict[str, AdviceTrial] | None:
        """Run the trials of one seed for all of these variants, unless they do not fit into the limit.

        Args:
            variants: The loss variants.
            index: Index of the seed, counted from 0.
            limit: Seconds that may be spent in all.

        Returns:
            The trial of each variant, by the variant's name; None where the block does not fit.
        """
        if self.spent + self.expected(variants, index) > limit:
            return None
        trials = {}
        for variant in variants:
            if self.spent + self.expected([variant], index) > OVERRUN * limit:
                return None
            trials[variant.name] = self(variant, index)
        return trials
