"""One worker: ``python -m edgekd.workflows.search.worker`` runs trials of a study until there is nothing left to do.

It reads its job, one line of JSON, from stdin, and ends when stdin does: a killed search leaves no worker behind. What
it is at it tells on stdout, a line of JSON each; the study itself is the only result.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from optuna.trial import TrialState

from edgekd.errors import EdgekdError, ModelError, RecipeError, TaskError
from edgekd.stages.cache import Cache
from edgekd.stages.progress import Silent
from edgekd.workflows.search.job import BEAT, BEAT_SECONDS, FAILURE, OUTCOME, OWN, WORKER, WorkerJob
from edgekd.workflows.search.study import (
    WorkerIdentity,
    count_begun,
    make_sampler,
    open_study,
    requeue_abandoned,
    suggest_params,
)
from edgekd.workflows.search.trial import SearchTrials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study, Trial

    from edgekd.workflows.search.space import Params

#: What may be wrong with one trial and right with the next; anything else ends the search.
_OF_A_TRIAL = (ModelError, RecipeError, TaskError)


class _Relay(Silent):
    """Tells of a trial's stages as of the steps of one."""

    def __init__(self, tell: Callable[..., None], trial: int) -> None:
        self._tell, self._trial = tell, trial

    def start(self, stage: str) -> None:
        """Tell which stage begins."""
        self._tell("advance", trial=self._trial, done=0, total=0, note=stage)

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Tell how far it is."""
        self._tell("advance", trial=self._trial, done=done, total=total, note=f"{stage}: {note}" if note else stage)

    def warn(self, stage: str, message: str) -> None:
        """Pass it on."""
        self._tell("warn", trial=self._trial, message=f"{stage}: {message}")


class Worker:
    """Runs trials, one after the other.

    Args:
        job: what to do.
        identity: what others see of this worker.
        tell: says what it is at.
    """

    def __init__(self, job: WorkerJob, identity: WorkerIdentity, tell: Callable[..., None]) -> None:
        self._job, self._plan, self._identity, self._tell = job, job.plan, identity, tell
        self._space, self._cache = job.plan.space, Path(job.plan.cache)
        self._until = None if job.deadline is None else time.monotonic() + job.deadline
        self._study = open_study(job.plan)
        self._bench = SearchTrials(job.plan.draft.recipe(), job.plan.opset, self._cache)

    def run(self) -> None:
        """Run trials until the study has enough or time is up."""
        while (drawn := self._next()) is not None:
            trial, params = drawn
            self._tell("start", trial=trial.number)
            started = time.monotonic()
            with _beating(trial):
                told = self._try(trial, params)
            self._tell("finish", trial=trial.number, seconds=time.monotonic() - started, summary=told)

    def _next(self) -> tuple[Trial, Params] | None:
        """Draw a trial; one worker of a host at a time, so that the study gets no more trials than it is to have."""
        with Cache(self._cache).hold("search-next", lambda: None):
            requeue_abandoned(self._study)
            trials = self._study.get_trials(deepcopy=False)
            enough = self._plan.trials is not None and count_begun(trials) >= self._plan.trials
            if enough or (self._until is not None and time.monotonic() >= self._until):
                return None
            recipe = self._plan.draft.recipe()
            facts = self._identity.facts
            self._study.sampler = make_sampler(recipe.seed, facts["host"], self._job.number, len(trials))
            trial = self._study.ask()
            trial.set_user_attr(WORKER, facts)
            trial.set_user_attr(BEAT, time.time())
            return trial, suggest_params(trial, self._space, OWN in trial.user_attrs)

    def _try(self, trial: Trial, params: Params) -> str:
        """Run a trial and record what came of it; return it in words."""
        try:
            recipe = self._plan.draft.recipe() if OWN in trial.user_attrs else self._space.recipe(params)
            found = self._bench(recipe, _Relay(self._tell, trial.number))
        except _OF_A_TRIAL as error:
            return _fail(self._study, trial, error)
        except EdgekdError:
            raise  # not the trial's fault
        except Exception as error:  # a defect, the user's code, or no memory: recorded, and this process is done
            _fail(self._study, trial, error)
            raise
        trial.set_user_attr(OUTCOME, asdict(found))
        self._study.tell(trial, [found.metric, found.latency, found.drift], skip_if_finished=True)
        return f"metric {found.metric:.4f}, latency {found.latency:.2f}×, drift {found.drift:.4f}"


def _fail(study: Study, trial: Trial, error: Exception) -> str:
    """Record why a trial failed, and return it in words."""
    known = isinstance(error, EdgekdError)
    reason = " ".join(str(error).split()) if known else f"{type(error).__name__}: {' '.join(str(error).split())}"
    trial.set_user_attr(FAILURE, {"kind": type(error).__name__, "reason": reason})
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    return f"failed: {reason}"


@contextmanager
def _beating(trial: Trial) -> Iterator[None]:
    """Let other machines see that a trial's worker is alive."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            trial.set_user_attr(BEAT, time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _end_with_stdin() -> None:
    """End this process when the search that started it is gone; what it was at is written atomically."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Do the job on stdin."""
    # What is told gets stdout to itself: what a library prints there goes to stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}), file=out, flush=True)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the search ends its workers
    job = msgspec.json.decode(sys.stdin.readline(), type=WorkerJob)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        with WorkerIdentity(job.worker, Path(job.plan.cache)) as identity:
            Worker(job, identity, tell).run()
    except EdgekdError as error:
        tell("error", kind=type(error).__name__, reason=str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
