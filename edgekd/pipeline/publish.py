"""Copy the files that a target shows from the cache to the output folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import OutputError
from edgekd.files import need, sha256_file
from edgekd.report.results import GRAM, LATENCY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Folders of the bundle, released or rejected by the gate, and of what was built on the device. These and the report's
#: are edgekd's; nothing else in the output is touched.
BUNDLE, REJECTED, ENGINES = "bundle", "rejected", "engines"

_LOCK = ".lock"
_TEMPORARY = ".edgekd-"

#: Files to show, by their path below one of these folders.
Files = dict[str, Path]


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Hold the output's lock: of all builds with the same output, whatever their caches, one at a time writes there.

    Raises:
        OutputError: Something in it cannot be written.
    """
    filelock = need("filelock", "build")
    try:
        with filelock.FileLock(output / _LOCK):
            yield
    except OSError as error:
        raise OutputError(
            f"{error.filename or output}: cannot be written: {error.strerror or error}; "
            "choose another folder with --output"
        ) from error


def files_below(folder: Path) -> Files:
    """Return all files below a folder by their path in it; nothing where there is no such folder."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def publish(folders: Mapping[str, Files], output: Path) -> None:
    """Make ``output`` show these of edgekd's folders and no others; what is right already stays untouched.

    A folder is replaced as a whole, by renames, so that a reader never finds half of it. It is to be called inside
    :func:`writing`.
    """
    output.mkdir(parents=True, exist_ok=True)
    for leftover in output.glob(f"{_TEMPORARY}*"):  # of a build that was killed here
        shutil.rmtree(leftover)
    for name in (BUNDLE, REJECTED, LATENCY, GRAM, ENGINES):
        wanted = folders.get(name, {})
        if not _shows(output / name, wanted):
            _replace(wanted, output / name)


def _shows(folder: Path, wanted: Files) -> bool:
    """Whether a folder holds exactly these files; a link, even to the same content, is not what was built."""
    if not wanted or not folder.is_dir():
        return not wanted and not os.path.lexists(folder)
    if any(path.is_symlink() for path in (folder, *folder.rglob("*"))):
        return False
    shown = files_below(folder)
    return wanted.keys() == shown.keys() and all(sha256_file(wanted[n]) == sha256_file(shown[n]) for n in wanted)


def _replace(wanted: Files, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder.parent) as temporary:
        fresh, old = Path(temporary) / "new", Path(temporary) / "old"
        for name, path in wanted.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, fresh / name)
        if os.path.lexists(folder):
            folder.rename(old)
        if wanted:
            fresh.rename(folder)
