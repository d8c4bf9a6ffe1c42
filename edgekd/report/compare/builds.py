"""What a build wrote into its output folder: an entry for each of its targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from edgekd.errors import ReportError
from edgekd.gram.gate import Ledger, Verdict
from edgekd.report.compare.content import convert_object, read_object
from edgekd.report.compare.rows import EngineRow, Entry
from edgekd.report.results import GRAM, LATENCY, REPORT, SAMPLES, SCHEMA_VERSION
from edgekd.runtime.measure.results import Profile

if TYPE_CHECKING:
    from pathlib import Path


class _LatencyJson(Struct, frozen=True):
    p50: float | None
    p90: float | None
    p99: float | None
    n: int | None
    interval_95: dict[str, tuple[float, float] | None]


class _Metric(Struct, frozen=True):
    name: str
    higher_is_better: bool
    shipped: float | None
    change: float | None


class _GramJson(Struct, frozen=True):
    bound: float | None


class _ReportRow(Struct, frozen=True):
    """One of the report's ``rows``."""

    target: str
    device: str
    runtime: str
    precision: str
    verdict: Verdict
    reasons: tuple[str, ...]
    latency_ms: _LatencyJson
    throughput_per_s: float | None
    size_bytes: int | None
    peak_rss_bytes: int | None
    energy_mj: float | None
    energy_rail: str | None
    metric: _Metric
    gram: _GramJson
    not_measured: dict[str, str]


class _RowSource(Struct, frozen=True):
    """What stands behind a row."""

    ledger: Ledger
    profile: Profile | None


class _Report(Struct, frozen=True):
    task: str
    rows: list[_ReportRow]
    targets: list[_RowSource]


class _NotFinite(Struct, frozen=True):
    not_finite: dict[str, Literal["nan", "inf", "-inf"]]


#: Where the report has the reasons of a joined row.
_REASONS = {
    "n": "latency_ms.n",
    **{f"{name}_ms": f"latency_ms.{name}" for name in ("p50", "p90", "p99")},
    "throughput_per_s": "throughput_per_s",
    "metric_value": "metric.shipped",
    "metric_change": "metric.change",
    "drift_bound": "gram.bound",
    "size_bytes": "size_bytes",
    "memory_bytes": "peak_rss_bytes",
    "energy_mj": "energy_mj",
}


def read_build(folder: Path) -> tuple[Entry, ...]:
    """Read the report in a folder.

    Raises:
        ReportError: it is broken or of another edgekd.
    """
    path = folder / REPORT
    content = read_object(path, SCHEMA_VERSION, "run the build again: what is up to date is not computed anew")
    for place, value in convert_object(path, content, _NotFinite).not_finite.items():
        _put(content, place, float(value))
    report = convert_object(path, content, _Report)
    if len(report.rows) != len(report.targets):
        raise ReportError(f"{path}: has {len(report.rows)} rows and {len(report.targets)} targets; run the build again")
    if not all(target.ledger.rows for target in report.targets):
        raise ReportError(f"{path}: a target's ledger is empty; run the build again")
    entries = []
    for row, target in zip(report.rows, report.targets, strict=True):
        below, joined = folder / row.target, _row(folder, report.task, row)
        entries.append(Entry(joined, target.ledger, target.profile, below / LATENCY, below / GRAM / SAMPLES))
    return tuple(entries)


def _put(content: Any, place: str, value: float) -> None:
    """Put back a figure that JSON cannot hold, at its dotted path."""
    *parents, last = place.split(".")
    for name in parents:
        content = _get(content, name)
    if isinstance(content, dict) and last in content:
        content[last] = value


def _get(content: Any, name: str) -> Any:
    if isinstance(content, list):
        return content[int(name)] if name.isdigit() and int(name) < len(content) else None
    return content.get(name) if isinstance(content, dict) else None


def _row(folder: Path, task: str, row: _ReportRow) -> EngineRow:
    latency = row.latency_ms
    quantiles: dict[str, Any] = {}
    for name in ("p50", "p90", "p99"):
        low, high = latency.interval_95.get(name) or (None, None)
        quantiles |= {f"{name}_ms": getattr(latency, name), f"{name}_low_ms": low, f"{name}_high_ms": high}
    reasons = {field: row.not_measured[path] for field, path in _REASONS.items() if path in row.not_measured}
    return EngineRow(
        run=str(folder),
        task=task,
        target=row.target,
        device=row.device,
        runtime=row.runtime,
        precision=row.precision,
        verdict=row.verdict,
        reasons=row.reasons,
        n=latency.n,
        **quantiles,
        throughput_per_s=row.throughput_per_s,
        metric=row.metric.name,
        higher_is_better=row.metric.higher_is_better,
        metric_value=row.metric.shipped,
        metric_change=row.metric.change,
        drift_bound=row.gram.bound,
        size_bytes=row.size_bytes,
        memory_bytes=row.peak_rss_bytes,
        energy_mj=row.energy_mj,
        energy_rail=row.energy_rail,
        not_measured=reasons,
    )
