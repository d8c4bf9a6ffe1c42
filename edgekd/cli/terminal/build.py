"""What came out of a build, in the terminal: the ledger, the three questions, the engines, and the verdicts."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from edgekd.cli.terminal.tables import (
    STYLES,
    open_page,
    print_indented,
    print_legend,
    print_rows,
    print_table,
    print_title,
)
from edgekd.cli.terminal.text import shown
from edgekd.errors import BundleError
from edgekd.gram.verdict import QUESTIONS
from edgekd.pipeline.publish import BUNDLE
from edgekd.report.build.markdown import run_lines
from edgekd.report.build.robustness import robustness_line, robustness_table
from edgekd.report.format import number
from edgekd.report.ledger_tables import (
    candidate_table,
    choice_sentence,
    ledger_table,
    pruning_table,
    question_table,
    undecided_note,
)
from edgekd.report.table import describe, engine_table, summary_table
from edgekd.runtime.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rich.console import Console

    from edgekd.gram.gate import Ledger
    from edgekd.gram.verdict import Verdict
    from edgekd.report.results import BuildReport, TargetResult

#: Columns that a verdict before a question takes, and by how many the lines below a verdict are indented.
_BADGE, _BELOW = 11, 6


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
    if len(report.pruning) > 1:
        table = pruning_table(report.pruning)
        print_title(console, table.title.lower())
        print_table(console, table)
    for result in report.targets:
        _print_target(console, result)
    if len(report.targets) + len(report.refused) > 1:
        print_title(console, "all targets")
        print_table(console, summary_table(report))
    _print_robustness(console, report, verbose)
    console.print()
    print_legend(console, *(t for r in report.targets for t in (ledger_table(r.ledger), engine_table(r))))
    console.print()
    for result in report.targets:
        _print_result(console, result, folder)
    for warning in report.warnings:
        print_indented(console, shown(f"warning: {warning}", "yellow"))
    for target, reason in report.refused.items():
        print_refused(console, target, reason)
        _print_kept_bundle(console, target, folder)
    _print_what_to_open(console, report, folder)


def _print_target(console: Console, result: TargetResult) -> None:
    print_title(console, describe(result))
    print_table(console, ledger_table(result.ledger, "test samples"))
    print_questions(console, result.ledger)
    print_table(console, engine_table(result))
    if len(result.candidates) > 1:
        print_table(console, candidate_table(result))
    if result.facts:
        console.print()
    for fact in result.facts:
        print_indented(console, shown(fact, "dim"))


def print_questions(console: Console, ledger: Ledger) -> None:
    """Print the three questions, as far as they were asked: each with its verdict, its figures, and the reasons."""
    asked = [answered for answered in ledger.questions if answered.verdict]
    tables = [question_table(ledger, answered) for answered in asked]
    for index, answered in enumerate(asked):
        assert answered.verdict is not None  # those that were asked have one
        console.print()
        badge = shown(f"{answered.verdict.upper():<{_BADGE}}", STYLES[answered.verdict])
        print_indented(console, badge.append_text(shown(QUESTIONS[answered.question], "bold default")))
        print_rows(console, tables, index, by=4)
        for reason in answered.reasons:
            print_indented(console, shown(reason), by=4)
    if asked:
        console.print()
        told = f"Behind each figure: its one-sided bounds of {ledger.confidence:.0%}, and its limit."
        print_indented(console, shown(told, "dim"))


def _print_what_to_open(console: Console, report: BuildReport, folder: Path | None) -> None:
    """Print where the page is, where the first released bundle is, and the Python that runs it."""
    released = [result for result in report.targets if result.released]
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


def print_refused(console: Console, target: str, reason: str) -> None:
    """Print why nothing was made for a target."""
    console.print(shown("REFUSED", "bold red").append(f"  {target}", "default"))
    print_indented(console, shown(reason), by=_BELOW)


def _path(result: TargetResult, folder: Path | None) -> str:
    return str(folder / result.shown_bundle) if folder else result.shown_bundle


def _print_result(console: Console, result: TargetResult, folder: Path | None) -> None:
    """Print a target's verdict, where its bundle is, and the reasons; of one that was rejected also what is left."""
    path = _path(result, folder)
    where = f"{result.chosen}  {path}" if result.released else f"not released: {path}"
    print_verdict(console, result.verdict, f"{result.target}  {where}", result.reasons)
    print_asides(console, filter(None, (undecided_note(result), *result.warnings, result.remark)), result.ledger.advice)
    if not result.released:
        print_indented(console, shown(choice_sentence(result), "dim"), by=_BELOW)
        _print_kept_bundle(console, result.target, folder)


def _print_kept_bundle(console: Console, target: str, folder: Path | None) -> None:
    """Print that the bundle of an earlier build is still there, and of which build it is."""
    place = folder / target / BUNDLE if folder else None
    if place is None or not place.is_dir():
        return
    text = f"the bundle of an earlier build is still in {place}{_describe_bundle(place)}"
    print_indented(console, shown(text, "dim"), by=_BELOW)


def _describe_bundle(place: Path) -> str:
    """Return what a bundle is and when it was published; "" where its manifest cannot be read."""
    try:
        manifest = read_manifest(place)
    except BundleError:
        return ""
    published = datetime.fromtimestamp((place / MANIFEST).stat().st_mtime).astimezone()
    metric = str(manifest.task.get("metric"))
    value = manifest.measurements.get(metric)
    measured = [f"{metric} {number(value)}"] if isinstance(value, float) else []
    told = [f"{published:%Y-%m-%d %H:%M}", manifest.precision, *measured, manifest.verdict]
    return f": of {', '.join(told)}"


def print_asides(console: Console, warnings: Iterable[str], advice: Iterable[str]) -> None:
    """Print below a verdict what is less severe, and what to change."""
    for warning in warnings:
        print_indented(console, shown(f"warning: {warning}", "yellow"), by=_BELOW)
    told = "; ".join(advice)
    if told:
        print_indented(console, shown(f"where it began, and what to change: {told}"), by=_BELOW)


def print_verdict(console: Console, verdict: Verdict, what: str, reasons: Iterable[str]) -> None:
    """Print a verdict, of what, and the reasons below it."""
    console.print(shown(verdict.upper(), STYLES[verdict]).append_text(shown(f"  {what}")), soft_wrap=True)
    for reason in reasons:
        print_indented(console, shown(reason), by=_BELOW)
