"""The output of ``edgekd advise``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli.terminal.tables import open_page, print_indented, print_table, print_title
from edgekd.cli.terminal.text import shown
from edgekd.workflows.advise.report import ablation_table, sentence, skipped_note, standings_table

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.workflows.advise.result import Advice

_STYLES = {
    "use": "green",
    "none": "yellow",
    "no room": "yellow",
    "undecided": "yellow",
    "too short": "bold red",
    "rejected": "bold red",
}


def print_advice(advice: Advice, folder: Path, width: int | None = None) -> None:
    """Print the tables, the verdict, and last the lines to paste.

    Args:
        advice: The advice.
        folder: Folder of the raw figures.
        width: Width in columns; None for the terminal's, from 80 to 100.
    """
    console = open_page(width)
    glyphs = "unicode" if console.encoding.startswith("utf") else "ascii"
    if advice.spent.trials:
        print_title(console, f"which loss · {advice.recipe}")
        print_table(console, standings_table(advice, glyphs))
    for ablation in advice.ablations:
        if ablation.skipped:
            console.print()
            print_indented(console, shown(skipped_note(ablation), "dim"))
        else:
            table = ablation_table(advice, ablation, glyphs)
            print_title(console, table.title)
            print_table(console, table)
    verdict = advice.verdict
    console.print()
    print_indented(console, shown(sentence(verdict.text), _STYLES[verdict.kind]), by=0)
    for reason in verdict.reasons:
        print_indented(console, shown(reason))
    print_indented(console, shown(f"raw figures: {folder / 'advice.json'}", "dim"))
    if verdict.lines:
        console.print()
        for line in verdict.lines:
            console.print(shown(line, "cyan"), soft_wrap=True)
