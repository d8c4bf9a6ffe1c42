"""How jobs and answers travel: one JSON job a line on stdin, one JSON answer a line on stdout.

A job is ``{"job": name, ...arguments}``. The answer is ``{"ok": true, ...}``, or ``{"ok": false, "kind": "ModelError",
"error": "..."}`` for an error that a user can cause. A defect of edgekd ends the process with a traceback on stderr.
"""

from __future__ import annotations

import inspect
import json
import os
import select
import sys
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol, TypeAlias

from edgekd.errors import DeviceError, EdgekdError, StorageError, nearest
from edgekd.files import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.files import JsonObject

#: The arguments of the answer to one job.
Answer: TypeAlias = "JsonObject"
#: An agent's methods by the names of its jobs.
Jobs: TypeAlias = "dict[str, Callable[..., Answer]]"

#: The first line of an agent on a board; a board's shell may have written anything before it.
GREETING = "edgekd agent"

#: Exit code of an agent whose host is gone.
_UNHEARD = 3


class JobAgent(Protocol):
    """An object whose methods do the jobs."""

    @property
    def done(self) -> bool:
        """Whether it was told to quit."""


def _answer(agent: JobAgent, jobs: Jobs, line: str) -> Answer:
    """Do the job that ``line`` asks for, and return its answer."""
    try:
        name, arguments = _parse(line, jobs)
        return {"ok": True, **jobs[name](agent, **arguments)}
    except EdgekdError as error:
        return _failed(error)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        return _failed(StorageError(f"{error.filename or 'a file'}: {error.strerror}"))


def _failed(error: EdgekdError) -> Answer:
    return {"ok": False, "kind": type(error).__name__, "error": str(error)}


def _parse(line: str, jobs: Jobs) -> tuple[str, JsonObject]:
    try:
        arguments = json.loads(line)
    except ValueError as error:
        raise DeviceError(f"the agent was sent a line that is not JSON: {error}") from error
    if not isinstance(arguments, dict) or "job" not in arguments:
        raise DeviceError("the agent was sent a line without a 'job'")
    name = str(arguments.pop("job"))
    if name not in jobs:
        raise DeviceError(f"the agent has no job '{name}'{nearest(name, jobs)}")
    try:
        inspect.signature(jobs[name]).bind(None, **arguments)
    except TypeError as error:
        raise DeviceError(f"the agent's job '{name}' was given wrong arguments: {error}") from error
    return name, arguments


def serve(
    agent: JobAgent,
    jobs: Jobs,
    greeting: str | None = None,
    silence_s: float | None = None,
) -> None:
    """Answer jobs from stdin until 'quit' or its end.

    An agent whose answers nobody reads any more ends at once, whatever it is doing: its host was killed, or the link to
    it was cut.

    Args:
        agent: The agent that does the jobs.
        jobs: Its methods by the jobs' names.
        greeting: A line to write first.
        silence_s: For an agent whose host is another machine, the seconds without a line from it after which the agent
            ends, even in the middle of a job, as it does at the end of stdin; a link that was cut does not close. Empty
            lines are no jobs, but they are no silence either.
    """
    # Answers get stdout to themselves: what a library prints there goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines: SimpleQueue[str | None] = SimpleQueue()
    heard = [time.monotonic()]
    threading.Thread(target=_listen, args=(lines, heard, silence_s is not None), daemon=True).start()
    if hasattr(select, "poll"):  # not on Windows
        threading.Thread(target=_watch, args=(answers.fileno(), heard, silence_s), daemon=True).start()
    if greeting is not None:
        print(greeting, file=answers, flush=True)
    for line in iter(lines.get, None):
        print(json.dumps(_answer(agent, jobs, line)), file=answers, flush=True)
        if agent.done:
            break


def _listen(lines: SimpleQueue[str | None], heard: list[float], remote: bool) -> None:
    """Pass on stdin line by line, and None at its end, or end with it; ``heard`` holds the time of the last line."""
    for line in sys.stdin:
        heard[0] = time.monotonic()
        if line.strip():
            lines.put(line)
    if remote:
        os._exit(_UNHEARD)
    lines.put(None)


def _watch(answers: int, heard: list[float], silence_s: float | None) -> None:
    """End the process when the reader of its answers is gone, or has been silent for too long."""
    reader = select.poll()
    reader.register(answers, 0)  # no event is waited for but the reader's end, which is always told
    while not (events := reader.poll(None if silence_s is None else silence_s * 250)):
        if silence_s is not None and time.monotonic() - heard[0] > silence_s:
            break
    if not any(event & select.POLLNVAL for _, event in events):  # closed here: the agent is ending by itself
        os._exit(_UNHEARD)
