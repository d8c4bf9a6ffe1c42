"""The stage cache: one folder a result, named by a digest of all that the result depends on.

A stage works in ``<name>.partial`` under a lock and the folder is renamed when it is whole, so a folder that exists is
finished. A killed stage leaves its ``.partial`` folder, where training finds its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgekd.errors import CacheError
from edgekd.files import make_folder, need, sha256_file, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_RECORD = "result.json"

#: The file, and the folder, of a killed stage that the same stage may go on from. All in them is written atomically.
CHECKPOINT, ROUNDS = "checkpoint.pt", "rounds"


def digest(value: Any) -> str:
    """Return a short hex digest of a JSON-able value; equal values, in any key order, give equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Cache:
    """A folder of finished stage results.

    Raises:
        CacheError: the folder cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        make_folder(root, CacheError, "--cache")

    def find(self, name: str) -> dict[str, Any] | None:
        """Return the record of a finished result whose files are all as they were written, else None.

        Raises:
            CacheError: a file of it may not be read.
        """
        try:
            return _read(self.root / name)
        except PermissionError as error:
            raise CacheError(
                f"{error.filename}: cannot be read: {error.strerror}; choose another folder with --cache"
            ) from error

    @contextmanager
    def hold(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold a lock by name. The kernel lets it go with its process, however that ends.

        Args:
            name: of what is locked.
            waiting: called once if another build holds the lock, before waiting for it.
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
        self, name: str, waiting: Callable[[], None], fits: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> Iterator[Path | None]:
        """Hold the result's lock and yield its working folder, or None when another build has finished it meanwhile.

        Args:
            name: of the result.
            waiting: as for :meth:`hold`.
            fits: whether a finished result's record can be used; if not, the result is made again.
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

    def finish(self, name: str, record: dict[str, Any]) -> None:
        """Turn the working folder into the finished result. Call it inside :meth:`claim`."""
        partial, folder = self.root / f"{name}.partial", self.root / name
        (partial / CHECKPOINT).unlink(missing_ok=True)
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        files = {path.relative_to(partial).as_posix(): sha256_file(path) for path in paths}
        stored = {"record": record, "files": files}
        write_text(partial / _RECORD, json.dumps({**stored, "digest": digest(stored)}, indent=1))
        if folder.exists():  # altered, damaged or outdated: nobody could use it
            shutil.rmtree(folder)
        partial.rename(folder)


def _read(folder: Path) -> dict[str, Any] | None:
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
    record: dict[str, Any] = stored["record"]
    return record


def _sweep(partial: Path) -> None:
    """Remove what a killed run left half done; only what was written atomically is whole."""
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            if path.name != ROUNDS:
                shutil.rmtree(path)
        elif path.name != CHECKPOINT:
            path.unlink()
