"""The output of the command line: observers of a running build, and tables. Colour is never the only signal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli.terminal.build import print_report
from edgekd.cli.terminal.live import LiveView
from edgekd.cli.terminal.plain import Json, Plain, Quiet
from edgekd.cli.terminal.steps import steps
from edgekd.cli.terminal.tables import (
    open_console,
    print_devices,
    print_probe,
    print_profile,
    print_targets,
    print_tasks,
)
from edgekd.cli.terminal.text import say

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from edgekd.stages.progress import Observer

__all__ = [
    "Json",
    "LiveView",
    "Plain",
    "Quiet",
    "choose_observer",
    "print_devices",
    "print_probe",
    "print_profile",
    "print_report",
    "print_targets",
    "print_tasks",
    "say",
    "steps",
]


def choose_observer(json: bool, quiet: bool, verbose: bool, terminal: bool) -> AbstractContextManager[Observer]:
    """Return the observer that fits the options; the build runs inside its ``with``.

    Args:
        json: Whether to write one JSON object a line, for programs; it takes precedence over the others.
        quiet: Whether to write nothing but warnings, on stderr.
        verbose: Whether to write every note as a line of its own.
        terminal: Whether stdout is a terminal.
    """
    if json:
        return Json()
    if quiet:
        return Quiet()
    console = open_console()
    if terminal and not console.is_dumb_terminal:
        return LiveView(console, verbose)
    return Plain(verbose)
