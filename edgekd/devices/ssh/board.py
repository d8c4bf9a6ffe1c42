"""A board while it is connected: a place where agents run, and the way of files there and back."""

from __future__ import annotations

import base64
import os
import shlex
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from edgekd.devices.ssh.agent import RemoteAgent
from edgekd.devices.ssh.packing import pack_agent
from edgekd.errors import DeviceError
from edgekd.files import atomic_path, sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgekd.devices.ssh.connection import Connection
    from edgekd.runtime.backends.registry import Runtime

#: Bytes that travel at a time.
_CHUNK = 1 << 20
#: How often it is tried whether the board is free, and an agent is told that its host lives.
_RETRY_SECONDS, _BEATS = 1.0, 6


class Board:
    """A connected board with its agent unpacked; see :class:`~edgekd.devices.agent_host.AgentHost`.

    Args:
        connection: to it.
        root: the folder of edgekd there.
        timeout_seconds: how long one answer of an agent may take.
        silence_seconds: how long an agent there waits for a sign of this host before it ends.
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

    def ask(self, job: str, *wanted: str, **arguments: Any) -> dict[str, Any]:
        """Give a job that needs no engine to the agent that lives as long as the connection."""
        return self._file_agent.ask(job, *wanted, **arguments)

    def start(self) -> RemoteAgent:
        """Start an agent."""
        return RemoteAgent(self._connection, self._command, self._timeout_seconds, self._beat_seconds)

    def send(self, path: Path) -> str:
        """Return the path there of a file or folder, having sent what of it is not there yet."""
        if path.is_dir():
            files = {one.relative_to(path).as_posix(): one for one in sorted(path.rglob("*")) if one.is_file()}
            there = {name: self._send(one) for name, one in files.items()}
            folder: str = self.ask("arrange", "folder", work=self._work, files=there)["folder"]
            return folder
        return self._send(path)

    @contextmanager
    def receive(self, folder: Path) -> Iterator[str]:
        """Yield the path of an empty folder there; its files come into ``folder``."""
        there: str = self.ask("arrange", "folder", work=self._work, files={})["folder"]
        yield there
        for name in self.ask("list", "files", folder=there)["files"]:
            self._fetch(f"{there}/{name}", folder / name)
        self.ask("remove", path=there)

    def runtime_arguments(self, runtime: Runtime) -> dict[str, Any]:
        """Return a runtime as it is called there; a user's own file is sent."""
        file, _, function = runtime.name.rpartition(":")
        name = f"{self.send(runtime.source)}:{function}" if file.endswith(".py") and runtime.source else runtime.name
        return {"runtime": name, "options": dict(runtime.options)}

    @contextmanager
    def exclusive(self, notify: Callable[[str], None]) -> Iterator[None]:
        """Have the board alone, waiting for others that use it; ``notify`` hears of that and of what is sent."""
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
        """Leave nothing there but what is kept for the next time."""
        self._ask_last("end", work=self._work)
        self._file_agent.close()

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._connection.alive and self._file_agent.alive

    def _ask_last(self, job: str, **arguments: Any) -> None:
        """Give a job where that is possible; where it is not, the board does it by itself, or the next connection."""
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
        there: str = answer["path"]
        return there

    def _fetch(self, there: str, path: Path) -> None:
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            size = 1
            while stream.tell() < size:
                answer = self.ask("read", "content", "size", path=there, offset=stream.tell(), count=_CHUNK)
                size = answer["size"]
                stream.write(base64.b64decode(answer["content"]))
                self._notify(f"fetching {path.name}: {_of(stream.tell(), size)}")


def _of(done: int, size: int) -> str:
    unit, name = (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    return f"{done / unit:.1f} of {size / unit:.1f} {name}"
