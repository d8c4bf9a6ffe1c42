"""One worker: ``python -m edgekd.workflows.search.worker`` runs trials of a study until there is nothing left to do.

The worker reads its job, one line of JSON, from stdin, and ends when stdin does: a killed search leaves no worker
behind. It writes its progress to stdout, one line of JSON for each event; the study itself is the only result.
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
from typing import TYPE_CHECKING, Protocol

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
from edgekd.workflows.trials import TrialRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna import Study, Trial

    from edgekd.workflows.search.space import Params

#: Errors of one trial that the next need not have; any other error ends the search.
_OF_A_TRIAL = (ModelError, RecipeError, TaskError)


class Emit(Protocol):
    """Writes an event of a worker."""

    def __call__(self, event: str, **facts: object) -> None:
        """Write an event with its facts."""


class _Relay(Silent):
    """Reports the stages of a trial as steps of the trial.

    Args:
        emit: Writes an event.
        trial: Number of the trial.
    """

    def __init__(self, emit: Emit, trial: int) -> None:
        self._emit, self._trial = emit, trial

    def start(self, stage: str) -> None:
        """Report which stage begins."""
        self._emit("advance", trial=self._trial, done=0, total=0, note=stage)

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        """Report how far the stage is."""
        self._emit("advance", trial=self._trial, done=done, total=total, note=f"{stage}: {note}" if note else stage)

    def warn(self, stage: str, message: str) -> None:
        """Pass the warning on."""
        self._emit("warn", trial=self._trial, message=f"{stage}: {message}")


class Worker:
    """Runs trials, one after the other.

    Args:
        job: The job.
        identity: The worker as other workers see it.
        emit: Writes an event.
    """

    def __init__(self, job: WorkerJob, identity: WorkerIdentity, emit: Emit) -> None:
        self._job, self._search, self._identity, self._emit = job, job.search, identity, emit
        self._space, self._cache = job.search.space, Path(job.search.cache)
        self._until = None if job.deadline is None else time.monotonic() + job.deadline
        self._study = open_study(job.search)
        self._trials = TrialRunner(job.search.draft.recipe(), self._cache, job.search.opset)

    def run(self) -> None:
        """Run trials until the study has enough or time is up."""
        while (drawn := self._next()) is not None:
            trial, params = drawn
            self._emit("start", trial=trial.number)
            started = time.monotonic()
            with _beating(trial):
                summary = self._run(trial, params)
            self._emit("finish", trial=trial.number, seconds=time.monotonic() - started, summary=summary)

    def _next(self) -> tuple[Trial, Params] | None:
        """Draw a trial, or return None where the study has enough or time is up.

        One worker of a host draws at a time, so that the study gets no more trials than it is to have.
        """
        with Cache(self._cache).hold("search-next", lambda: None):
            requeue_abandoned(self._study)
            trials = self._study.get_trials(deepcopy=False)
            enough = self._search.trials is not None and count_begun(trials) >= self._search.trials
            if enough or (self._until is not None and time.monotonic() >= self._until):
                return None
            recipe = self._search.draft.recipe()
            facts = self._identity.facts
            self._study.sampler = make_sampler(recipe.seed, facts["host"], self._job.number, len(trials))
            trial = self._study.ask()
            trial.set_user_attr(WORKER, facts)
            trial.set_user_attr(BEAT, time.time())
            return trial, suggest_params(trial, self._space, OWN in trial.user_attrs)

    def _run(self, trial: Trial, params: Params) -> str:
        """Run a trial and record its figures; return them in words."""
        try:
            recipe = self._search.draft.recipe() if OWN in trial.user_attrs else self._space.recipe(params)
            figures = self._trials.measure_variant(recipe, _Relay(self._emit, trial.number))
        except _OF_A_TRIAL as error:
            return _fail(self._study, trial, error)
        except EdgekdError:
            raise  # not the trial's fault
        except Exception as error:  # a defect, the user's code, or no memory: recorded, and this process is done
            _fail(self._study, trial, error)
            raise
        trial.set_user_attr(OUTCOME, asdict(figures))
        trial.set_constraint("gate", float(figures.rejected))  # above 0 the sampler draws elsewhere
        self._study.tell(trial, [figures.metric, figures.latency, figures.drift], skip_if_finished=True)
        known = f"metric {figures.metric:.4f}, latency {figures.latency:.2f}×, drift {figures.drift:.4f}"
        return f"{known}; the gate rejects it" if figures.rejected else known


def _fail(study: Study, trial: Trial, error: Exception) -> str:
    """Record why a trial failed, and return it in words."""
    known = isinstance(error, EdgekdError)
    reason = " ".join(str(error).split()) if known else f"{type(error).__name__}: {' '.join(str(error).split())}"
    trial.set_user_attr(FAILURE, {"kind": type(error).__name__, "reason": reason})
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    return f"failed: {reason}"


@contextmanager
def _beating(trial: Trial) -> Iterator[None]:
    """Record a heartbeat in the study while a trial runs, so that other machines see that its worker is alive."""
    finished = threading.Event()

    def beat() -> None:
        while not finished.wait(BEAT_SECONDS):
            trial.set_user_attr(BEAT, time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _end_with_stdin() -> None:
    """End this process when the search that started it is gone; files that it was writing are written atomically."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Do the job on stdin."""
    # Events have stdout to themselves: what a library prints there goes to stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: str, **facts: object) -> None:
        print(json.dumps({"event": event, **facts}), file=out, flush=True)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the search ends its workers
    job = msgspec.json.decode(sys.stdin.readline(), type=WorkerJob)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        with WorkerIdentity(job.worker, Path(job.search.cache)) as identity:
            Worker(job, identity, emit).run()
    except EdgekdError as error:
        emit("error", kind=type(error).__name__, reason=str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
