"""Read back what builds left in their output folders. What is not used here is not looked into."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from edgekd.errors import ReportError
from edgekd.gram.gate import Ledger, Verdict
from edgekd.recipe import explain
from edgekd.report.joined.rows import Entry, Row
from edgekd.report.result import REPORT, SCHEMA_VERSION
from edgekd.runtime.measure import Profile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class _Latency(Struct, frozen=True):
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


class _Gram(Struct, frozen=True):
    bound: float | None


class _Row(Struct, frozen=True):
    """One of the report's ``rows``."""

    target: str
    device: str
    runtime: str
    precision: str
    verdict: Verdict
    reasons: tuple[str, ...]
    latency_ms: _Latency
    throughput_per_s: float | None
    size_bytes: int | None
    peak_rss_bytes: int | None
    energy_mj: float | None
    energy_rail: str | None
    metric: _Metric
    gram: _Gram
    not_measured: dict[str, str]


class _Target(Struct, frozen=True):
    """What stands behind a row."""

    ledger: Ledger
    profile: Profile | None


class _Report(Struct, frozen=True):
    task: str
    rows: list[_Row]
    targets: list[_Target]


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


def read_runs(folders: Sequence[Path]) -> tuple[Entry, ...]:
    """Read the outputs of builds, in their order.

    Raises:
        ReportError: a folder has no report, or one that is broken or of another edgekd, or is named twice.
    """
    places = [folder.resolve() for folder in folders]
    for index, folder in enumerate(folders):
        if folder.resolve() in places[:index]:
            raise ReportError(f"{folder}: is named twice")
    return tuple(entry for folder in folders for entry in read_run(folder))


def read_run(folder: Path) -> tuple[Entry, ...]:
    """Read the output of one build: an entry for each of its targets.

    Raises:
        ReportError: it has no report, or one that is broken or of another edgekd.
    """
    path = folder / REPORT
    report = _convert(path, _load(path))
    if len(report.rows) != len(report.targets):
        raise ReportError(f"{path}: has {len(report.rows)} rows and {len(report.targets)} targets; build it again")
    return tuple(
        Entry(_row(folder, report.task, row), target.ledger, target.profile, folder / row.target)
        for row, target in zip(report.rows, report.targets, strict=True)
    )


def _load(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, of this schema version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ReportError(
            f"{path}: no such file; give the --output folder of a finished build, by default build/RECIPE"
        ) from None
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # of JSON, and of UTF-8
        raise ReportError(f"{path}: is no JSON: {error}; run the build again, which writes it anew") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        found = "has no schema_version" if version is None else f"has schema_version {version}"
        raise ReportError(
            f"{path}: {found}, and this edgekd reads {SCHEMA_VERSION} only; run the build again: what is up to date is "
            "not computed anew"
        )
    assert isinstance(content, dict)  # it has a version
    return content


def _convert(path: Path, content: dict[str, Any]) -> _Report:
    try:
        for place, value in msgspec.convert(content, _NotFinite).not_finite.items():
            _put(content, place, float(value))
        return msgspec.convert(content, _Report)
    except msgspec.ValidationError as error:
        raise ReportError(f"{path}: {explain(error, _Report)}; run the build again, which writes it anew") from error


def _put(content: Any, place: str, value: float) -> None:
    """Put back a figure that JSON cannot hold, at its dotted path."""
    *parents, last = place.split(".")
    for name in parents:
        content = content[int(name)] if isinstance(content, list) and name.isdigit() else _get(content, name)
    if isinstance(content, dict) and last in content:
        content[last] = value


def _get(content: Any, name: str) -> Any:
    return content.get(name) if isinstance(content, dict) else None


def _row(folder: Path, task: str, row: _Row) -> Row:
    latency = row.latency_ms
    quantiles: dict[str, Any] = {}
    for name in ("p50", "p90", "p99"):
        low, high = latency.interval_95.get(name) or (None, None)
        quantiles |= {f"{name}_ms": getattr(latency, name), f"{name}_low_ms": low, f"{name}_high_ms": high}
    reasons = {field: row.not_measured[path] for field, path in _REASONS.items() if path in row.not_measured}
    return Row(
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
