"""Progress of one long command that is not a build."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edgekd.report.escape import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def steps(title: str, shown: bool = True) -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar on stderr while a command works; yield the function to call after each step.

    Args:
        title: What the command does.
        shown: Whether to show the bar; it is never shown where stderr is no terminal.
    """
    console = Console(stderr=True)
    what, note = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[note]"))
    columns = (what, BarColumn(24), note, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(one_line(title), total=None, note="")
        yield lambda done, total, note: progress.update(task, completed=done, total=total, note=one_line(note))
