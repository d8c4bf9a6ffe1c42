"""The workers of one host: started, heard, and replaced when they die."""

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
from typing import TYPE_CHECKING, Any

import msgspec
from optuna.trial import TrialState

from edgekd import errors
from edgekd.errors import EdgekdError, ModelError
from edgekd.workflows.search.job import WORKER, WorkerJob
from edgekd.workflows.search.study import requeue

if TYPE_CHECKING:
    from optuna import Study

    from edgekd.stages.progress import Observer
    from edgekd.workflows.search.job import SearchJob

_WORKER = (sys.executable, "-m", "edgekd.workflows.search.worker")

#: What an error quotes of a dead worker's stderr.
_QUOTED_LINES, _QUOTED_BYTES = 3, 4096


class _WorkerProcess:
    """A worker's process, whose every word goes to one queue; None at the end of its words."""

    def __init__(
        self, job: WorkerJob, heard: queue.Queue[tuple[_WorkerProcess, dict[str, Any] | None]], threads: int
    ) -> None:
        self.job = job
        self.tried: list[int] = []  # trials, in order
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads would fill; end() closes it
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
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()

    def _listen(self, heard: queue.Queue[tuple[_WorkerProcess, dict[str, Any] | None]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # not the half of one that was killed
                heard.put((self, json.loads(line)))
        heard.put((self, None))

    def end(self) -> None:
        """End the process if it runs still."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what it did not read is lost with it
                pipe.close()
        self._process.wait()

    def wait(self) -> str:
        """Wait for the end of a process that has closed its stdout; return how it ended, "" where it was as it should.

        A worker closes its stdout only by ending.
        """
        code = self._process.wait()
        return "" if code == 0 else signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def last_words(self) -> str:
        """Return the end of what it said on stderr."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _QUOTED_BYTES))
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()[-_QUOTED_LINES:]
        return " / ".join(line.strip() for line in lines) or "it said nothing on stderr"


class WorkerPool:
    """Keeps workers at a study until there is nothing left to do.

    Args:
        study: what they work at.
        plan: what they are told.
        workers: how many.
        until: monotonic time after which no more trial is begun; None for no limit.
        observer: hears of each trial as of a stage.
    """

    def __init__(self, study: Study, plan: SearchJob, workers: int, until: float | None, observer: Observer) -> None:
        self._study, self._plan, self._until, self._observer = study, plan, until, observer
        self._workers = workers
        self._threads = max(1, (os.cpu_count() or 1) // workers)
        self._heard: queue.Queue[tuple[_WorkerProcess, dict[str, Any] | None]] = queue.Queue()
        self._running: list[_WorkerProcess] = []

    def run(self) -> None:
        """Start the workers and wait for them. However this is left, none is left behind, nor a trial that none runs.

        Raises:
            EdgekdError: what ended a worker ends them all, e.g. a missing package; or one ended before its first trial.
        """
        try:
            for number in range(self._workers):
                self._start(number)
            while self._running:
                process, told = self._heard.get()
                if told is None:
                    self._ended(process)
                else:
                    self._hear(process, **told)
        finally:
            for process in self._running:
                process.end()
                self._give_back(process, blame=False)

    def _start(self, number: int) -> None:
        left = None if self._until is None else self._until - time.monotonic()
        job = WorkerJob(self._plan, uuid.uuid4().hex, number, left)
        self._running.append(_WorkerProcess(job, self._heard, self._threads))

    def _hear(self, process: _WorkerProcess, event: str, **told: Any) -> None:
        stage = f"trial {told.get('trial')}"
        if event == "start":
            process.tried.append(told["trial"])
            self._observer.start(stage)
        elif event == "advance":
            self._observer.advance(stage, told["done"], told["total"], told["note"])
        elif event == "warn":
            self._observer.warn(stage, told["message"])
        elif event == "finish":
            self._observer.finish(stage, told["seconds"], False, told["summary"])
        else:
            raise _error(told["kind"], told["reason"])

    def _ended(self, process: _WorkerProcess) -> None:
        """Let another worker go on where one died."""
        self._running.remove(process)
        how = process.wait()
        if how:
            self._replace(process, how)
        process.end()

    def _replace(self, process: _WorkerProcess, how: str) -> None:
        if not process.tried:
            raise ModelError(
                f"a worker of the search ended before its first trial ({how}); it last said: {process.last_words()}"
            )
        cut = self._give_back(process, blame=True)
        told = f"its worker ended ({how})" + ("" if cut else f"; it last said: {process.last_words()}")
        self._observer.finish(f"trial {process.tried[-1]}", 0.0, False, told)
        self._start(process.job.number)

    def _give_back(self, process: _WorkerProcess, blame: bool) -> bool:
        """Let the trial that a worker was at be tried again; return whether there was one."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        mine = [trial for trial in running if trial.user_attrs.get(WORKER, {}).get("name") == process.job.worker]
        for trial in mine:
            requeue(self._study, trial, blame)
        return bool(mine)


def _error(kind: str, reason: str) -> EdgekdError:
    """Return a worker's error as the class it was there."""
    known = getattr(errors, kind, None)
    return known(reason) if isinstance(known, type) and issubclass(known, EdgekdError) else ModelError(reason)
