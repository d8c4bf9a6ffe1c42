"""What the system refuses while a build reads and writes: whose folder it is, how much room there is, what to do."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import EdgekdError, ScratchError
from edgekd.files import DISK_FULL, REFUSALS, file_size_limit, scratch_root

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def refusals(folder: Path, kind: type[EdgekdError], option: str) -> Iterator[None]:
    """Turn what the system refuses into one line.

    Args:
        folder: Folder that the body writes, which ``option`` chooses.
        kind: Error for whatever is refused below it.
        option: What chooses another folder, e.g. "--cache".

    Raises:
        EdgekdError: Of ``kind``, or a :class:`ScratchError` for what is refused in the folder for temporary files.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        place = Path(error.filename or folder)
        if place.absolute().is_relative_to(folder.absolute()):
            raise kind(describe_refusal(error, place, option)) from error
        if place.absolute().is_relative_to(scratch_root()):
            raise ScratchError(describe_refusal(error, place, "TMPDIR")) from error
        raise


def describe_refusal(error: OSError, path: Path, option: str) -> str:
    """Return one line about a path that the system refused: what it said, how much room there is, and what to do.

    Args:
        error: What the system said.
        path: The path.
        option: What chooses another folder, e.g. "--cache".
    """
    line = f"{path}: {error.strerror or error}"
    if error.errno not in DISK_FULL:
        return f"{line}; choose another folder with {option}"
    wanted = getattr(error, "wanted_bytes", None)
    facts = [_room(error, path), f"{wanted / 1e6:.1f} MB wanted" if wanted is not None else ""]
    known = ", ".join(fact for fact in facts if fact)
    return f"{line}{f' ({known})' if known else ''}; make room there, or choose another folder with {option}"


def _room(error: OSError, path: Path) -> str:
    """Return how much may be written where a path is, in words; empty where that is not the point."""
    if error.errno == errno.EFBIG and (limit := file_size_limit()) is not None:
        return f"a file may have {limit / 1e6:.1f} MB here: ulimit -f"
    folder = next((parent for parent in (path, *path.parents) if parent.is_dir()), None)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or folder is None:
        return ""
    return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free in {folder}"


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it; links are removed, not followed, and another disk is left alone.

    Raises:
        OSError: Another file system is mounted below it, or something cannot be removed.
    """
    for parent, folders, _ in os.walk(folder):
        if mounted := next((path for name in folders if (path := Path(parent, name)).is_mount()), None):
            raise OSError(errno.EBUSY, "another file system is mounted there", str(mounted))
    shutil.rmtree(folder)
