"""A user's own code: the files that it consists of, and errors that name its line. This module imports no torch."""

from __future__ import annotations

import os
import reprlib
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import TaskError, installed, own_line, reason_of
from edgekd.files import sha256_file
from edgekd.plugins import PASSING, guarded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

#: Where a stage reports to whoever called edgekd.
_OBSERVED = "stages/progress.py"

_PACKAGE = Path(__file__).resolve().parent.parent


def source_files(module_file: Path) -> tuple[Path, ...]:
    """Return a task's Python files, its own file first: a change of any of them makes it another task.

    They are all files below the task's folder, loaded or not, since a network may import its neighbours late. A shipped
    task consists of its own file and the networks that it uses.
    """
    if module_file.is_relative_to(_PACKAGE):
        return module_file, _PACKAGE / "training" / "task" / "models.py"
    folder = module_file.parent
    neighbours = [] if installed(module_file) else _python_files(folder)
    return module_file, *(file for file in neighbours if file != module_file)


def source_digests(module_file: Path) -> dict[str, str]:
    """Return the SHA-256 of each of a task's Python files, by its path from the task's folder.

    Raises:
        OSError: A file cannot be read.
    """
    return {
        Path(os.path.relpath(file, module_file.parent)).as_posix(): sha256_file(file)
        for file in source_files(module_file)
    }


def _python_files(folder: Path) -> list[Path]:
    python_files: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if _may_hold_sources(Path(parent, name)))
        python_files += [Path(parent, name) for name in sorted(files) if name.endswith(".py")]
    return [file for file in python_files if file.is_file()]  # an editor's lock may be a link to nowhere


def _may_hold_sources(folder: Path) -> bool:
    name = folder.name
    return not (
        name.startswith(".")
        or name in ("build", "__pycache__", "site-packages", "dist-packages")
        or (folder / "pyvenv.cfg").is_file()
    )


def user_code(what: str, folder: Path | None = None) -> AbstractContextManager[None]:
    """Return a context for a user's code: what it raises is one line, and what it changes in the process is undone.

    Args:
        what: What the code is called for, at the beginning of the line.
        folder: Folder of the task: the innermost line below it is named, else the innermost of all of the user's.

    Raises:
        TaskError: The code raised something, or changed what cannot be undone; edgekd's own errors pass through.
    """
    return guarded(what, TaskError, folder)


@contextmanager
def user_errors(what: str, folder: Path | None) -> Iterator[None]:
    """Turn what a task's code raises while edgekd's runs into one line; a defect of edgekd keeps its traceback.

    Args:
        what: What is done, at the beginning of the line.
        folder: Folder of the task.

    Raises:
        TaskError: The task's files, or a network of a library's, led to the error, or it is no ``Exception``.
    """
    try:
        yield
    except PASSING:
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not _is_users(error, folder):
            raise
        raise TaskError(f"{what}: {reason_of(error, folder)}") from error


def _is_users(error: Exception, folder: Path | None) -> bool:
    """Whether an error is of a task's files, of what they import from elsewhere, or of a network of a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    edgekd = [index for index, frame in enumerate(frames) if Path(frame.filename).is_relative_to(_PACKAGE)]
    if any(frames[index].filename.endswith(_OBSERVED) for index in edgekd):  # whoever called edgekd hears of it
        return False
    if (folder is not None and own_line(error, folder)) or own_line(error):
        return True
    inner = frames[edgekd[-1] + 1 :] if edgekd else []
    called = any(frame.name == "_call_impl" for frame in inner)
    return called and any(installed(Path(frame.filename)) and "/torch/" not in frame.filename for frame in inner)


def describe(value: object) -> str:
    """Return what a user's function returned, as an error calls it."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def shown(value: object) -> str:
    """Return a value in a few characters of one line."""
    return " ".join(reprlib.repr(value).split())[:60]
