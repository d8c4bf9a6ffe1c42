"""The row of an engine, made of what a build or a profile measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edgekd.gram.gate import CUT, DEVICE, FINETUNED, GIVEN
from edgekd.gram.verdict import judge_structure
from edgekd.report.format import withheld
from edgekd.report.results import SHIPPED
from edgekd.report.row import (
    QUANTILES,
    AnswerFigures,
    BaselineFigures,
    EngineRow,
    GramFigures,
    LatencyFigures,
    MetricFigures,
    PacedFigures,
    SustainedFigures,
)
from edgekd.runtime.manifest import map_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.gram.gate import Ledger
    from edgekd.gram.verdict import Verdict
    from edgekd.report.results import TargetResult
    from edgekd.runtime.measure.results import EngineProfile, Latency, Paced, Sustained

_NO_ANSWERS = "not measured: what ships is the ledger's reference itself"
_NOT_ASKED = "not measured: the profile was not asked for it"

#: Parts of a row that a profile may lack, by the name under which the profile says why.
_PROFILE_PARTS = {
    "compute_ms": "compute",
    "paced": "paced",
    "sustained": "sustained",
    "energy_mj": "energy",
    "energy_rail": "energy",
    "branches_ms": "layers",
}


@dataclass(frozen=True)
class EngineIdentity:
    """What an engine is, and what the gate said of it; the attributes are those of the row."""

    target: str
    device: str
    runtime: str
    precision: str
    verdict: Verdict
    released: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def build_row(result: TargetResult) -> EngineRow:
    """Return the row of the engine that a build ships for a target."""
    identity = EngineIdentity(
        target=result.target,
        device=result.device,
        runtime=result.runtime,
        precision=result.precision,
        verdict=result.verdict,
        released=result.released,
        reasons=result.reasons,
        warnings=result.warnings,
    )
    row = msgspec.structs.replace(
        _row(identity, result.measured(SHIPPED), result.sizes.get(SHIPPED), result.ledger),
        metric=_build_metric(result),
        speedup_p50={baseline: result.speedup(baseline) for baseline in result.baselines},
        size_ratio={baseline: result.shrinkage(baseline) for baseline in result.baselines},
        candidate=result.chosen,
        deploy_logit_error=result.deploy_logit_error,
        baselines={name: _measured(result.measured(name), result.sizes.get(name)) for name in result.baselines},
    )
    return _explained(row, lambda path: _reason(path, result))


def profile_row(identity: EngineIdentity, engine: EngineProfile, ledger: Ledger) -> EngineRow:
    """Return the row of a bundle's engine that was profiled alone.

    Args:
        identity: What the bundle and the profile say of the engine.
        engine: What was measured.
        ledger: The bundle's ledger; its last row is of what ships.
    """
    row = _row(identity, engine, engine.size_bytes, ledger)
    return _explained(row, lambda path: _profile_reason(path, engine))


def _row(identity: EngineIdentity, engine: EngineProfile | None, size_bytes: int | None, ledger: Ledger) -> EngineRow:
    """Return a row with what is known of one engine alone, without reasons for what is lacking."""
    known = _measured(engine, size_bytes)
    return EngineRow(
        target=identity.target,
        device=identity.device,
        runtime=identity.runtime,
        precision=identity.precision,
        verdict=identity.verdict,
        released=identity.released,
        reasons=identity.reasons,
        warnings=identity.warnings,
        questions={answered.question: answered.verdict for answered in ledger.questions if answered.verdict},
        latency_ms=known.latency_ms,
        load_ms=known.load_ms,
        first_run_ms=known.first_run_ms,
        size_bytes=known.size_bytes,
        peak_rss_bytes=known.peak_rss_bytes,
        throughput_per_s=1000 / engine.latency.mean_ms if engine else None,
        compute_ms=_latency(engine.compute) if engine and engine.compute else None,
        paced=_paced(engine.paced) if engine and engine.paced else None,
        sustained=_sustained(engine.sustained) if engine and engine.sustained else None,
        energy_mj=engine.energy.millijoules if engine and engine.energy else None,
        energy_rail=engine.energy.rail if engine and engine.energy else None,
        branches_ms=(engine.branches_ms or None) if engine else None,
        metric=_metric(ledger),
        answers=_answers(ledger),
        gram=_gram(ledger),
        speedup_p50={},
        size_ratio={},
        candidate=None,
        deploy_logit_error=None,
        baselines={},
        not_measured={},
    )


def _explained(row: EngineRow, reason: Callable[[str], str]) -> EngineRow:
    """Return the row with the reason of each figure that it lacks; a figure that is not finite becomes None."""
    not_measured: dict[str, str] = {}

    def explain(path: str, value: object) -> object:
        if isinstance(value, float) and not math.isfinite(value):
            not_measured[path] = f"not a number: the measured value was {value}"
            return None
        if value is None:
            not_measured[path] = reason(path)
        return value

    plain = map_leaves(msgspec.to_builtins(row), explain)
    return msgspec.convert({**plain, "not_measured": not_measured}, EngineRow)


def _measured(engine: EngineProfile | None, size_bytes: int | None) -> BaselineFigures:
    """Return latency, size and memory of one engine."""
    return BaselineFigures(
        latency_ms=_latency(engine.latency if engine else None),
        load_ms=engine.load_ms if engine else None,
        first_run_ms=engine.first_run_ms if engine else None,
        size_bytes=size_bytes,
        peak_rss_bytes=engine.peak_rss_bytes if engine else None,
    )


def _latency(latency: Latency | None) -> LatencyFigures:
    if latency is None:
        return LatencyFigures(None, None, None, None, None, None, dict.fromkeys(QUANTILES))
    quantiles = {"p50": latency.p50, "p90": latency.p90, "p99": latency.p99}
    return LatencyFigures(
        **{name: quantile.value_ms if quantile else None for name, quantile in quantiles.items()},
        p90_bound=latency.p90_bound_ms,
        max=latency.max_ms,
        n=latency.n,
        interval_95={name: (q.low_ms, q.high_ms) if q else None for name, q in quantiles.items()},
    )


def _paced(paced: Paced) -> PacedFigures:
    return PacedFigures(paced.rate_hz, paced.late, _latency(paced.latency))


def _sustained(sustained: Sustained) -> SustainedFigures:
    """Return how a long run went; its windows are in the profile."""
    temperatures = [window.temperature_c for window in sustained.windows if window.temperature_c is not None]
    return SustainedFigures(sustained.seconds, sustained.slowdown, sustained.throttled, max(temperatures, default=None))


def _metric(ledger: Ledger) -> MetricFigures:
    """Return the metric of what ships."""
    shipped = ledger.rows[-1]
    return MetricFigures(
        name=ledger.metric,
        higher_is_better=ledger.limits.higher_is_better,
        samples=shipped.to_reference.samples if shipped.to_reference else 0,
        shipped=shipped.metric,
        change=ledger.metric_change,
    )


def _build_metric(result: TargetResult) -> MetricFigures:
    """Return the metric of what ships, and of each stage that the build could have."""
    baselines = [name for name in result.baselines if name != GIVEN]  # which is what ships itself
    stages = (*baselines, *((CUT, FINETUNED) if "student" in result.baselines else ()), DEVICE)
    rows = {stage: result.row(stage) for stage in stages}
    values = {stage: row.metric if row else None for stage, row in rows.items()}
    if "float" in values:
        values["float_model"] = values.pop("float")
    return msgspec.structs.replace(_metric(result.ledger), **values)


def _answers(ledger: Ledger) -> AnswerFigures | None:
    """Return what ships beside the reference, sample by sample."""
    row, limits = ledger.rows[-1], ledger.limits
    answers = row.first
    if answers is None:
        return None
    figures = AnswerFigures(
        kind=answers.kind,
        samples=answers.samples,
        error=answers.error.mean,
        error_bound=answers.error.high,
        divergence=answers.divergence.mean,
        divergence_low=answers.divergence.low,
        divergence_bound=answers.divergence.high,
        max_divergence=limits.divergence(answers.kind),
        largest_error=answers.largest_error,
    )
    if answers.changed is not None:
        changed, bound = answers.changed.mean, answers.changed.high
        figures = msgspec.structs.replace(figures, changed=changed, changed_bound=bound, max_changed=limits.max_flips)
    if row.missing:
        figures = msgspec.structs.replace(figures, without={name: share.mean for name, share in row.missing.items()})
    return figures


def _gram(ledger: Ledger) -> GramFigures:
    """Return the drift of what ships against the reference; its verdict is that on the drift alone."""
    limits, row = ledger.limits, ledger.rows[-1]
    drift = row.to_reference
    return GramFigures(
        reference=ledger.reference,
        scope=drift.scope if drift else None,
        stage=row.stage,
        drift=drift.mean if drift else None,
        bound=drift.bound if drift else None,
        tau=limits.tau_fail,
        tau_pass=limits.tau_pass,
        verdict=judge_structure(drift, limits).verdict if drift else None,
    )


def _reason(path: str, result: TargetResult) -> str:
    """Say why a build's row has no figure at a dotted path."""
    parts = path.split(".")
    if parts[0] == "answers":
        return _NO_ANSWERS
    if parts[0] == "metric" and result.last.metric is None:
        return "not measured: there are no labels"
    if path == "metric.change":
        return f"not measured: the {result.ledger.reference} has no metric"
    if parts[0] == "metric" and parts[1] == DEVICE:
        return "not measured: no device ran the engine; 'shipped' is the same graph in ONNX Runtime on the host"
    if parts[0] == "metric":
        return f"not measured: the ledger has no stage '{parts[1]}'"
    return _engine_reason(parts, result)


def _engine_reason(parts: list[str], result: TargetResult) -> str:
    name = SHIPPED
    if parts[0] == "baselines":
        name, parts = parts[1], parts[2:]
    if parts[0] in ("size_bytes", "size_ratio"):
        return "not measured: there is no such engine file"
    if result.profile_reason:
        return result.profile_reason
    if parts[0] == "speedup_p50":
        return f"not measured: it needs the p50 of both the {parts[1]} and the engine"
    measured = result.measured(name)
    if measured is None and name not in result.sizes:
        return f"not measured: the {name} could not be exported"
    if measured is None:
        return f"not measured: the profile has no '{name}'"
    return _figure_reason(parts, measured)


def _profile_reason(path: str, engine: EngineProfile) -> str:
    """Say why the row of a bundle that was profiled has no figure at a dotted path."""
    parts = path.split(".")
    if parts[0] == "metric":
        return "not measured: the bundle's ledger has no metric"
    if parts[0] == "answers":
        return _NO_ANSWERS
    if parts[0] == "gram":
        return "not measured: the bundle's ledger has no drift of what ships"
    if parts[0] in ("candidate", "deploy_logit_error"):
        return "not measured: a bundle does not keep it"
    return _figure_reason(parts, engine)


def _figure_reason(parts: list[str], engine: EngineProfile) -> str:
    """Say why a profile has no figure at a path, given in its parts."""
    part = _PROFILE_PARTS.get(parts[0])
    if part and len(parts) == 1:
        return engine.not_measured.get(part, _NOT_ASKED)
    if part == "sustained":
        return "not measured: the system does not tell"
    latency = engine.latency
    if part == "compute" and engine.compute:
        latency = engine.compute
    if part == "paced" and engine.paced:
        latency = engine.paced.latency
    if parts[-1] == "p90_bound":
        return f"withheld: {latency.n} samples are too few for 99 % confidence"
    return withheld(latency.n)
