"""Where trials are made, each once, and what they cost is kept account of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.report.format import duration
from edgekd.stages.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.stages.progress import Observer
    from edgekd.workflows.advise.budget import TrialCost
    from edgekd.workflows.advise.candidates import LossVariant
    from edgekd.workflows.advise.result import AdviceTrial

#: The one line that all trials share with the observer.
TRIALS = "trials"

#: A block of trials that was begun is finished, though it takes longer than expected, up to this part of the budget.
OVERRUN = 1.1


class TrialProgress(Silent):
    """Hears of each trial and makes all of them one stage of the user's observer.

    Args:
        observer: the user's.
        clock: gives seconds.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float]) -> None:
        self._observer, self._clock = observer, clock
        self._warned: set[str] = set()
        self._at: tuple[int, int, str] = (0, 1, "")
        #: When each epoch of the trial ended.
        self.ticks: list[float] = []

    def begin(self, what: str, done: int, total: int, left: float) -> None:
        """A trial begins: ``done`` of about ``total`` are over, and ``left`` seconds of the budget remain."""
        self._at = (done, total, f"{done + 1} of {total}, {duration(max(left, 0))} left: {what}")
        self._observer.advance(TRIALS, *self._at)

    def advance(self, stage: str, done: int, total: int, note: str) -> None:  # noqa: ARG002 - the protocol's
        """An epoch of the trial is over."""
        self.ticks.append(self._clock())
        self._observer.advance(TRIALS, self._at[0], self._at[1], f"{self._at[2]}, epoch {done}/{total}")

    def warn(self, stage: str, message: str) -> None:
        """Pass on what was not said of another trial already."""
        if message not in self._warned:
            self._warned.add(message)
            self._observer.warn(stage, message)


class BudgetedTrials:
    """Makes trials of one length, and adds up what they took.

    Args:
        make: trains a contestant with a seed for some epochs, or reads what an earlier run found.
        narrator: hears of each.
        first_seed: trials are numbered from 0 on; this is added.
        epochs: of each trial.
        cost: what a trial is expected to take, until one of the same contestant was made.
        budget: seconds for everything.
        spent: seconds that are gone already.
    """

    def __init__(
        self,
        make: Callable[[LossVariant, int, int], AdviceTrial],
        narrator: TrialProgress,
        first_seed: int,
        epochs: int,
        cost: TrialCost,
        budget: float,
        spent: float,
    ) -> None:
        self._make, self._narrator, self._first_seed = make, narrator, first_seed
        self.epochs, self.cost, self.budget, self.spent = epochs, cost, budget, spent
        self._done: dict[tuple[str, int], AdviceTrial] = {}
        self._seconds: dict[str, float] = {}

    @property
    def trials(self) -> int:
        """How many were made."""
        return len(self._done)

    def __call__(self, one: LossVariant, index: int) -> AdviceTrial:
        """Return the trial of a contestant with the seed of that number."""
        if (one.name, index) not in self._done:
            left = self.budget - self.spent
            mean = self.spent / self.trials if self.trials else self.cost.of(self.epochs)
            total = self.trials + max(1, int(left / mean))
            self._narrator.begin(f"{one.name}, seed {self._first_seed + index}", self.trials, total, left)
            trial = self._make(one, self._first_seed + index, self.epochs)
            self._done[one.name, index] = trial
            self._seconds[one.name] = trial.seconds
            self.spent += trial.seconds
        return self._done[one.name, index]

    def expected(self, field: Sequence[LossVariant], index: int) -> float:
        """Return the seconds that trials of these contestants with one seed will take; one that was made takes none."""
        usual = self.cost.of(self.epochs)
        return sum(self._seconds.get(one.name, usual) for one in field if (one.name, index) not in self._done)

    def block(self, field: Sequence[LossVariant], index: int, limit: float) -> dict[str, AdviceTrial] | None:
        """Make the trials of one seed for all of these contestants; None where the block does not fit into the limit.

        Args:
            field: the contestants.
            index: number of the seed.
            limit: seconds up to which may be spent.
        """
        if self.spent + self.expected(field, index) > limit:
            return None
        made = {}
        for one in field:
            if self.spent + self.expected([one], index) > OVERRUN * limit:
                return None
            made[one.name] = self(one, index)
        return made
