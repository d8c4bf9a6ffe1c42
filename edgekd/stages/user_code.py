"""A user's own code: the files that it consists of, and errors that name its line. This module imports no torch."""

from __future__ import annotations

import os
import re
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import EdgekdError, TaskError
from edgekd.files import sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A frame in a message that quotes a traceback.
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')

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


def installed(file: Path) -> bool:
    """Whether a file was put where it is by an installer, so that it is not a user's own code."""
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts)


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


@contextmanager
def user_code(what: str, folder: Path | None) -> Iterator[None]:
    """Turn whatever a user's code raises into one line that says what it was, and where.

    Args:
        what: What the code is called for, at the beginning of the line.
        folder: Folder of the task: the innermost line below it is named, else the innermost of all.

    Raises:
        TaskError: The code raised something; edgekd's own errors pass through.
    """
    try:
        yield
    except EdgekdError:
        raise
    except Exception as error:  # a user's code may raise anything, and its line is what helps
        message = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
        raise TaskError(f"{what}: {type(error).__name__}: {message} ({_place(error, folder)})") from error


@contextmanager
def user_errors(what: str, folder: Path | None) -> Iterator[None]:
    """Do as :func:`user_code` where the user's code raised something; a defect of edgekd keeps its traceback.

    Args:
        what: What is done, at the beginning of the line.
        folder: Folder of the task.

    Raises:
        TaskError: A line of the task's files is in the traceback.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, EdgekdError) or own_line(error, folder) is None:
            raise
        with user_code(what, folder):
            raise


def own_line(error: BaseException, folder: Path | None) -> str | None:
    """Return the innermost line of a task's own files that led to an error; None where none did.

    It is in the traceback of the error or of one that caused it, or is named in a message, as torch's exporter does.

    Args:
        error: The error.
        folder: Folder of the task; None for a task without one.
    """
    cause = error.__cause__ or error.__context__
    earlier = own_line(cause, folder) if cause is not None else None
    if earlier or folder is None:
        return earlier
    frames = [(frame.filename, str(frame.lineno)) for frame in traceback.extract_tb(error.__traceback__)]
    named = [*_FRAME.findall(str(error)), *frames]
    own = [f"{file}:{line}" for file, line in named if not file.startswith("<") and _is_own(Path(file), folder)]
    return own[-1] if own else None


def _place(error: Exception, folder: Path | None) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    return own_line(error, folder) or f"{frames[-1].filename}:{frames[-1].lineno}"


def _is_own(file: Path, folder: Path) -> bool:
    file = file.resolve()
    return file.is_relative_to(folder) and not installed(file.relative_to(folder))
