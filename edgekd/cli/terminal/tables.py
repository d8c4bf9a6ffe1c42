"""Tables in the terminal: how they are drawn, and those of lists and of profiles."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable

from edgekd.cli.terminal.text import shown
from edgekd.report.build.latency_tables import (
    branch_table,
    cold_start_line,
    engine_latency_table,
    measurement_lines,
    method_notes,
)
from edgekd.report.format import size
from edgekd.report.table import Column, Table, legend, withheld_notes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.text import Text

    from edgekd.devices.ssh.device import BoardFacts
    from edgekd.runtime.manifest import Manifest
    from edgekd.runtime.measure.results import Profile

_NARROWEST, _WIDEST = 80, 100
_GAP = 2
_NAME_MIN = 8
_INDENT = 2
#: The style of each verdict, and of what became of a budget.
STYLES = {
    "pass": "green",
    "warn": "yellow",
    "undecided": "magenta",
    "fail": "bold red",
    "kept": "green",
    "not kept": "bold red",
}
_FAINT = {"–", "not measured", "withheld"}


def open_console(width: int | None = None) -> Console:
    """Return a console on stdout that cannot fail on a character which the terminal's encoding lacks."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    return Console(width=width, highlight=False)


def open_page(width: int | None) -> Console:
    """Return a console for tables. On a narrow terminal they wrap: a figure that is cut off would be lost."""
    console = open_console(width)
    if width is None:
        console.width = min(max(console.width, _NARROWEST), _WIDEST)
    return console


def print_targets(rows: Iterable[tuple[str, str, str]], width: int | None = None) -> None:
    """Print (name, runtime, description) of each target."""
    _print_list(("target", "runtime", "description"), rows, width)


def print_devices(rows: Iterable[tuple[str, str, str]], width: int | None = None) -> None:
    """Print (name, what it gives, state) of each device."""
    _print_list(("device", "gives", "state"), rows, width)


def print_probe(name: str, probed: BoardFacts, width: int | None = None) -> None:
    """Print what a board is."""
    kept = f"{size(probed.used_bytes)} kept by edgekd, {size(probed.free_bytes)} free"
    rows = [(key.replace("_", " "), value) for key, value in probed.facts.items()]
    _print_list((name, ""), [*rows, ("disk", kept)], width)


def print_profile(manifest: Manifest, profile: Profile, device: str, runtime: str, width: int | None = None) -> None:
    """Print what was measured of a bundle's engine on a device, in the ``runtime`` that ran it."""
    console = open_page(width)
    engine = profile.engines[0]
    reported = ("cpu", "gpu", "power_mode", "governor", "clock_limits", "turbo")
    facts = {what.replace("_", " "): profile.machine[what] for what in reported if what in profile.machine}
    print_title(console, f"{manifest.target} · {device} · {runtime} · {manifest.precision}")
    print_table(console, engine_latency_table(engine))
    print_table(console, branch_table(profile))
    console.print()
    for line in (cold_start_line(engine), *measurement_lines(engine)):
        print_indented(console, shown(line))
    console.print()
    for note in (*method_notes(profile), *withheld_notes(profile.engines), _facts(facts)):
        print_indented(console, shown(note, "dim"))


def _facts(facts: Mapping[str, str]) -> str:
    return "; ".join(f"{what} {value}" for what, value in facts.items()) + "."


def print_tasks(rows: Iterable[tuple[str, str]], width: int | None = None) -> None:
    """Print (name, description) of each task."""
    _print_list(("task", "description"), rows, width)


def _print_list(names: tuple[str, ...], rows: Iterable[tuple[str, ...]], width: int | None) -> None:
    columns = tuple(Column(name, right=False) for name in names)
    console = open_page(width)
    drawn = _draw(Table("", columns, tuple(rows)), console.width)
    drawn.columns[0].style = "bold"
    console.print(drawn)


def print_title(console: Console, title: str) -> None:
    """Print a heading."""
    console.print()
    console.print(shown(title, "bold"))


def print_legend(console: Console, *tables: Table) -> None:
    """Print what the columns of these tables mean; a long meaning goes on below its own beginning."""
    rows = legend(*tables).rows
    width = max((len(name) for name, _ in rows), default=0) + _GAP
    for name, meaning in rows:
        for index, line in enumerate(shown(meaning).wrap(console, console.width - _INDENT - width)):
            label = name if index == 0 else ""
            print_indented(console, shown(f"{label:<{width}}{line.plain.rstrip()}", "dim"))


def print_table(console: Console, table: Table) -> None:
    """Print a table with its notes."""
    if table.rows:
        console.print()
        console.print(Padding.indent(_draw(table, console.width - _INDENT), _INDENT))
    if table.notes:
        console.print()
    for note in table.notes:
        print_indented(console, shown(note, "dim"))


def print_indented(console: Console, text: Text, by: int = _INDENT) -> None:
    """Print text indented and wrapped; a line is not filled up with blanks."""
    for line in text.wrap(console, console.width - by):
        line.rstrip()
        console.print(shown(" " * by).append_text(line))


def print_rows(console: Console, tables: Sequence[Table], index: int, by: int) -> None:
    """Print the rows of one of some tables without its head, indented, in columns that are the same for all."""
    every = Table("", tables[0].columns, tuple(row for table in tables for row in table.rows))
    drawn = RichTable(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column, width in zip(every.columns, _widths(every, console.width - by), strict=True):
        justify: Literal["left", "right"] = "right" if column.right else "left"
        drawn.add_column(justify=justify, no_wrap=column.right, overflow="fold", width=width)
    for row in tables[index].rows:
        drawn.add_row(*(shown(cell, _style(cell)) for cell in row))
    console.print(Padding.indent(drawn, by))


def _draw(table: Table, room: int) -> RichTable:
    """Draw a table with one rule below its head. Where room is short names go on in the next line, figures never."""
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for column, width in zip(table.columns, _widths(table, room), strict=True):
        justify: Literal["left", "right"] = "right" if column.right else "left"
        drawn.add_column(shown(column.name), justify=justify, no_wrap=column.right, overflow="fold", width=width)
    for row in table.rows:
        drawn.add_row(*(shown(cell, _style(cell)) for cell in row), style="dim" if row[0] == "limit" else "")
    return drawn


def _widths(table: Table, room: int) -> list[int]:
    """Return each column's width: as its cells are, the widest names narrower until all fits."""
    widths = [max(map(len, cells)) for cells in zip((c.name for c in table.columns), *table.rows, strict=True)]
    names = [index for index, column in enumerate(table.columns) if not column.right]
    while sum(widths) + _GAP * (len(widths) - 1) > room:
        widest = max(names, key=widths.__getitem__)
        if widths[widest] <= _NAME_MIN:
            break
        widths[widest] -= 1
    return widths


def _style(cell: str) -> str:
    return "dim" if cell in _FAINT else STYLES.get(cell.lower(), "")
