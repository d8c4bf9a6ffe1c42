"""An agent on a board: the same jobs and answers, over ssh."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from edgekd.devices.agent_process import AgentProcess
from edgekd.errors import DeviceError, EdgekdError, StorageError
from edgekd.runtime.agent.serve import GREETING

if TYPE_CHECKING:
    from edgekd.devices.ssh.connection import Connection
    from edgekd.files import JsonObject

#: The exit code of ssh when it could not, or no longer, run a command, and when a signal ended the command.
_SSH_FAILED = 255

#: The time that an agent has to quit when told, and that a broken connection may take to be noticed.
_GRACE_SECONDS = 5.0


class RemoteAgent(AgentProcess):
    """A running agent on a board. Its errors name the board.

    It quits when nothing has reached it for so long that the link must be cut; to prevent that, a thread writes empty
    lines.

    Args:
        connection: The connection to the board.
        command: The command of the board's shell that starts it.
        timeout_seconds: The longest time that one answer may take.
        beat_seconds: The time between two empty lines.

    Raises:
        DeviceError: it does not start.
    """

    def __init__(self, connection: Connection, command: str, timeout_seconds: float, beat_seconds: float) -> None:
        self._connection = connection
        self._board = connection.address.name
        self._idle = False
        self._over = threading.Event()
        if not connection.alive:  # ssh would make another one, of which nobody else knows
            raise DeviceError(f"{self._board}: {self._lost('start')}")
        super().__init__(connection.command(command), os.environ, timeout_seconds)
        threading.Thread(target=self._beat, args=(beat_seconds,), daemon=True).start()
        try:
            while self._exchange("start", None).strip() != GREETING:
                pass  # lines of the start-up files of the board's shell
        except BaseException:
            self.close()
            raise

    def ask(self, job: str, *wanted: str, **arguments: object) -> JsonObject:
        """Give the agent a job and return its answer; see :class:`~edgekd.devices.agent_process.AgentProcess`."""
        try:
            if not self._connection.alive:
                raise self._lost(job)
            return super().ask(job, *wanted, **arguments)
        except StorageError as error:
            raise StorageError(
                f"{self._board}: {error}; make room there, or let edgekd remove what it keeps: "
                f"edgekd device clean {self._board}"
            ) from error
        except EdgekdError as error:
            raise type(error)(f"{self._board}: {error}") from error

    def close(self) -> None:
        """Make it quit where it has nothing to do, and wait for its end: the next must not run beside it."""
        self._over.set()
        if self._idle and self._connection.alive and self.alive:
            self.write_line('{"job": "quit"}')
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
        super().close()

    def _exchange(self, job: str, line: str | None) -> str:
        self._idle = False
        reply = super()._exchange(job, line)
        self._idle = True
        return reply

    def _ended(self, job: str) -> DeviceError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        code = self._process.poll()
        if self._connection.lost(code == _SSH_FAILED):
            return self._lost(job)
        if code == _SSH_FAILED:
            return DeviceError(f"the agent was killed at '{job}'; was the board's memory full? {self._last_words()}")
        if code is not None and code > 128:
            name = signal.Signals(code - 128).name
            return DeviceError(f"the agent ended ({name}) at '{job}'; {self._last_words()}")
        return super()._ended(job)

    @staticmethod
    def _lost(job: str) -> DeviceError:
        return DeviceError(f"the connection was lost at '{job}'; what is finished is kept: run the same command again")

    def _beat(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            self.write_line("")
