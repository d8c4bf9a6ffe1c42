"""A board while it is connected: an agent host to which files are sent, and from which they are fetched."""

from __future__ import annotations

import base64
import os
import shlex
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from edgekd.devices.ssh.agent import RemoteAgent
from edgekd.devices.ssh.packing import pack_agent
from edgekd.errors import DeviceError
from edgekd.files import atomic_path, sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgekd.devices.ssh.connection import Connection
    from edgekd.files import JsonObject
    from edgekd.runtime.backends.registry import Runtime

#: Bytes that are sent at a time.
_CHUNK = 1 << 20
#: The seconds between two tries to reserve the board, and the lines to an agent in its time of silence.
_RETRY_SECONDS, _BEATS = 1.0, 6


class Board:
    """A connected board with its agent unpacked; see :class:`~edgekd.devices.agent_host.AgentHost`.

    Args:
        connection: The connection to it.
        root: The folder of edgekd there.
        timeout_seconds: The longest time that one answer of an agent may take.
        silence_seconds: The time without a line from this host after which an agent there ends.
    """

    def __init__(self, connection: Connection, root: str, timeout_seconds: float, silence_seconds: float) -> None:
        self._connection = connection
        self._command = f"{connection.address.python} {shlex.quote(f'{root}/{pack_agent().name}')} {silence_seconds:g}"
        self._timeout_seconds = timeout_seconds
        self._beat_seconds = silence_seconds / _BEATS
        self._sent: dict[tuple[str, str], str] = {}
        self._notify: Callable[[str], None] = lambda _: None
        self._holder = f"{socket.gethostname()} (process {os.getpid()})"
        self._file_agent = self.start()
        try:
            self._work: str = self._file_agent.ask("begin", "work", holder=self._holder)["work"]
        except BaseException:
            self._file_agent.close()
            raise

    def ask(self, job: str, *wanted: str, **arguments: object) -> JsonObject:
        """Give a job that needs no engine to the agent that lives as long as the connection, and return its answer."""
        return self._file_agent.ask(job, *wanted, **arguments)

    def start(self) -> RemoteAgent:
        """Start an agent."""
        return RemoteAgent(self._connection, self._command, self._timeout_seconds, self._beat_seconds)

    def send(self, path: Path) -> str:
        """Return the path there of a file or folder, having sent the parts that are not there yet."""
        if path.is_dir():
            files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
            paths = {name: self._send(file) for name, file in files.items()}
            folder: str = self.ask("arrange", "folder", work=self._work, files=paths)["folder"]
            return folder
        return self._send(path)

    @contextmanager
    def receive(self, folder: Path) -> Iterator[str]:
        """Yield the path of an empty folder there; its files are fetched into ``folder`` at the end."""
        remote: str = self.ask("arrange", "folder", work=self._work, files={})["folder"]
        yield remote
        for name in self.ask("list", "files", folder=remote)["files"]:
            self._fetch(f"{remote}/{name}", folder / name)
        self.ask("remove", path=remote)

    def runtime_arguments(self, runtime: Runtime) -> JsonObject:
        """Return the arguments by which a job names a runtime there; a user's own file is sent."""
        file, _, function = runtime.name.rpartition(":")
        name = f"{self.send(runtime.source)}:{function}" if file.endswith(".py") and runtime.source else runtime.name
        return {"runtime": name, "options": dict(runtime.options)}

    @contextmanager
    def exclusive(self, notify: Callable[[str], None]) -> Iterator[None]:
        """Reserve the board, waiting for other hosts that use it; ``notify`` is told of that and of transfers."""
        self._notify = notify
        waiting = False
        while not (claimed := self.ask("claim", "held", "holder", holder=self._holder))["held"]:
            if not waiting:
                notify(f"waiting: {claimed['holder']} uses the board")
            waiting = True
            time.sleep(_RETRY_SECONDS)
        try:
            yield
        finally:
            self._notify = lambda _: None
            self._ask_last("release")

    def close(self) -> None:
        """Remove everything there but what is kept for the next time."""
        self._ask_last("end", work=self._work)
        self._file_agent.close()

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._connection.alive and self._file_agent.alive

    def _ask_last(self, job: str, **arguments: object) -> None:
        """Give a last job where that is possible; where not, the board or the next connection does it by itself."""
        if self.alive:
            with suppress(DeviceError):
                self.ask(job, **arguments)

    def _send(self, path: Path) -> str:
        key = (sha256_file(path), path.name)
        if key not in self._sent:
            self._sent[key] = self._transfer(path, *key)
        return self._sent[key]

    def _transfer(self, path: Path, sha256: str, name: str) -> str:
        size = path.stat().st_size
        part = {"sha256": sha256, "name": name, "size": size}
        answer = self.ask("receive", "path", "offset", **part, offset=0, content="")
        with path.open("rb") as stream:
            while not answer["path"]:
                offset = answer["offset"]
                self._notify(f"sending {name}: {_of(offset, size)}")
                stream.seek(offset)
                content = base64.b64encode(stream.read(_CHUNK)).decode()
                answer = self.ask("receive", "path", "offset", **part, offset=offset, content=content)
        remote: str = answer["path"]
        return remote

    def _fetch(self, remote: str, path: Path) -> None:
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            size = 1
            while stream.tell() < size:
                answer = self.ask("read", "content", "size", path=remote, offset=stream.tell(), count=_CHUNK)
                size = answer["size"]
                stream.write(base64.b64decode(answer["content"]))
                self._notify(f"fetching {path.name}: {_of(stream.tell(), size)}")


def _of(done: int, size: int) -> str:
    unit, name = (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    return f"{done / unit:.1f} of {size / unit:.1f} {name}"
