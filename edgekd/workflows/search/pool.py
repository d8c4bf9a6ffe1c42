"""The worker processes of one host: they are started, their events are passed on, and those that die are replaced."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from optuna.trial import TrialState

from edgekd import errors
from edgekd.errors import EdgekdError, ModelError
from edgekd.files import scratch_root
from edgekd.workflows.search.job import WORKER, WorkerJob
from edgekd.workflows.search.study import requeue

if TYPE_CHECKING:
    from optuna import Study

    from edgekd.files import JsonObject
    from edgekd.stages.progress import Observer
    from edgekd.workflows.search.job import SearchJob

_WORKER = (sys.executable, "-m", "edgekd.workflows.search.worker")

#: Events of all workers, each with the process that it comes from; None at the end of a process's events.
Events: TypeAlias = "queue.Queue[tuple[_WorkerProcess, JsonObject | None]]"

#: The most lines and bytes of a dead worker's stderr that an error quotes.
_QUOTED_LINES, _QUOTED_BYTES = 3, 4096


class _WorkerProcess:
    """The process of one worker. Its events go to a queue, and None at their end.

    Args:
        job: The worker's job.
        events: The queue for the events of all workers.
        threads: Number of threads for the worker's computations.

    Attributes:
        job: As given.
        trials: Numbers of the trials that the worker began, in order.
    """

    def __init__(self, job: WorkerJob, events: Events, threads: int) -> None:
        self.job = job
        self.trials: list[int] = []
        self._log = tempfile.TemporaryFile(dir=scratch_root())  # noqa: SIM115 - a pipe that nobody reads would fill; end() closes it
        self._process = subprocess.Popen(
            _WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            encoding="utf-8",
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead already, and its stderr says why
            self._process.stdin.write(msgspec.json.encode(job).decode() + "\n")
            self._process.stdin.flush()  # and stays open: its end would be the worker's
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: Events) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # not the half of one that was killed
                events.put((self, json.loads(line)))
        events.put((self, None))

    def end(self) -> None:
        """End the process if it still runs."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what the worker did not read is lost with it
                pipe.close()
        self._process.wait()

    def wait(self) -> str:
        """Wait for the end of a process that has closed its stdout, which a worker does only by ending.

        Returns:
            The signal or the exit code that ended it; "" where it ended as it should.
        """
        code = self._process.wait()
        return "" if code == 0 else signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def last_words(self) -> str:
        """Return the last lines that the worker wrote to stderr."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _QUOTED_BYTES))
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()[-_QUOTED_LINES:]
        return " / ".join(line.strip() for line in lines) or "it said nothing on stderr"


class WorkerPool:
    """Keeps workers running trials of a study until there is nothing left to do.

    Args:
        study: The study.
        search: The search.
        workers: Number of workers.
        until: Monotonic time in seconds after which no more trial is begun; None for no limit.
        observer: Receives the progress of each trial as of a stage.
    """

    def __init__(self, study: Study, search: SearchJob, workers: int, until: float | None, observer: Observer) -> None:
        self._study, self._search, self._until, self._observer = study, search, until, observer
        self._workers = workers
        self._threads = max(1, (os.cpu_count() or 1) // workers)
        self._events: Events = queue.Queue()
        self._running: list[_WorkerProcess] = []

    def run(self) -> None:
        """Start the workers and wait for them; however this ends, no worker remains, and no trial that nobody runs.

        Raises:
            EdgekdError: An error that ends a worker ends them all, e.g. a missing package; or a worker ended before
                its first trial.
        """
        try:
            for number in range(self._workers):
                self._start(number)
            while self._running:
                process, event = self._events.get()
                if event is None:
                    self._end(process)
                else:
                    self._pass_on(process, event)
        finally:
            for process in self._running:
                process.end()
                self._requeue(process, blame=False)

    def _start(self, number: int) -> None:
        left = None if self._until is None else self._until - time.monotonic()
        job = WorkerJob(self._search, uuid.uuid4().hex, number, left)
        self._running.append(_WorkerProcess(job, self._events, self._threads))

    def _pass_on(self, process: _WorkerProcess, event: JsonObject) -> None:
        """Pass a worker's event on to the observer, or raise the error that ended the worker."""
        kind, stage = event["event"], f"trial {event.get('trial')}"
        if kind == "start":
            process.trials.append(event["trial"])
            self._observer.start(stage)
        elif kind == "advance":
            self._observer.advance(stage, event["done"], event["total"], event["note"])
        elif kind == "warn":
            self._observer.warn(stage, event["message"])
        elif kind == "finish":
            self._observer.finish(stage, event["seconds"], False, event["summary"])
        else:
            raise _error(event["kind"], event["reason"])

    def _end(self, process: _WorkerProcess) -> None:
        """End a worker's process, and start another worker where it died."""
        self._running.remove(process)
        how = process.wait()
        if how:
            self._replace(process, how)
        process.end()

    def _replace(self, process: _WorkerProcess, how: str) -> None:
        if not process.trials:
            raise ModelError(
                f"a worker of the search ended before its first trial ({how}); it last said: {process.last_words()}"
            )
        interrupted = self._requeue(process, blame=True)
        summary = f"its worker ended ({how})" + ("" if interrupted else f"; it last said: {process.last_words()}")
        self._observer.finish(f"trial {process.trials[-1]}", 0.0, False, summary)
        self._start(process.job.number)

    def _requeue(self, process: _WorkerProcess, blame: bool) -> bool:
        """Ask again for the trial that a worker was running; return whether there was one."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        mine = [trial for trial in running if trial.user_attrs.get(WORKER, {}).get("name") == process.job.worker]
        for trial in mine:
            requeue(self._study, trial, blame)
        return bool(mine)


def _error(kind: str, reason: str) -> EdgekdError:
    """Return a worker's error as the class that it had there."""
    known = getattr(errors, kind, None)
    return known(reason) if isinstance(known, type) and issubclass(known, EdgekdError) else ModelError(reason)
