"""The output of ``edgekd check`` and ``edgekd blame``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli.terminal.build import print_asides, print_questions, print_refused, print_verdict
from edgekd.cli.terminal.tables import (
    open_page,
    print_indented,
    print_legend,
    print_table,
    print_title,
)
from edgekd.cli.terminal.text import shown
from edgekd.report.blame.tables import blame_table
from edgekd.report.ledger_tables import ledger_table
from edgekd.workflows.threshold_table import alarm_table, recipe_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.gram.blame import Blame
    from edgekd.workflows.check import TargetCheck
    from edgekd.workflows.thresholds import Alarm


def print_checks(checks: Sequence[TargetCheck], width: int | None = None) -> None:
    """Print every candidate's ledger, then the verdicts."""
    console = open_page(width)
    for found in checks:
        for name, ledger in found.ledgers.items():
            print_title(console, f"{found.target} · {found.device} · {name}")
            print_table(console, ledger_table(ledger, "validation samples"))
            print_questions(console, ledger)
        console.print()
        for fact in found.facts:
            print_indented(console, shown(fact, "dim"))
    print_legend(console, *(ledger_table(ledger) for found in checks for ledger in found.ledgers.values()))
    console.print()
    for found in checks:
        for name, ledger in found.ledgers.items():
            print_verdict(console, ledger.verdict, f"{found.target}  {name}", ledger.reasons)
            print_asides(console, ledger.warnings, ledger.advice)
        if found.refused:
            print_refused(console, found.target, found.refused)


def print_alarm(alarm: Alarm, width: int | None = None) -> None:
    """Print what each limit misses and refuses for nothing, and the suggested ones as a table of a recipe."""
    console = open_page(width)
    print_title(console, "limits of the gate for this network")
    print_table(console, alarm_table(alarm))
    lines = recipe_lines(alarm)
    if lines:
        console.print()
        for line in lines:
            console.print(shown(line, "cyan"), soft_wrap=True)


def print_blame(target: str, blame: Blame, folder: Path, width: int | None = None) -> None:
    """Print the parts that break INT8, and the path of the picture."""
    console = open_page(width)
    print_title(console, f"{target} · INT8")
    print_table(console, blame_table(blame))
    console.print()
    console.print(shown(f"picture: {folder / 'blame.svg'}", "cyan"), soft_wrap=True)
