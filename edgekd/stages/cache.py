"""The stage cache: one folder for each result, named by a digest of all that the result depends on.

A stage works in ``<name>.partial`` under a lock, and the folder is renamed when it is complete, so that a folder that
exists is finished. A killed stage leaves its ``.partial`` folder, where training finds its last checkpoint.

A result consists of the files that its record names. Whatever else lies in its folder was put there by somebody else:
it is moved into ``aside/``, neither shipped nor removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekd.errors import CacheError
from edgekd.files import make_folder, need, sha256_file, write_text
from edgekd.stages.disk import refusals, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from edgekd.files import JsonObject

#: In the folder of a result, what is known of it.
RECORD = "result.json"
#: The folder of what lay in finished results and is no part of them.
_ASIDE = "aside"

#: The file and the folder from which a killed stage continues. Everything in them is written atomically.
CHECKPOINT, ROUNDS = "checkpoint.pt", "rounds"


def digest(value: object) -> str:
    """Return a short hex digest of a JSON value; equal values, in any order of keys, have equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Cache:
    """A folder of finished results of stages.

    Args:
        root: The folder, which is made.

    Raises:
        CacheError: The folder cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        make_folder(root, CacheError, "--cache")

    def errors(self) -> AbstractContextManager[None]:
        """Return a context in which what the system refuses in the cache is one :class:`CacheError`."""
        return refusals(self.root, CacheError, "--cache")

    def find(self, name: str) -> JsonObject | None:
        """Return the record of a finished result; None where there is none, or where one of its files was altered.

        Raises:
            CacheError: A file of the result may not be read.
        """
        with self.errors():
            stored = _read(self.root / name)
        record: JsonObject | None = stored and stored["record"]
        return record

    def set_aside(self, name: str) -> list[Path]:
        """Move what lies in a finished result's folder and is no part of it out of there; return where it is now.

        Raises:
            CacheError: It cannot be moved.
        """
        with self.errors():
            stored = _record(self.root / name)
            return [] if stored is None else self._move_aside(name, _foreign(self.root / name, stored["files"]))

    @contextmanager
    def hold(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of a name. The kernel releases it with its process, however that ends.

        Args:
            name: Name of what is locked.
            waiting: Called once where another build holds the lock, before waiting for it.
        """
        filelock = need("filelock", "build")
        lock = filelock.FileLock(self.root / f"{name}.lock")
        with self.errors():
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                waiting()
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def claim(
        self, name: str, waiting: Callable[[], None], fits: Callable[[JsonObject], bool] = lambda _: True
    ) -> Iterator[Path | None]:
        """Hold a result's lock and yield its working folder, or None where another build has finished it meanwhile.

        Args:
            name: Name of the result.
            waiting: As for :meth:`hold`.
            fits: Whether the record of a finished result can be used; if not, the result is made again.

        Raises:
            CacheError: The working folder cannot be made, or a link or a file lies in its place.
        """
        with self.hold(name, waiting):
            record = self.find(name)
            if record is not None and fits(record):
                yield None
                return
            partial = self.root / f"{name}.partial"
            with self.errors():
                if partial.is_symlink() or partial.is_file():
                    raise CacheError(f"{partial}: edgekd did not make it; move it away, or choose another --cache")
                partial.mkdir(exist_ok=True)
                _sweep(partial)
            yield partial

    def finish(self, name: str, record: JsonObject) -> None:
        """Turn the working folder into the finished result; to be called inside :meth:`claim`."""
        partial, folder = self.root / f"{name}.partial", self.root / name
        with self.errors():
            (partial / CHECKPOINT).unlink(missing_ok=True)
            files = {file: sha256_file(partial / file) for file in _foreign(partial, {})}
            stored = {"record": record, "files": files}
            write_text(partial / RECORD, json.dumps({**stored, "digest": digest(stored)}, indent=1))
            self._retire(name)
            partial.rename(folder)

    def _retire(self, name: str) -> None:
        """Remove a folder that nobody can use, since it was altered or is outdated, but nothing that others put there.

        Where its record cannot be read, nothing tells what of it is edgekd's, and all of it is kept.
        """
        folder = self.root / name
        known = _record(folder)
        if known is None or folder.is_symlink():
            self._move_aside("", [name] if os.path.lexists(folder) else [])
            return
        self._move_aside(name, _foreign(folder, known["files"]))
        remove_tree(folder)

    def _move_aside(self, folder: str, names: Collection[str]) -> list[Path]:
        moved = []
        for name in names:
            kept = self.root / _ASIDE / f"{digest(os.urandom(8).hex())[:8]}-{folder}" / name
            kept.parent.mkdir(parents=True)
            (self.root / folder / name).rename(kept)
            moved.append(kept)
        return moved


def _foreign(folder: Path, files: Collection[str]) -> list[str]:
    """Return what is no folder below ``folder``, but for these files and the record, by its path in it."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(folder).as_posix() for path in found} - {*files, RECORD})


def _record(folder: Path) -> JsonObject | None:
    """Return what is stored of a result: its ``record``, and the digests of its ``files``; None where it is damaged."""
    try:
        stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(stored, dict) or stored.pop("digest", None) != digest(stored):
        return None
    return stored


def _read(folder: Path) -> JsonObject | None:
    """Return what is stored of a result whose files all are what they were; None where there is none."""
    stored = _record(folder)
    for file, expected in stored["files"].items() if stored else ():
        path = folder / file
        if not path.is_file() or sha256_file(path) != expected:
            return None
    return stored


def _sweep(partial: Path) -> None:
    """Remove what a killed run left half done; only what is written atomically is known to be complete."""
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            if path.name != ROUNDS:
                remove_tree(path)
        elif path.name != CHECKPOINT:
            path.unlink()
