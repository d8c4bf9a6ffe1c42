"""Tables and the closing report in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from edgekd.report.page import run_lines
from edgekd.report.table import Column, Table, describe, engine_table, ledger_table, summary_table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from edgekd.report.result import BuildReport, TargetResult

_WIDEST = 100
_VERDICTS = {"pass": "green", "warn": "yellow", "fail": "bold red"}
_FAINT = {"–", "not measured", "withheld"}


def open_console(width: int | None = None) -> Console:
    """Return a console on stdout, at most 100 columns wide unless told."""
    if hasattr(sys.stdout, "reconfigure"):  # a finished build must not end in UnicodeEncodeError
        sys.stdout.reconfigure(errors="replace")
    console = Console(width=width, highlight=False)
    if width is None and console.width > _WIDEST:
        console.width = _WIDEST
    return console


def print_report(report: BuildReport, folder: Path | None = None, width: int | None = None) -> None:
    """Print what came out of a build: tables for each target, then the verdicts and how to run the bundles.

    Args:
        report: what to print.
        folder: the build's output folder, so that the bundles' paths can be pasted.
        width: columns; None for the terminal's, up to 100.
    """
    console = open_console(width)
    for result in report.targets:
        console.print()
        console.print(Text(describe(result), "bold"))
        _print_table(console, ledger_table(result))
        _print_table(console, engine_table(result))
    if len(report.targets) > 1:
        console.print()
        console.print(Text("All targets", "bold"))
        _print_table(console, summary_table(report))
    console.print()
    for result in report.targets:
        _print_verdict(console, result, folder)


def print_targets(rows: Iterable[tuple[str, str, str]], width: int | None = None) -> None:
    """Print (name, runtime, description) of each target."""
    _print_list(("target", "runtime", "description"), rows, width)


def print_tasks(rows: Iterable[tuple[str, str]], width: int | None = None) -> None:
    """Print (name, description) of each task."""
    _print_list(("task", "description"), rows, width)


def _print_list(names: tuple[str, ...], rows: Iterable[tuple[str, ...]], width: int | None) -> None:
    columns = tuple(Column(name, right=False) for name in names)
    table = _rich(Table("", columns, tuple(rows)))
    table.columns[0].style = "bold"
    table.columns[-1].no_wrap = False
    open_console(width).print(table)


def _print_table(console: Console, table: Table) -> None:
    console.print()
    console.print(Padding(_rich(table), (0, 0, 0, 2)))
    for note in table.notes:
        console.print(Padding(Text(note, "dim"), (0, 0, 0, 2)))


def _rich(table: Table) -> RichTable:
    """Draw a table with one rule below its head. Figures are never cut; names may be, where the terminal is narrow."""
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="dim")
    for index, column in enumerate(table.columns):
        widest = max(len(column.name), *(len(row[index]) for row in table.rows))
        drawn.add_column(
            column.name,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=widest if column.right else None,
        )
    for row in table.rows:
        drawn.add_row(*(Text(cell, _style(cell)) for cell in row), style="dim" if row[0] == "limit" else "")
    return drawn


def _style(cell: str) -> str:
    return "dim" if cell in _FAINT else _VERDICTS.get(cell.lower(), "")


def _print_verdict(console: Console, result: TargetResult, folder: Path | None) -> None:
    """Print a target's verdict with its reasons, and how to run what came out."""
    console.print(Text.assemble((result.verdict.upper(), _VERDICTS[result.verdict]), f"  {result.target}"))
    for reason in result.reasons:
        console.print(Padding(Text(reason), (0, 0, 0, 6)))
    if result.bundle is None:
        console.print(Padding(Text("no bundle was released", "dim"), (0, 0, 0, 6)))
        return
    path = str(folder / result.bundle) if folder else result.bundle
    console.print(Padding(Text(f"bundle  {path}", overflow="fold"), (0, 0, 0, 6)))
    if result.verdict != "fail":
        console.print()
        for line in run_lines(path):
            console.print(Padding(Text(line, "cyan"), (0, 0, 0, 6)), soft_wrap=True)
    console.print()
