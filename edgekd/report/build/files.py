"""The report of a build as files: ``report.json`` for machines, ``report.md`` for readers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgekd.files import write_text
from edgekd.gram.gate import judge
from edgekd.report.build.markdown import report_markdown
from edgekd.report.build.robustness import robustness_json
from edgekd.report.build.training_picture import write_pictures
from edgekd.report.compare.formats import Comparison
from edgekd.report.compare.page import as_html
from edgekd.report.compare.read import read_run
from edgekd.report.compare.rows import sort_entries
from edgekd.report.format import withheld
from edgekd.report.results import ENGINE, REPORT, SCHEMA_VERSION, BuildReport, TargetResult
from edgekd.runtime.manifest import map_leaves

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.runtime.measure.results import EngineProfile, Latency, Paced, Sustained

_QUANTILES = ("p50", "p90", "p99")


def write_report(report: BuildReport, folder: Path) -> None:
    """Write ``report.json``, ``report.md`` with its pictures, and ``report.html`` into ``folder``, each atomically.

    The page is made of what was written: it shows what ``edgekd report`` will.
    """
    text = json.dumps(report_json(report), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / REPORT, text + "\n")
    write_pictures(report, folder)
    write_text(folder / "report.md", report_markdown(report))
    write_text(folder / "report.html", as_html(Comparison(sort_entries(read_run(folder), "p50"))))


def report_json(report: BuildReport) -> dict[str, Any]:
    """Return the whole report as JSON values.

    ``rows`` has one entry for each target's engine. Each null in a row has its reason in the row's ``not_measured``,
    by dotted path. Throughput is that of one stream, 1000 / the mean latency in ms. Elsewhere a figure that is not
    finite is null, and ``not_finite`` says what it was. Latencies are in ms, sizes in bytes, stage times in s.
    """
    rows = [_row(result) for result in report.targets]
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "recipe": report.recipe,
        "task": report.task,
        "seed": report.seed,
        "verdict": report.verdict,
        "versions": report.versions,
        "rows": rows,
        "targets": [_target(result) for result in report.targets],
        "stages": [asdict(stage) for stage in report.stages],
        "training": {name: _training(history) for name, history in report.training.items()},
        "robustness": robustness_json(report),
    }
    not_finite: dict[str, str] = {}

    def replace(path: str, value: Any) -> Any:
        if not isinstance(value, float) or math.isfinite(value):
            return value
        not_finite[path] = str(value)
        return None

    content = map_leaves(content, replace)
    return {**content, "not_finite": not_finite}


def _training(history: list[dict[str, float]]) -> list[dict[str, float | None]]:
    """Return the epochs with the same figures in each: null for a share that nothing could be held against."""
    names = dict.fromkeys(name for epoch in history for name in epoch)
    names |= dict.fromkeys(name.replace("weight.", "share.", 1) for name in names if name.startswith("weight."))
    return [{name: epoch.get(name) for name in names} for epoch in history]


def _row(result: TargetResult) -> dict[str, Any]:
    engine = result.measured(ENGINE)
    row = {
        "target": result.target,
        "device": result.device,
        "runtime": result.runtime,
        "precision": result.precision,
        "verdict": result.verdict,
        "reasons": result.reasons,
        **_measured(engine, result.sizes.get(ENGINE)),
        **_further(engine),
        "metric": _metric(result),
        "gram": _gram(result),
        "speedup_p50": {baseline: result.speedup(baseline) for baseline in result.baselines},
        "size_ratio": {baseline: result.shrinkage(baseline) for baseline in result.baselines},
        "candidate": result.chosen,
        "deploy_logit_error": result.deploy_logit_error,
        "baselines": {name: _measured(result.measured(name), result.sizes.get(name)) for name in result.baselines},
    }
    not_measured: dict[str, str] = {}

    def explain(path: str, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            not_measured[path] = f"not a number: the measured value was {value}"
            return None
        if value is None:
            not_measured[path] = _reason(path, result)
        return value

    return {**map_leaves(row, explain), "not_measured": not_measured}


def _reason(path: str, result: TargetResult) -> str:
    """Say why there is no figure at a row's dotted path."""
    parts = path.split(".")
    if parts[0] == "metric" and result.last.metric is None:
        return "not measured: there are no labels"
    if path == "metric.change":
        return f"not measured: the {result.ledger.reference} has no metric"
    if parts[0] == "metric" and parts[1] == ENGINE:
        return "not measured: no device ran the engine; 'shipped' is the same graph in ONNX Runtime on the host"
    if parts[0] == "metric":
        return f"not measured: the ledger has no stage '{parts[1]}'"
    return _reason_of_engine(parts, result)


def _reason_of_engine(parts: list[str], result: TargetResult) -> str:
    name = ENGINE
    if parts[0] == "baselines":
        name, parts = parts[1], parts[2:]
    if parts[0] in ("size_bytes", "size_ratio"):
        return "not measured: there is no such engine file"
    if result.profile_reason:
        return result.profile_reason
    if parts[0] == "speedup_p50":
        return f"not measured: it needs the p50 of both the {parts[1]} and the engine"
    measured = result.measured(name)
    if measured is None:
        return f"not measured: the profile has no '{name}'"
    return _reason_of_figure(parts, measured)


#: Figures of a row by what a profile says of why it lacks them.
_FURTHER = {
    "compute_ms": "compute",
    "paced": "paced",
    "sustained": "sustained",
    "energy_mj": "energy",
    "energy_rail": "energy",
    "branches_ms": "layers",
}


def _reason_of_figure(parts: list[str], engine: EngineProfile) -> str:
    kind = _FURTHER.get(parts[0])
    if kind and len(parts) == 1:
        return engine.not_measured.get(kind, "not measured: the profile was not asked for it")
    if kind == "sustained":
        return "not measured: the system does not tell"
    latency = engine.latency
    if kind == "compute" and engine.compute:
        latency = engine.compute
    if kind == "paced" and engine.paced:
        latency = engine.paced.latency
    if parts[-1] == "p90_bound":
        return f"withheld: {latency.n} samples are too few for 99 % confidence"
    return withheld(latency.n)


def _measured(engine: EngineProfile | None, size_bytes: int | None) -> dict[str, Any]:
    """Return latency, size and memory of one engine."""
    return {
        "latency_ms": _latency(engine.latency if engine else None),
        "load_ms": engine.load_ms if engine else None,
        "first_run_ms": engine.first_run_ms if engine else None,
        "size_bytes": size_bytes,
        "peak_rss_bytes": engine.peak_rss_bytes if engine else None,
    }


def _latency(latency: Latency | None) -> dict[str, Any]:
    quantiles = {name: getattr(latency, name) if latency else None for name in _QUANTILES}
    return {
        **{name: quantile and quantile.value_ms for name, quantile in quantiles.items()},
        "p90_bound": latency and latency.p90_bound_ms,
        "max": latency and latency.max_ms,
        "n": latency and latency.n,
        "interval_95": {name: [q.low_ms, q.high_ms] if q else None for name, q in quantiles.items()},
    }


def _further(engine: EngineProfile | None) -> dict[str, Any]:
    """Return what else is known of the engine that ships; what was not measured is null as a whole."""
    if engine is None:
        return dict.fromkeys(("throughput_per_s", *_FURTHER))
    return {
        "throughput_per_s": 1000 / engine.latency.mean_ms,
        "compute_ms": _latency(engine.compute) if engine.compute else None,
        "paced": _paced(engine.paced) if engine.paced else None,
        "sustained": _sustained(engine.sustained) if engine.sustained else None,
        "energy_mj": engine.energy.millijoules if engine.energy else None,
        "energy_rail": engine.energy.rail if engine.energy else None,
        "branches_ms": engine.branches_ms or None,
    }


def _paced(paced: Paced) -> dict[str, Any]:
    return {"rate_hz": paced.rate_hz, "late": paced.late, "latency_ms": _latency(paced.latency)}


def _sustained(sustained: Sustained) -> dict[str, Any]:
    """Return how a long run went; the windows are in the profile."""
    hottest = [window.temperature_c for window in sustained.windows if window.temperature_c is not None]
    return {
        "seconds": sustained.seconds,
        "slowdown": sustained.slowdown,
        "throttled": sustained.throttled,
        "hottest_c": max(hottest, default=None),
    }


def _metric(result: TargetResult) -> dict[str, Any]:
    stages = (*result.baselines, *(["pruned", "tuned"] if "student" in result.baselines else []), ENGINE)
    rows = {stage: result.row(stage) for stage in stages}
    return {
        "name": result.ledger.metric,
        "higher_is_better": result.ledger.limits.higher_is_better,
        "samples": result.samples,
        **{stage: row.metric if row else None for stage, row in rows.items()},
        "shipped": result.last.metric,
        "change": result.ledger.metric_change,
    }


def _gram(result: TargetResult) -> dict[str, Any]:
    """Return the drift of what ships against the reference; its verdict is that of the drift alone."""
    limits, row = result.ledger.limits, result.last
    drift = row.to_reference
    return {
        "reference": result.ledger.reference,
        "scope": drift and drift.scope,
        "stage": row.stage,
        "drift": drift and drift.mean,
        "bound": drift and drift.bound,
        "tau": limits.tau_fail,
        "tau_pass": limits.tau_pass,
        "verdict": judge(drift, 0.0, 0.0, limits)[0] if drift else None,
    }


def _target(result: TargetResult) -> dict[str, Any]:
    """Return what stands behind a target's row."""
    return {
        "target": result.target,
        "bundle": result.bundle,
        "sizes_bytes": result.sizes,
        "candidates": [asdict(candidate) for candidate in result.candidates],
        "choice": result.choice,
        "facts": result.facts,
        "budgets": [{**asdict(check), "kept": check.kept} for check in result.budget_checks],
        "ledger": asdict(result.ledger),
        "profile": asdict(result.profile) if result.profile else None,
        "profile_reason": result.profile_reason,
    }
