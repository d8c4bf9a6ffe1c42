"""An agent in a process of its own: jobs in, answers out, and no process left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from edgekd import errors
from edgekd.errors import DeviceError, EdgekdError
from edgekd.files import scratch_root

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from edgekd.files import JsonObject

#: The time that a dying process has to end before it is killed, and the part of its stderr that an error quotes.
_GRACE_SECONDS = 2.0
_QUOTED_LINES = 3
_QUOTED_BYTES = 4096


class AgentProcess:
    """A running agent. Use it as a context manager: at the end it is killed, whatever it is doing.

    If this process itself is killed, the agent reads the end of its stdin and quits after the job at hand.

    Args:
        command: The command that starts it.
        environment: Its environment variables.
        timeout_seconds: The longest time that one answer may take.

    Raises:
        DeviceError: the command cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._writing = threading.Lock()
        # A file, since a pipe that nobody reads would fill and block the agent; close() closes it.
        self._log = tempfile.TemporaryFile(dir=scratch_root())  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            self._log.close()
            raise DeviceError(f"the agent cannot be started: {command[0]}: {error.strerror}") from error
        self.pid = self._process.pid

    def ask(self, job: str, *wanted: str, **arguments: object) -> JsonObject:
        """Give the agent a job and return its answer.

        Args:
            job: The job's name.
            wanted: The keys that the answer must have.
            arguments: The job's arguments.

        Raises:
            DeviceError: it died, took longer than its timeout, or gave no valid answer.
            EdgekdError: the job failed; of the class that the agent raised.
        """
        reply = self._exchange(job, json.dumps({"job": job, **arguments}))
        try:
            answer = json.loads(reply)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
            raise DeviceError(
                f"the agent answered '{job}' with {reply[:200]!r}, which is no answer; {self._last_words()}"
            )
        if not answer["ok"]:
            raise _error(answer)
        for key in wanted:
            if key not in answer:
                raise DeviceError(f"the agent's answer to '{job}' has no '{key}'; is it of another version of edgekd?")
        return answer

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def write_line(self, line: str) -> None:
        """Write a line to the process; a dead one loses it."""
        with self._writing, suppress(BrokenPipeError, ValueError):
            self._pipes()[0].write(line + "\n")
            self._pipes()[0].flush()

    def close(self) -> None:
        """Kill the process and wait for its end."""
        self._process.kill()
        with self._writing, suppress(BrokenPipeError):  # what it did not read is lost with it
            self._pipes()[0].close()
        self._pipes()[1].close()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, job: str, line: str | None) -> str:
        """Write a line, if any, and return the next line of the process; ``job`` names it in errors."""
        expired = threading.Event()

        def give_up() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(self._timeout_seconds, give_up)
        timer.daemon = True  # an interrupt between here and the try must not leave it running for minutes
        timer.start()
        try:
            if line is not None:
                self.write_line(line)  # a dead process does not reply either, and stderr says why
            reply: str = self._pipes()[1].readline()
        finally:
            timer.cancel()
        if expired.is_set():
            raise DeviceError(f"the agent did not answer '{job}' in {self._timeout_seconds:g} s; {self._last_words()}")
        if not reply:
            raise self._ended(job)
        return reply

    def _ended(self, job: str) -> DeviceError:
        """Return the error for a process that ended instead of answering."""
        return DeviceError(f"the agent ended ({self._exit()}) instead of answering '{job}'; {self._last_words()}")

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        return stdin, stdout

    def _exit(self) -> str:
        try:
            code = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _last_words(self) -> str:
        size = self._log.seek(0, 2)
        self._log.seek(max(0, size - _QUOTED_BYTES))
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()[-_QUOTED_LINES:]
        return "it last said: " + " / ".join(lines) if lines else "it said nothing on stderr"


def _error(answer: JsonObject) -> EdgekdError:
    """Return the agent's error as the class it was there, so that its exit code survives the process."""
    kind = getattr(errors, str(answer.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, EdgekdError)):
        kind = DeviceError
    return kind(str(answer.get("error")))
