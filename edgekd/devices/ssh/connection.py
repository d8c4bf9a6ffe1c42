"""One authenticated connection to a board, over which commands run side by side: OpenSSH's connection sharing."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgekd.errors import DeviceError, MissingDependency

if TYPE_CHECKING:
    from edgekd.devices.ssh.address import Address

#: The variable that names another ssh, or gives it options, as GIT_SSH_COMMAND does for Git.
SSH_VARIABLE = "EDGEKD_SSH"

#: No question is asked, nothing is forwarded, and a link that was cut is noticed within 15 s. The rest of the user's
#: own configuration holds; so do options in the variable, which come first.
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "EscapeChar": "none",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ControlPersist": "no",
}

#: The longest time for connecting and logging in, and for a connection to end.
_CONNECT_SECONDS, _END_SECONDS = 60.0, 5.0
#: The time after its last command in which a lost connection is noticed.
_SEEN_SECONDS = 1.0
_QUOTED_LINES = 3

#: A part of ssh's message, its meaning, and what to do; the first that fits counts.
_REASONS = (
    (
        "IDENTIFICATION HAS CHANGED",
        "its host key is not the one that is known",
        "if the board was installed anew, remove the old key: ssh-keygen -R HOST; if not, another machine answers",
    ),
    (
        "Host key verification failed",
        "its host key is not known",
        "connect once by hand with 'ssh HOST' and compare it",
    ),
    ("Permission denied", "it refuses your keys", "install one with 'ssh-copy-id', or name it in ~/.ssh/config"),
    ("Too many authentication failures", "it refuses your keys", "name the right one in ~/.ssh/config"),
    ("Could not resolve hostname", "there is no host of this name", "check the address"),
    ("Connection refused", "nothing answers on this port", "check the port, and that sshd runs there"),
    ("timed out", "it does not answer", "check that it is switched on and in this network"),
    ("No route to host", "it does not answer", "check that it is switched on and in this network"),
    ("Network is unreachable", "its network cannot be reached", "check this machine's network"),
)


class Connection:
    """A connection to a board. It ends with :meth:`close`, or with this process, however that ends.

    Args:
        address: The board's address.

    Raises:
        MissingDependency: there is no ssh.
        DeviceError: the board cannot be reached, or one of both does not trust the other.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        _ssh()  # an error in the variable is raised before anything is made
        # Short: a socket's path may have some hundred characters, of which ssh takes 17.
        self._folder = Path(tempfile.mkdtemp(prefix=f"edgekd-ssh-{os.getpid()}-", dir="/tmp"))
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        try:
            # It ends when its stdin does. A repeated line proves that commands run, and marks the end of what a shell's
            # start-up files may write.
            self._master = subprocess.Popen(
                [*self._ssh("yes"), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
            )
        except OSError as error:
            self._remove()
            raise MissingDependency(
                f"{_ssh()[0]} cannot be started: {error.strerror}; install OpenSSH's client, or set {SSH_VARIABLE}"
            ) from error
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it still exists."""
        return self._master.poll() is None

    def lost(self, suspected: bool) -> bool:
        """Return whether it is gone; where that is suspected, it may take a moment to show."""
        with suppress(subprocess.TimeoutExpired):
            self._master.wait(_SEEN_SECONDS if suspected else 0)
        return not self.alive

    def command(self, remote: str) -> list[str]:
        """Return the command, of this host, that runs a command of the board's shell."""
        return [*self._ssh("no"), remote]

    def run(self, remote: str, text: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the board's shell to its end, and return its output.

        Args:
            remote: The command.
            text: The content of its stdin.

        Raises:
            DeviceError: it takes too long.
        """
        try:
            return subprocess.run(
                self.command(remote),
                input=text,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                timeout=_CONNECT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{self.address.name}: did not answer in {_CONNECT_SECONDS:g} s") from error

    def kill(self) -> None:
        """Break the connection, so that everything that waits for the board fails. It must still be closed."""
        self._master.kill()

    def close(self) -> None:
        """End the connection, and remove everything of it."""
        stdin, stdout = self._master.stdin, self._master.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(BrokenPipeError):
            stdin.close()
        try:
            self._master.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # the link is cut, so the board cannot end it
            self._master.kill()
            self._master.wait()
        stdout.close()
        self._remove()

    def _ssh(self, master: str) -> list[str]:
        address = self.address
        options = {**_OPTIONS, "ControlMaster": master, "ControlPath": str(self._folder / "s")}
        user = ["-l", address.user] if address.user else []
        port = ["-p", str(address.port)] if address.port else []
        return [*_ssh(), *(f"-o{key}={value}" for key, value in options.items()), *user, *port, "--", address.host]

    def _greet(self) -> None:
        stdin, stdout = self._master.stdin, self._master.stdout
        assert stdin is not None
        assert stdout is not None
        word = f"edgekd-{secrets.token_hex(8)}\n".encode()
        timer = threading.Timer(_CONNECT_SECONDS, self._master.kill)
        timer.daemon = True
        timer.start()
        try:
            with suppress(BrokenPipeError):  # it has ended, and its log says why
                stdin.write(word)
                stdin.flush()
            for line in stdout:
                if line.endswith(word):
                    return
        finally:
            timer.cancel()
        code = self._master.wait()
        self._log.seek(0)
        raise _refusal(self.address, code, self._log.read().decode("utf-8", "replace"))

    def _remove(self) -> None:
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _ssh() -> list[str]:
    command = os.environ.get(SSH_VARIABLE) or "ssh"
    try:
        return shlex.split(command)
    except ValueError as error:
        raise DeviceError(f"{SSH_VARIABLE}={command}: {error}; write it as a shell takes it") from error


def _refusal(address: Address, code: int, message: str) -> DeviceError:
    for words, meaning, advice in _REASONS:
        if words in message:
            return DeviceError(f"{address.name}: {meaning}; {advice.replace('HOST', address.host)}")
    last = " / ".join(message.strip().splitlines()[-_QUOTED_LINES:]) or f"nothing, and ended with exit code {code}"
    return DeviceError(f"{address.name}: ssh cannot log in and run commands there; it said: {last}")
