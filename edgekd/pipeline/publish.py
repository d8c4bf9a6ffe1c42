"""Copy the files that a target shows from the cache to the output folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.files import disk_errors, sha256_file
from edgekd.report import results
from edgekd.report.results import GRAM, LATENCY
from edgekd.stages.disk import remove_tree

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Folders of the bundle, released or rejected by the gate, and of what was built on the device.
BUNDLE, REJECTED, ENGINES = "bundle", results.REJECTED, "engines"

_FOLDERS = (BUNDLE, REJECTED, LATENCY, GRAM, ENGINES)
#: A folder in which the next content is put together, and the last one is kept until that is in its place.
_TEMPORARY, _NEW, _OLD = ".edgekd-publish-", "new", "old"

#: Files to show, by their path below one of these folders.
Files = dict[str, Path]


def files_below(folder: Path) -> Files:
    """Return all files below a folder by their path in it; nothing where there is no such folder."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def target_places(target: str) -> list[str]:
    """Return the places of a target in an output: what :func:`publish` replaces."""
    return [f"{target}/{name}/" for name in _FOLDERS]


def publish(folders: Mapping[str, Files], output: Path) -> None:
    """Make ``output`` show these of edgekd's folders and no others; what is right already stays untouched.

    Where they have a rejected bundle, that of the last build that was released stays where it is.

    A folder is replaced as a whole, by renames, so that a reader never finds half of it. It is to be called inside
    :func:`~edgekd.pipeline.output.writing`, for :func:`target_places`.
    """
    output.mkdir(parents=True, exist_ok=True)
    for leftover in output.glob(f"{_TEMPORARY}*"):  # of a build that was killed here
        if not leftover.is_symlink() and {path.name for path in leftover.iterdir()} <= {_NEW, _OLD}:
            remove_tree(leftover)
    for name in _FOLDERS:
        wanted = folders.get(name, {})
        if name == BUNDLE and folders.get(REJECTED):
            continue
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
    wanted_bytes = sum(path.stat().st_size for path in wanted.values())
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder.parent) as temporary:
        fresh, old = Path(temporary) / _NEW, Path(temporary) / _OLD
        with disk_errors(folder.parent, alone=True, wanted_bytes=wanted_bytes):
            for name, path in wanted.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, fresh / name)
        if os.path.lexists(folder):
            folder.rename(old)
        if wanted:
            fresh.rename(folder)
