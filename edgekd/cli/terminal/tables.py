"""Tables and the closing report in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable

from edgekd.cli.terminal.text import shown
from edgekd.pipeline.publish import BUNDLE
from edgekd.report.build.latency_tables import (
    branch_table,
    cold_start_line,
    engine_latency_table,
    measurement_lines,
    method_notes,
)
from edgekd.report.build.markdown import run_lines
from edgekd.report.build.robustness import robustness_line, robustness_table
from edgekd.report.format import size
from edgekd.report.table import (
    Column,
    Table,
    candidate_table,
    describe,
    engine_table,
    ledger_table,
    legend,
    summary_table,
    withheld_notes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from rich.text import Text

    from edgekd.devices.ssh.device import BoardFacts
    from edgekd.gram.verdict import Verdict
    from edgekd.report.results import BuildReport, TargetResult
    from edgekd.runtime.manifest import Manifest
    from edgekd.runtime.measure.results import Profile

_NARROWEST, _WIDEST = 80, 100
_GAP = 2
_NAME_MIN = 8
_INDENT = 2
_VERDICTS = {"pass": "green", "warn": "yellow", "fail": "bold red", "kept": "green", "not kept": "bold red"}
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


def print_report(
    report: BuildReport, folder: Path | None = None, width: int | None = None, verbose: bool = False
) -> None:
    """Print what came out of a build: tables for each target, then the verdicts, the page and how to run a bundle.

    Args:
        report: what to print.
        folder: the build's output folder, so that the bundles' paths can be pasted.
        width: columns; None for the terminal's, from 80 to 100.
        verbose: whether all figures of robustness are printed, and not only the worst.
    """
    console = open_page(width)
    for result in report.targets:
        print_title(console, describe(result))
        print_table(console, ledger_table(result.ledger))
        print_table(console, engine_table(result))
        if len(result.candidates) > 1:
            print_table(console, candidate_table(result))
        if result.facts:
            console.print()
        for fact in result.facts:
            print_indented(console, shown(fact, "dim"))
    if len(report.targets) + len(report.refused) > 1:
        print_title(console, "all targets")
        print_table(console, summary_table(report))
    _print_robustness(console, report, verbose)
    console.print()
    print_legend(console, *(t for r in report.targets for t in (ledger_table(r.ledger), engine_table(r))))
    console.print()
    for result in report.targets:
        _print_result(console, result, folder)
    for target, reason in report.refused.items():
        print_refused(console, target, reason)
        if folder and (folder / target / BUNDLE).is_dir():
            old = f"the bundle of an earlier build is still in {folder / target / BUNDLE}"
            print_indented(console, shown(old, "dim"), by=6)
    _print_what_to_open(console, report, folder)


def _print_what_to_open(console: Console, report: BuildReport, folder: Path | None) -> None:
    """Print where the page is, where the first released bundle is, and the Python that runs it."""
    released = [result for result in report.targets if result.bundle and result.verdict != "fail"]
    lines = [f"Report with pictures:  {folder / 'report.html'}"] if folder else []
    if released:
        bundle = _path(released[0], folder)
        lines += [f"Bundle for your app:   {bundle}", "", "In the app, without torch:", "", *run_lines(bundle)]
    if lines:
        console.print()
    for line in lines:
        console.print(shown(line, "cyan"), soft_wrap=True)


def _print_robustness(console: Console, report: BuildReport, verbose: bool) -> None:
    """Print what costs most, or all that was measured."""
    if verbose:
        table = robustness_table(report)
        print_title(console, table.title.lower())
        print_table(console, table)
    elif report.robustness:
        console.print()
        print_indented(console, shown(robustness_line(report), "dim"))


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


def print_refused(console: Console, target: str, reason: str) -> None:
    """Print why nothing was made for a target."""
    console.print(shown("REFUSED", "bold red").append(f"  {target}", "default"))
    print_indented(console, shown(reason), by=6)


def print_indented(console: Console, text: Text, by: int = _INDENT) -> None:
    """Print text indented and wrapped; a line is not filled up with blanks."""
    for line in text.wrap(console, console.width - by):
        line.rstrip()
        console.print(shown(" " * by).append_text(line))


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
    return "dim" if cell in _FAINT else _VERDICTS.get(cell.lower(), "")


def _path(result: TargetResult, folder: Path | None) -> str:
    return str(folder / result.bundle) if folder and result.bundle else str(result.bundle)


def _print_result(console: Console, result: TargetResult, folder: Path | None) -> None:
    """Print a target's verdict, where its bundle is, and the reasons."""
    where = _path(result, folder) if result.bundle else "no bundle"
    rejected = "  (rejected: not for release)" if result.verdict == "fail" else ""
    reasons = tuple(filter(None, (*result.reasons, result.remark)))
    print_verdict(console, result.verdict, f"{result.target}  {result.chosen}  {where}{rejected}", reasons)


def print_verdict(console: Console, verdict: Verdict, what: str, reasons: tuple[str, ...]) -> None:
    """Print a verdict, of what, and the reasons below it."""
    console.print(shown(verdict.upper(), _VERDICTS[verdict]).append_text(shown(f"  {what}")), soft_wrap=True)
    for reason in reasons:
        print_indented(console, shown(reason), by=6)
