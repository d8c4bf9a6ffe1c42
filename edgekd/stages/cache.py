"""The stage cache: one folder for each result, named by a digest of all that the result depends on.

A stage works in ``<name>.partial`` under a lock, and the folder is renamed when it is complete, so that a folder that
exists is finished. A killed stage leaves its ``.partial`` folder, where training finds its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekd.errors import CacheError
from edgekd.files import make_folder, need, sha256_file, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgekd.files import JsonObject

_RECORD = "result.json"

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

    def find(self, name: str) -> JsonObject | None:
        """Return the record of a finished result; None where there is none, or where one of its files was altered.

        Raises:
            CacheError: A file of the result may not be read.
        """
        try:
            return _read(self.root / name)
        except PermissionError as error:
            raise CacheError(
                f"{error.filename}: cannot be read: {error.strerror}; choose another folder with --cache"
            ) from error

    @contextmanager
    def hold(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of a name. The kernel releases it with its process, however that ends.

        Args:
            name: Name of what is locked.
            waiting: Called once where another build holds the lock, before waiting for it.
        """
        filelock = need("filelock", "build")
        lock = filelock.FileLock(self.root / f"{name}.lock")
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
        """
        with self.hold(name, waiting):
            record = self.find(name)
            if record is not None and fits(record):
                yield None
                return
            partial = self.root / f"{name}.partial"
            partial.mkdir(exist_ok=True)
            _sweep(partial)
            yield partial

    def finish(self, name: str, record: JsonObject) -> None:
        """Turn the working folder into the finished result; to be called inside :meth:`claim`."""
        partial, folder = self.root / f"{name}.partial", self.root / name
        (partial / CHECKPOINT).unlink(missing_ok=True)
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        files = {path.relative_to(partial).as_posix(): sha256_file(path) for path in paths}
        stored = {"record": record, "files": files}
        write_text(partial / _RECORD, json.dumps({**stored, "digest": digest(stored)}, indent=1))
        if folder.exists():  # it was altered or damaged, or is outdated: nobody can use it
            shutil.rmtree(folder)
        partial.rename(folder)


def _read(folder: Path) -> JsonObject | None:
    try:
        stored = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(stored, dict) or stored.pop("digest", None) != digest(stored):
        return None
    for file, expected in stored["files"].items():
        path = folder / file
        if not path.is_file() or sha256_file(path) != expected:
            return None
    record: JsonObject = stored["record"]
    return record


def _sweep(partial: Path) -> None:
    """Remove what a killed run left half done; only what is written atomically is known to be complete."""
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            if path.name != ROUNDS:
                shutil.rmtree(path)
        elif path.name != CHECKPOINT:
            path.unlink()
