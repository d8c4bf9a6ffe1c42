"""Read what a build wrote into its output folder: an entry for each of its targets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from edgekd.config.target import Budgets
from edgekd.errors import ReportError
from edgekd.report.compare.content import convert_object, read_object
from edgekd.report.compare.former import modern_report
from edgekd.report.compare.rows import Entry
from edgekd.report.results import GRAM, LATENCY, REPORT, SAMPLES, SCHEMA_VERSION, BuildReport, TargetResult
from edgekd.report.schema import NotFinite, ReportFile
from edgekd.runtime.corruption import Robustness

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.report.row import EngineRow
    from edgekd.report.schema import TargetDetails
    from edgekd.runtime.corruption import NetworkRobustness

#: The target's budgets by what a report calls them.
_BUDGETS = {"latency p50": "latency_ms", "size": "size_mb", "peak memory": "memory_mb"}


#: The versions before this one: 3 has no answers, and 2 also differs in names of rows and of what ships.
_FORMER_VERSIONS = (2, 3)


class _NotFiniteFigures(Struct, frozen=True):
    not_finite: NotFinite


def read_build(folder: Path) -> tuple[Entry, ...]:
    """Read the report in a folder.

    Raises:
        ReportError: The report is broken or was written by another edgekd.
    """
    path = folder / REPORT
    remedy = "run the build again: what is up to date is not computed anew"
    content = read_object(path, (*_FORMER_VERSIONS, SCHEMA_VERSION), remedy)
    if content["schema_version"] in _FORMER_VERSIONS:
        content = modern_report(content)
    for place, value in convert_object(path, content, _NotFiniteFigures).not_finite.items():
        _put(content, place, float(value))
    report = convert_object(path, content, ReportFile)
    if len(report.rows) != len(report.targets):
        raise ReportError(f"{path}: has {len(report.rows)} rows and {len(report.targets)} targets; run the build again")
    if not all(target.ledger.rows for target in report.targets):
        raise ReportError(f"{path}: a target's ledger is empty; run the build again")
    build = _build(report)
    return tuple(_entry(folder, build, row, result) for row, result in zip(report.rows, build.targets, strict=True))


def _entry(folder: Path, build: BuildReport, row: EngineRow, result: TargetResult) -> Entry:
    below = folder / row.target
    return Entry(
        row=replace(row, run=str(folder), task=build.task),
        ledger=result.ledger,
        profile=result.profile,
        timings=below / LATENCY,
        grams=below / GRAM / SAMPLES,
        result=result,
        report=build,
    )


def _build(report: ReportFile) -> BuildReport:
    """Return the build that a report is of."""
    details = report.robustness
    engines = details.engines or {}
    results = (
        _result(row, target, engines.get(row.target)) for row, target in zip(report.rows, report.targets, strict=True)
    )
    measured = details.networks is not None and details.noise is not None
    return BuildReport(
        recipe=report.recipe,
        task=report.task,
        seed=report.seed,
        versions=report.versions,
        stages=report.stages,
        training={name: [_epoch(epoch) for epoch in history] for name, history in report.training.items()},
        targets=tuple(results),
        refused=report.refused,
        robustness=Robustness(details.noise or 0.0, details.networks or {}) if measured else None,
        robustness_reason=details.reason or "not measured",
        pruning=report.pruning,
    )


def _epoch(figures: dict[str, float | None]) -> dict[str, float]:
    """Return the figures that an epoch has."""
    return {name: value for name, value in figures.items() if value is not None}


def _result(row: EngineRow, target: TargetDetails, robustness: NetworkRobustness | None) -> TargetResult:
    limits = {_BUDGETS[check.name]: check.limit for check in target.budgets if check.name in _BUDGETS}
    return TargetResult(
        target=row.target,
        device=row.device,
        runtime=row.runtime,
        precision=row.precision,
        ledger=target.ledger,
        baselines=tuple(row.baselines),
        profile=target.profile,
        profile_reason=target.profile_reason or ("not measured" if target.profile is None else None),
        sizes=target.sizes_bytes,
        bundle=target.bundle,
        budgets=Budgets(**limits),
        deploy_logit_error=math.nan if row.deploy_logit_error is None else row.deploy_logit_error,
        candidates=target.candidates,
        chosen=row.candidate or "",
        choice=target.choice,
        chosen_on=target.chosen_on,
        facts=target.facts,
        robustness=robustness,
        details=target.details,
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
