"""Every error that a user can cause, with the exit code of the command line for it.

A message says what is wrong, where, and what to do. The command line prints it without a traceback; every other
exception is a defect of edgekd and keeps its traceback.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


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
    """A data package cannot be fetched, or is not the one that was pinned."""

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
