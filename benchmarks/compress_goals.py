"""Whether edgekd is what it is to be against the best of its peers: judged from the results, row by row."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from contestants import FLOAT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: The contestants that are judged, and the one that all are measured against; the others are the peers.
OURS = ("edgekd", "edgekd, INT8", "edgekd, INT8, least drift")
#: edgekd's drift over the best peer's.
DRIFT_RATIO = 0.5
GOALS = ("drift", "latency", "metric")


@dataclass(frozen=True)
class Goal:
    """One goal on one network: ``met`` is None, and ``found`` says why, where it was not measured."""

    name: str
    met: bool | None
    found: str


def rows_of(model: dict[str, Any], contestant: str) -> list[dict[str, Any]]:
    """Return what a contestant measured with each seed, in their order; none where it failed with one of them."""
    runs = (model["runs"][seed] for seed in sorted(model["runs"], key=int))
    rows = [run["contestants"].get(contestant, {"failed": "did not run"}) for run in runs]
    return [] if any("failed" in row for row in rows) else rows


def peers_of(model: dict[str, Any]) -> list[str]:
    """Return the peers that quantized something, with every seed."""
    names = dict.fromkeys(name for run in model["runs"].values() for name in run["contestants"])
    return [
        name
        for name in names
        if name not in (FLOAT, *OURS)
        and (rows := rows_of(model, name))
        and all(row["quantized_layers"] for row in rows)
    ]


def latency_of(model: dict[str, Any], contestant: str) -> float | None:
    """Return a contestant's p50 in us; None where it was not measured of the very graph that the results are of."""
    latency, rows = model.get("latency", {}), rows_of(model, contestant)
    if not rows or latency.get("deploy_sha256", {}).get(contestant) != rows[0]["deploy_sha256"]:
        return None
    p50_us: float = latency["contestants"][contestant]["p50_us"]
    return p50_us


def judge(model: dict[str, Any], ours: str) -> tuple[Goal, ...]:
    """Judge one of :data:`OURS` on one network, each goal against the peer that is best in it."""
    if not rows_of(model, ours) or not peers_of(model):
        return tuple(Goal(name, None, "no result") for name in GOALS)
    return _drift(model, ours), _latency(model, ours), _metric(model, ours)


def rivals(model: dict[str, Any], ours: str) -> list[str] | None:
    """Return the peers that drift no more than one of :data:`OURS` and are not clearly slower; None if not measured."""
    if not rows_of(model, ours) or latency_of(model, ours) is None:
        return None
    ratios, mine = model["latency"]["p50_ratios"][ours], statistics.fmean(_values(model, ours, "drift"))
    as_fast = [name for name in peers_of(model) if latency_of(model, name) is not None and ratios[name]["high"] >= 1]
    return [name for name in as_fast if statistics.fmean(_values(model, name, "drift")) <= mine]


def _drift(model: dict[str, Any], ours: str) -> Goal:
    mine, (best, theirs) = _values(model, ours, "drift"), _best(model, "drift", min)
    by_seed = [a / b for a, b in zip(mine, theirs, strict=True)]
    ratio = statistics.fmean(mine) / statistics.fmean(theirs)
    spread = f" ({min(by_seed):.2f} to {max(by_seed):.2f} over seeds)" if len(by_seed) > 1 else ""
    return Goal("drift", ratio <= DRIFT_RATIO, f"{ratio:.2f}{spread} of that of {best}")


def _latency(model: dict[str, Any], ours: str) -> Goal:
    timed = {name: p50 for name in peers_of(model) if (p50 := latency_of(model, name)) is not None}
    if latency_of(model, ours) is None or not timed:
        return Goal("latency", None, "not measured")
    fastest = min(timed, key=lambda name: timed[name])
    ratio = model["latency"]["p50_ratios"][ours][fastest]
    found = f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}) of that of {fastest}"
    return Goal("latency", ratio["low"] <= 1, found)


def _metric(model: dict[str, Any], ours: str) -> Goal:
    if model["metric"] == "none":
        return Goal("metric", None, "no labels")
    best, _ = _best(model, "metric", max if model["higher_is_better"] else min)
    gains = [run["metric_gains"][ours][best] for run in model["runs"].values()]
    mean = statistics.fmean(gain["value"] for gain in gains)
    low, high = _interval([gain["value"] for gain in gains]) if len(gains) > 1 else (gains[0]["low"], gains[0]["high"])
    return Goal("metric", high >= 0, f"{mean:+.4f} ({low:+.4f} to {high:+.4f}) against {best}")


def _values(model: dict[str, Any], contestant: str, key: str) -> list[float]:
    return [row[key] for row in rows_of(model, contestant)]


def _best(model: dict[str, Any], key: str, better: Callable[..., str]) -> tuple[str, list[float]]:
    """Return the peer whose mean over seeds is best, and its values."""
    values = {name: _values(model, name, key) for name in peers_of(model)}
    name = better(values, key=lambda peer: statistics.fmean(values[peer]))
    return name, values[name]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over seeds, by Student's t."""
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values) - half, statistics.fmean(values) + half
