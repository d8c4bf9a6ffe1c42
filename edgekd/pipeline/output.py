"""The folder of results: one writer at a time, and an index of what edgekd wrote there. Nothing else is replaced.

A place is a path in the folder that edgekd writes: of a file, or with a slash at its end of a folder with all in it.
The index names the files that were written. Whatever else lies in a place was put there by somebody else, and a command
that would replace it is refused before it does any work.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekd.errors import OutputError
from edgekd.files import disk_errors, need, write_text
from edgekd.stages.disk import refusals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_LOCK, _INDEX = ".lock", ".edgekd.json"
#: The most names that an error lists.
_SHOWN = 3


@contextmanager
def writing(output: Path, places: Sequence[str]) -> Iterator[None]:
    """Hold the output's lock while some of its places are written.

    Of all commands with the same output, whatever their caches, one at a time writes there.

    Raises:
        OutputError: Something in it cannot be written, or would replace what edgekd did not write.
    """
    filelock = need("filelock", "build")
    with refusals(output, OutputError, "--output"), filelock.FileLock(output / _LOCK), replacing(output, places):
        yield


@contextmanager
def replacing(output: Path, places: Sequence[str]) -> Iterator[None]:
    """Keep the index while some places of an output are written.

    Raises:
        OutputError: Something in it cannot be written, or would replace what edgekd did not write.
    """
    with refusals(output, OutputError, "--output"), disk_errors(output):
        refuse_foreign(output, places)
        index = _read_index(output)
        # Whatever is in these places from now on is edgekd's, even where this process is killed.
        _write_index(output, index | set(places))
        yield
        _write_index(output, {name for name in index if not _within(name, places)} | _present(output, places))


def refuse_foreign(output: Path, places: Sequence[str]) -> None:
    """Refuse to write some places of an output where that would replace what edgekd did not write.

    Raises:
        OutputError: It would, or a file is where a folder is wanted.
    """
    index = _read_index(output)
    foreign = sorted(name for name in _present(output, places) if not _within(name, index))
    if not foreign:
        return
    more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
    raise OutputError(
        f"{output}: edgekd did not write {', '.join(foreign[:_SHOWN])}{more}, and would replace it; move it away, or "
        "choose another folder with --output"
    )


def _present(output: Path, places: Sequence[str]) -> set[str]:
    """Return what there is in some places, by its path in the output: files, links, and folders in a file's place."""
    present: set[str] = set()
    for place in places:
        path = output / place
        above = [parent for parent in path.parents if parent.is_relative_to(output) and parent != output]
        blocking = [parent for parent in above if os.path.lexists(parent) and not parent.is_dir()]
        found = blocking or _leaves(path, is_folder=place.endswith("/"))
        present |= {one.relative_to(output).as_posix() for one in found}
    return present


def _leaves(path: Path, *, is_folder: bool) -> list[Path]:
    if not is_folder or path.is_symlink() or not path.is_dir():
        return [path] if os.path.lexists(path) else []
    return [one for one in path.rglob("*") if one.is_symlink() or not one.is_dir()]


def _within(name: str, places: set[str] | Sequence[str]) -> bool:
    """Whether a path is one of some places, or in one of them."""
    return name in places or any(place.endswith("/") and name.startswith(place) for place in places)


def _read_index(output: Path) -> set[str]:
    """Return the files that edgekd wrote, and the places that it was about to write when it was killed."""
    try:
        content = json.loads((output / _INDEX).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return set()
    return set(map(str, content)) if isinstance(content, list) else set()


def _write_index(output: Path, names: set[str]) -> None:
    write_text(output / _INDEX, json.dumps(sorted(names), indent=1) + "\n")
