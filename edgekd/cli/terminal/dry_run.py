"""The output of ``edgekd build --dry-run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli.terminal.tables import open_page, print_indented, print_title
from edgekd.cli.terminal.text import shown
from edgekd.report.format import duration

if TYPE_CHECKING:
    from edgekd.workflows.dry_run import DryRun, Outcome

_STYLES: dict[Outcome, str] = {"ok": "green", "warning": "yellow", "refused": "bold red", "not run": "dim"}
#: Columns of an outcome, and by how many what was said of a stage is indented.
_OUTCOME, _BELOW = 9, 11


def print_dry_run(tried: DryRun, width: int | None = None) -> None:
    """Print for each stage what became of it and why, and what to do next."""
    console = open_page(width)
    print_title(console, "dry run")
    console.print()
    names = max((len(stage.name) for stage in tried.stages), default=0)
    for stage in tried.stages:
        line = shown(f"  {stage.outcome:<{_OUTCOME}}", _STYLES[stage.outcome])
        line.append_text(shown(f"{stage.name:<{names}}", "default"))
        short = stage.text if stage.outcome in ("ok", "warning") else ""
        if _OUTCOME + names + len(short) + 4 <= console.width:
            line.append_text(shown(f"  {short}", "dim"))
            short = ""
        line.rstrip()
        console.print(line)
        if short:
            print_indented(console, shown(short, "dim"), by=_BELOW)
        for warning in stage.warnings:
            print_indented(console, shown(f"warning: {warning}", "yellow"), by=_BELOW)
        if stage.outcome == "refused":
            print_indented(console, shown(stage.text), by=_BELOW)
    console.print()
    print_indented(console, shown(conclusion(tried)))


def conclusion(tried: DryRun) -> str:
    """Return in a sentence what a dry run found."""
    warnings = sum(len(stage.warnings) for stage in tried.stages)
    told = f"{warnings} warning{'s' if warnings > 1 else ''}, " if warnings else ""
    if tried.error is not None:
        return f"The build would end here: {told}after {duration(tried.seconds)}. Nothing was trained."
    left = f" for all but {', '.join(tried.refused)}" if tried.refused else ""
    return f"The build can begin{left}: {told}in {duration(tried.seconds)}. Nothing was trained."


def dry_run_json(tried: DryRun) -> dict[str, object]:
    """Return a dry run as JSON values."""
    return {
        "ok": tried.ok,
        "stages": [
            {"name": stage.name, "outcome": stage.outcome, "text": stage.text, "warnings": list(stage.warnings)}
            for stage in tried.stages
        ],
        "refused": tried.refused,
        "error": None if tried.error is None else str(tried.error),
        "seconds": tried.seconds,
    }
