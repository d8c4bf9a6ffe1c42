"""The output of ``edgekd search``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli.terminal.tables import open_page, print_indented, print_table, print_title
from edgekd.cli.terminal.text import shown
from edgekd.report.search.tables import PICTURE, TABLE, search_table

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.report.search.tables import SearchResult


def print_search(found: SearchResult, folder: Path, width: int | None = None) -> None:
    """Print the Pareto front and the command that builds its first.

    Where no trial is done, the state of the study is printed; where the gate rejects all, there is nothing to build.
    """
    console = open_page(width)
    print_title(console, f"{found.study} · {found.storage}")
    if not found.done:
        print_indented(console, shown("no trial is done yet; the same command goes on"))
        return
    print_table(console, search_table(found))
    console.print()
    console.print(
        shown(f"{folder / PICTURE} shows all trials, {folder / TABLE} has the command of each."), soft_wrap=True
    )
    if not found.front:
        console.print(shown("Nothing to build: the gate rejects every trial.", "bold red"))
        return
    best = found.front[0]
    console.print(shown(f"The best {found.metric} that the gate lets through, trial {best.number}, is built by"))
    console.print(shown(found.command(best), "cyan"), soft_wrap=True)
