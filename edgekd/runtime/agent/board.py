"""The agent on a board that is reached over a network: an agent, and the one folder that edgekd has there.

The folder holds the files that were sent, ``files/<sha256>/<name>``, so that nothing is sent twice; ``work/``, which a
connection uses and leaves empty; and the caches of engine libraries, which are made to stay in here.
"""

from __future__ import annotations

import base64
import errno
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import DeviceError
from edgekd.files import sha256_file
from edgekd.runtime.agent import agent
from edgekd.runtime.agent.serve import GREETING, serve
from edgekd.runtime.backends.cuda import ABSENT, nvidia_facts
from edgekd.runtime.backends.registry import BACKENDS
from edgekd.runtime.measure import machine

if TYPE_CHECKING:
    from edgekd.files import JsonObject
    from edgekd.runtime.agent.serve import Answer, Jobs

_FILES, _WORK, _BUSY = "files", "work", "busy.lock"
_HEX = frozenset("0123456789abcdef")


class BoardAgent(agent.Agent):
    """An agent that also receives files, sends them back, and can claim the board for itself.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        self._busy: int | None = None
        self._claimed: int | None = None

    def begin(self, holder: str) -> Answer:
        """Make a folder to work in for ``holder``, having removed those of connections that were lost."""
        work = self._root / _WORK
        work.mkdir(exist_ok=True)
        for left in work.iterdir():
            descriptor = _lock(left / _BUSY, "")
            if descriptor is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(descriptor)
        made = Path(tempfile.mkdtemp(dir=self._root, prefix=".work-"))
        self._busy = _lock(made / _BUSY, holder)  # the kernel lets go with this process, however that ends
        folder = made.rename(work / made.name.lstrip("."))  # locked already where others look
        return {"work": str(folder)}

    def end(self, work: str) -> Answer:
        """Remove the folder of :meth:`begin`."""
        shutil.rmtree(self._own(work), ignore_errors=True)
        return {}

    def receive(self, sha256: str, name: str, size: int, offset: int, content: str) -> Answer:
        """Append a part of a file, in base64, at an offset; an empty part asks how far the file has come.

        Returns:
            ``path``, empty until the file is whole, and ``offset``, from which on the file is wanted.
        """
        final = self._path_of(sha256, name)
        if _whole(final, sha256):
            return {"path": str(final), "offset": size}
        part = final.with_name(f".{name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        received = _extend(part, offset, base64.b64decode(content))
        if received < size or (size and not content):  # what is whole but for its name is known by its last byte
            return {"path": "", "offset": min(received, max(size - 1, 0))}
        if sha256_file(part) != sha256:
            part.unlink()
            raise DeviceError(f"{name} arrived damaged, and was thrown away; run the same command again")
        part.replace(final)
        return {"path": str(final), "offset": size}

    def arrange(self, work: str, files: dict[str, str]) -> Answer:
        """Make a folder of received files, given by their paths in it, without copying them; or an empty folder."""
        folder = Path(tempfile.mkdtemp(dir=self._own(work)))
        for name, source in files.items():
            path = (folder / name).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise DeviceError(f"'{name}' leaves the folder that it is to be in")
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(self._own(source), path)
        return {"folder": str(folder)}

    def list(self, folder: str) -> Answer:
        """Return the names of the files in a folder."""
        return {"files": sorted(path.name for path in self._own(folder).iterdir() if path.is_file())}

    def read(self, path: str, offset: int, count: int) -> Answer:
        """Return a part of a file as base64, and the file's size."""
        with self._own(path).open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(offset)
            return {"content": base64.b64encode(stream.read(count)).decode(), "size": size}

    def remove(self, path: str) -> Answer:
        """Remove a file or a folder."""
        target = self._own(path)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        return {}

    def claim(self, holder: str) -> Answer:
        """Try to reserve the board: two hosts that run engines at once would spoil each other's figures.

        Returns:
            ``held``, whether this agent now holds it, and ``holder``, who holds it.
        """
        path = self._root / _BUSY
        if self._claimed is None:
            self._claimed = _lock(path, holder)
        if self._claimed is None:
            return {"held": False, "holder": path.read_text(encoding="utf-8", errors="replace")}
        return {"held": True, "holder": holder}

    def release(self) -> Answer:
        """End the reservation."""
        if self._claimed is not None:
            os.close(self._claimed)
            self._claimed = None
        return {}

    def describe(self, runtime: str, options: JsonObject) -> Answer:
        """Return what tells this board from every other: two of a kind differ in heat, supply and disk."""
        described = super().describe(runtime, options)
        if described["absent"] is None:
            system = {key: value for key, value in nvidia_facts().items() if value != ABSENT}
            described["facts"] = {**system, **described["facts"], "board": machine.identity()}
        return described

    def probe(self) -> Answer:
        """Return facts of the board for a person to read, with the version of every installed engine library."""
        packages = dict.fromkeys(package for backend in BACKENDS.values() for package in backend.packages)
        facts = {**machine.machine_facts(packages), **nvidia_facts()}
        used = sum(path.stat().st_size for path in self._root.rglob("*") if path.is_file())
        return {"facts": facts, "used_bytes": used, "free_bytes": shutil.disk_usage(self._root).free}

    def _path_of(self, sha256: str, name: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= _HEX or Path(name).name != name:
            raise DeviceError(f"the agent was sent a file of a strange name: {sha256}/{name}")
        return self._root / _FILES / sha256 / name

    def _own(self, path: str) -> Path:
        """Return a path below the folder; any other is refused."""
        resolved = Path(path).resolve()
        if not resolved.is_relative_to(self._root.resolve()):
            raise DeviceError(f"{path}: is not below {self._root}")
        return resolved


def _whole(path: Path, sha256: str) -> bool:
    """Return whether a file is there as it was sent; one that a failing card altered is removed."""
    if not path.is_file():
        return False
    if sha256_file(path) == sha256:
        return True
    path.unlink()
    return False


def _extend(part: Path, offset: int, data: bytes) -> int:
    """Write data into a file at an offset, unless that is beyond its end; return the file's size."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if offset <= os.fstat(descriptor).st_size:
            _write_at(descriptor, offset, data)
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    except OSError as error:
        if error.errno == errno.ENOSPC:
            part.unlink()  # a board whose disk stays full has other troubles too
        raise OSError(error.errno, error.strerror, str(part)) from error
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, offset: int, data: bytes) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    while data:
        data = data[os.write(descriptor, data) :]


def _lock(path: Path, holder: str) -> int | None:
    """Lock a file until the returned descriptor is closed, and write into it who holds it; None where another does.

    The file is made where it is absent, but not its folder.
    """
    import fcntl  # boards run Linux; this module is imported elsewhere too

    with suppress(FileNotFoundError, NotADirectoryError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.truncate(descriptor, 0)
        _write_at(descriptor, 0, holder.encode())
        return descriptor
    return None


JOBS: Jobs = {
    **agent.JOBS,
    "begin": BoardAgent.begin,
    "end": BoardAgent.end,
    "receive": BoardAgent.receive,
    "arrange": BoardAgent.arrange,
    "list": BoardAgent.list,
    "read": BoardAgent.read,
    "remove": BoardAgent.remove,
    "claim": BoardAgent.claim,
    "release": BoardAgent.release,
    "describe": BoardAgent.describe,
    "probe": BoardAgent.probe,
}


def main() -> None:
    """Run an agent on a board: ``python <folder>/agent-<digest> SILENCE_SECONDS``."""
    root = Path(sys.argv[0]).resolve().parent
    # What libraries keep stays in the folder too.
    os.environ |= {
        "XDG_CACHE_HOME": str(root / "cache"),
        "TMPDIR": str(root / "tmp"),
        "CUDA_CACHE_PATH": str(root / "cache" / "cuda"),
    }
    serve(BoardAgent(root), JOBS, GREETING, float(sys.argv[1]))
