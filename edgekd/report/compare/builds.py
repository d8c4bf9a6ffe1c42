"""Read what a build wrote into its output folder: an entry for each of its targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from edgekd.errors import ReportError
from edgekd.report.compare.content import convert_object, read_object
from edgekd.report.compare.rows import Entry
from edgekd.report.results import GRAM, LATENCY, REPORT, SAMPLES, SCHEMA_VERSION
from edgekd.report.schema import NotFinite, ReportFile

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.report.row import EngineRow
    from edgekd.report.schema import TargetDetails


class _NotFiniteFigures(Struct, frozen=True):
    not_finite: NotFinite


def read_build(folder: Path) -> tuple[Entry, ...]:
    """Read the report in a folder.

    Raises:
        ReportError: The report is broken or was written by another edgekd.
    """
    path = folder / REPORT
    content = read_object(path, SCHEMA_VERSION, "run the build again: what is up to date is not computed anew")
    for place, value in convert_object(path, content, _NotFiniteFigures).not_finite.items():
        _put(content, place, float(value))
    report = convert_object(path, content, ReportFile)
    if len(report.rows) != len(report.targets):
        raise ReportError(f"{path}: has {len(report.rows)} rows and {len(report.targets)} targets; run the build again")
    if not all(target.ledger.rows for target in report.targets):
        raise ReportError(f"{path}: a target's ledger is empty; run the build again")
    return tuple(_entry(folder, report, row, target) for row, target in zip(report.rows, report.targets, strict=True))


def _entry(folder: Path, report: ReportFile, row: EngineRow, target: TargetDetails) -> Entry:
    below = folder / row.target
    return Entry(
        row=replace(row, run=str(folder), task=report.task),
        ledger=target.ledger,
        profile=target.profile,
        timings=below / LATENCY,
        grams=below / GRAM / SAMPLES,
        details=target,
        report=report,
    )


def _put(content: object, place: str, value: float) -> None:
    """Put back a figure that JSON cannot hold, at its dotted path."""
    *parents, last = place.split(".")
    for name in parents:
        content = _get(content, name)
    if isinstance(content, dict) and last in content:
        content[last] = value


def _get(content: object, name: str) -> object:
    if isinstance(content, list):
        return content[int(name)] if name.isdigit() and int(name) < len(content) else None
    return content.get(name) if isinstance(content, dict) else None
