"""What ``edgekd profile`` wrote of one bundle on one machine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from edgekd.errors import ReportError
from edgekd.gram.gate import Ledger, Verdict
from edgekd.report.compare.content import convert_object, read_object
from edgekd.report.compare.rows import EngineRow, Entry
from edgekd.report.format import withheld
from edgekd.report.results import GRAM, PROFILE, PROFILE_VERSION, SAMPLES
from edgekd.runtime.manifest import map_leaves
from edgekd.runtime.measure.results import Profile

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.runtime.measure.results import EngineProfile

#: Figures of a drift that are always there: null in a bundle's ledger is what JSON cannot hold.
_DRIFT = ("mean", "bound", "worst_pair_mean", "bias")


class _ProfileJson(Struct, frozen=True):
    task: str
    target: str
    device: str
    runtime: str
    precision: str
    verdict: Verdict
    reasons: tuple[str, ...]
    size_bytes: int
    profile: Profile
    ledger: Ledger


def read_profile(folder: Path) -> Entry:
    """Read the profile in a folder; its metric and drift are those that the bundle's ledger ends with.

    Raises:
        ReportError: it is broken or of another edgekd.
    """
    path = folder / PROFILE
    content = read_object(path, PROFILE_VERSION, "run edgekd profile again")
    found = convert_object(path, {**content, "ledger": _numbers(content.get("ledger"))}, _ProfileJson)
    if not found.profile.engines or not found.ledger.rows:
        raise ReportError(f"{path}: has no engine or an empty ledger; run edgekd profile again")
    return Entry(_row(folder, found), found.ledger, found.profile, folder, folder / GRAM / SAMPLES)


def _numbers(ledger: Any) -> Any:
    """Return a bundle's ledger with NaN for what of a drift is no number."""

    def number(path: str, value: Any) -> Any:
        *_, kind, name = ("", *path.split("."))
        return math.nan if value is None and kind.startswith("to_") and name in _DRIFT else value

    return map_leaves(ledger, number)


def _row(folder: Path, found: _ProfileJson) -> EngineRow:
    engine, ledger = found.profile.engines[0], found.ledger
    shipped = ledger.rows[-1]
    bound = shipped.to_reference.bound if shipped.to_reference else math.nan
    figures: dict[str, Any] = {
        **_quantiles(engine),
        "metric_value": shipped.metric,
        "metric_change": ledger.metric_change,
        "drift_bound": bound if math.isfinite(bound) else None,
        "energy_mj": engine.energy.millijoules if engine.energy else None,
    }
    reasons = {
        **dict.fromkeys(("p50_ms", "p90_ms", "p99_ms"), withheld(engine.latency.n)),
        **dict.fromkeys(("metric_value", "metric_change"), "not measured: the bundle's ledger has no metric"),
        "drift_bound": "not a number",
        "energy_mj": engine.not_measured.get("energy", "not measured: the profile was not asked for it"),
    }
    return EngineRow(
        run=str(folder),
        task=found.task,
        target=found.target,
        device=found.device,
        runtime=found.runtime,
        precision=found.precision,
        verdict=found.verdict,
        reasons=found.reasons,
        n=engine.latency.n,
        throughput_per_s=1000 / engine.latency.mean_ms,
        metric=ledger.metric,
        higher_is_better=ledger.limits.higher_is_better,
        size_bytes=found.size_bytes,
        memory_bytes=engine.peak_rss_bytes,
        energy_rail=engine.energy.rail if engine.energy else None,
        not_measured={name: reason for name, reason in reasons.items() if figures[name] is None},
        **figures,
    )


def _quantiles(engine: EngineProfile) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in ("p50", "p90", "p99"):
        quantile = getattr(engine.latency, name)
        ends = (quantile.value_ms, quantile.low_ms, quantile.high_ms) if quantile else (None,) * 3
        found |= dict(zip((f"{name}_ms", f"{name}_low_ms", f"{name}_high_ms"), ends, strict=True))
    return found
