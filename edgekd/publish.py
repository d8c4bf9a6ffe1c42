"""Copy what a target has to show from the cache to the output folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.files import sha256_file

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The bundle's folder, by what the gate said of it, and that of the raw timings. Nothing else in the output is ours.
BUNDLE, REJECTED, LATENCY = "bundle", "rejected", "latency"

#: Files to show by their path below one of these folders.
Files = dict[str, Path]


def files_below(folder: Path) -> Files:
    """Return all files below a folder by their path in it; none where there is no such folder."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def publish(folders: Mapping[str, Files], output: Path) -> None:
    """Make ``output`` show these folders and none of the others that are ours; what is right already stays untouched.

    A folder is replaced whole, by a rename, so that a reader never finds half of it. Two builds must not publish to one
    output at once: the caller holds a lock.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name in (BUNDLE, REJECTED, LATENCY):
        wanted = folders.get(name, {})
        if not _same(wanted, files_below(output / name)):
            _replace(wanted, output / name)


def _same(wanted: Files, there: Files) -> bool:
    return wanted.keys() == there.keys() and all(sha256_file(wanted[n]) == sha256_file(there[n]) for n in wanted)


def _replace(wanted: Files, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        fresh = Path(temporary) / folder.name
        for name, path in wanted.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, fresh / name)
        shutil.rmtree(folder, ignore_errors=True)
        if wanted:
            fresh.rename(folder)
