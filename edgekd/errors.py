"""Every error that a user can cause, with the exit code of the command line for it.

A message says what is wrong, where, and what to do. The command line prints it without a traceback; every other
exception is a defect of edgekd and keeps its traceback.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

_PACKAGE = Path(__file__).resolve().parent

#: A frame in a message that quotes a traceback.
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


class EdgekdError(Exception):
    """Base of all errors below. Exit code 2 belongs to click's usage errors, 130 to Ctrl-C."""

    exit_code: ClassVar[int] = 1


class RecipeError(EdgekdError):
    """A recipe cannot be read: unknown key, wrong type, value out of range, no such file."""

    exit_code = 3


class TaskError(EdgekdError):
    """The user's task does not keep the protocol: overlapping splits, wrong tap, wrong shape."""

    exit_code = 4


class DataError(EdgekdError):
    """Data cannot be fetched or read: a package is not the one that was pinned, or a table or a file is damaged."""

    exit_code = 5


class TargetError(EdgekdError):
    """A target or calibration file cannot be read, or asks for what edgekd does not have."""

    exit_code = 6


class MissingDependency(EdgekdError):
    """An optional package is needed and not installed."""

    exit_code = 7


class ModelError(EdgekdError):
    """A model cannot be loaded, exported, quantized or run, or two forms of it disagree."""

    exit_code = 8


class BundleError(EdgekdError):
    """A bundle is incomplete, altered, or was rejected by the gate."""

    exit_code = 9


class DeviceError(EdgekdError):
    """A device did not answer, or its agent failed."""

    exit_code = 10


class StorageError(DeviceError):
    """A device's disk is full, or may not be written."""


class CacheError(EdgekdError):
    """The cache folder cannot be used."""

    exit_code = 11


class OutputError(EdgekdError):
    """The output folder cannot be written."""

    exit_code = 12


class RankError(EdgekdError):
    """One of several processes that train together ended, hangs, or cannot be met."""

    exit_code = 13


class ReportError(EdgekdError):
    """A report cannot be read back, or what is asked of the joined table is not in it."""

    exit_code = 14


class BudgetError(EdgekdError):
    """A budget file cannot be read, or has limits for rows that are not there."""

    exit_code = 15


class ScratchError(EdgekdError):
    """The folder for temporary files, ``TMPDIR``, is full or cannot be written."""

    exit_code = 16


class GateFailed(EdgekdError):
    """The build finished, its artefacts are kept, and the gate rejected it."""

    exit_code = 20


class TargetRefused(EdgekdError):
    """Some of several targets or devices refused; the others are finished and published."""

    exit_code = 22


class BudgetMissed(EdgekdError):
    """A row of the joined table does not keep a limit of the budget file."""

    exit_code = 21


def reason_of(problem: BaseException, folder: Path | None = None) -> str:
    """Return in one line what a user's code raised, and where.

    Args:
        problem: What it raised.
        folder: Folder of the user's code; by default all files that are neither edgekd's nor installed.
    """
    if isinstance(problem, SystemExit):
        said = "calls sys.exit()" if problem.code is None else f"calls sys.exit({problem.code!r})"
    else:
        message = problem.msg if isinstance(problem, SyntaxError) else str(problem)
        said = ": ".join(filter(None, (type(problem).__name__, " ".join(message.split()))))
    place = _place(problem, folder)
    return f"{said} ({place})" if place else said


def _place(problem: BaseException, folder: Path | None) -> str:
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{problem.filename}:{problem.lineno}"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(problem.__traceback__)]
    others = [f"{file}:{line}" for file, line in frames if not file.startswith(("<", str(_PACKAGE)))]
    return own_line(problem, folder) or (others or [""])[-1]


def own_line(problem: BaseException, folder: Path | None = None) -> str:
    """Return the innermost line of a user's own files that led to an error; "" where none did.

    It is in the traceback of the error or of one that caused it, or is named in a message, as torch's exporter does.
    """
    cause = problem.__cause__ or problem.__context__
    if cause is not None and (earlier := own_line(cause, folder)):
        return earlier
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(problem.__traceback__)]
    own = [f"{file}:{line}" for file, line in (*_FRAME.findall(str(problem)), *frames) if is_own(file, folder)]
    return own[-1] if own else ""


def is_own(file: str, folder: Path | None = None) -> bool:
    """Whether a file is a user's code: below their folder where it is given, else neither edgekd's nor installed."""
    if file.startswith("<"):  # "<frozen os>", "<string>"
        return False
    path = Path(file).resolve()
    if folder is not None:
        return path.is_relative_to(folder) and not installed(path.relative_to(folder))
    libraries = (_PACKAGE, Path(sysconfig.get_path("stdlib")).resolve())
    return not (installed(path) or any(path.is_relative_to(parent) for parent in libraries))


def installed(file: Path) -> bool:
    """Whether a file was put where it is by an installer, so that it is not a user's own code."""
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts)


#: The most names that an error lists; a network has hundreds of tensors.
_SHOWN = 30


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to ``name``, or what is known when none is near."""
    known = sorted(known)
    if not known:
        return "; there are none"
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    rest = len(known) - _SHOWN
    return "; known: " + ", ".join(known[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
