"""Tables and sentences about a profile: latency, time by branch, paced and sustained runs, energy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.report.format import NOTHING, WITHHELD, duration, factor, milliseconds, share, size, spread
from edgekd.report.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from edgekd.runtime.measure.results import Energy, EngineProfile, Latency, Paced, Profile, Quantile, Sustained

_NOT_MEASURED = "not measured"
_QUANTILES = ("p50", "p90", "p99")
_INTERVAL = "95 % interval"


def latency_table(profile: Profile, notes: tuple[str, ...] = ()) -> Table:
    """Return every latency with its interval, the models side by side; then computing alone and cold starts."""
    engines = profile.engines
    compute = [engine.compute for engine in engines]
    rows = (
        *_latency_rows([engine.latency for engine in engines]),
        _row("compute p50", compute, lambda latency: _value(latency.p50)),
        _row(_INTERVAL, compute, lambda latency: _interval(latency.p50)),
        *(
            (what, *(_extent(times[index]) for times in map(_starts, engines)))
            for index, what in enumerate(("import", "load", "first run"))
        ),
    )
    return Table("Latency", _columns(engine.name for engine in engines), rows, notes)


def engine_latency_table(engine: EngineProfile, notes: tuple[str, ...] = ()) -> Table:
    """Return one engine's latencies side by side: end to end; computing alone and at a rate where measured."""
    latencies = {"end to end": engine.latency}
    if engine.compute:
        latencies["compute"] = engine.compute
    if engine.paced:
        latencies[f"at {engine.paced.rate_hz:g} Hz"] = engine.paced.latency
    return Table("Latency", _columns(latencies), _latency_rows(list(latencies.values())), notes)


def branch_table(profile: Profile) -> Table:
    """Return the table of the layers' times, added up by modality, each with its share of the whole."""
    measured = [engine for engine in profile.engines if engine.layers]
    branches = {name for engine in measured for name in engine.branches_ms}
    ordered = sorted(branches, key=lambda name: (name == "other", name == "fusion", name))
    rows = tuple((name, *(_branch(engine, name) for engine in measured)) for name in ordered)
    notes = ["Sums of the layers' times under the library's profiler, which slows them down: compare shares."]
    lacking = {
        f"Layers of {e.name}: {e.not_measured.get('layers', _NOT_MEASURED)}." for e in profile.engines if not e.layers
    }
    columns = (Column("branch", right=False), *(Column(f"{engine.name} ms") for engine in measured))
    return Table("Time by branch", columns, rows, (*(notes if rows else ()), *sorted(lacking)))


def measurement_lines(engine: EngineProfile) -> tuple[str, ...]:
    """Return a sentence each on energy, a sensor's rate and a sustained run: the figures, or why there are none."""
    return (
        f"Energy: {_energy(engine.energy) if engine.energy else _reason(engine, 'energy')}.",
        f"Paced: {_paced(engine.paced) if engine.paced else _reason(engine, 'paced')}.",
        f"Sustained: {_sustained(engine.sustained) if engine.sustained else _reason(engine, 'sustained')}.",
        *(() if engine.compute else (f"Compute alone: {_reason(engine, 'compute')}.",)),
    )


def cold_start_line(engine: EngineProfile) -> str:
    """Return a sentence on the time of a fresh process until its first result, and on its memory."""
    processes = f"{len(engine.load_ms)} fresh process{'es' * (len(engine.load_ms) > 1)}"
    starts = zip(("import", "load", "first run"), _starts(engine), strict=True)
    parts = ", ".join(f"{what} {_extent(times)} ms" for what, times in starts if times)
    return (
        f"Cold start, {processes}: {parts}. Peak RSS {size(engine.peak_rss_bytes)}; engine {size(engine.size_bytes)}."
    )


def method_notes(profile: Profile) -> tuple[str, ...]:
    """Return sentences on how the figures of a profile were measured."""
    fresh = "one fresh process" if profile.processes == 1 else f"{profile.processes} fresh processes"
    wider = "" if profile.processes == 1 else ", or those of Student's t over the processes where these are wider"
    turns = (
        f" The engines took turns of at most {profile.block}, so that a change of clock or heat meets all of them."
        if len(profile.engines) > 1
        else ""
    )
    return (
        f"Wall time of single inferences at batch 1, back to back, in {fresh} for each engine, no outlier removed; "
        f"threads of one inference: {profile.threads}.{turns} Intervals are those of order statistics{wider}.",
        "p90 bound: the p90 is below it with 99 % confidence, MLPerf's early-stopping estimate for a single stream. "
        "Compute: the engine library alone, inputs and outputs in place.",
    )


def _starts(engine: EngineProfile) -> tuple[tuple[float, ...], ...]:
    return engine.import_ms, engine.load_ms, engine.first_run_ms


def _extent(values: tuple[float, ...]) -> str:
    """Write the lowest and the highest of a few times, which are too few for a quantile."""
    return spread(min(values), max(values)) if values else _NOT_MEASURED


def _columns(names: Iterable[str]) -> tuple[Column, ...]:
    return (Column("ms", right=False), *(Column(name) for name in names))


def _latency_rows(latencies: Sequence[Latency | None]) -> tuple[tuple[str, ...], ...]:
    return (
        *(row for name in _QUANTILES for row in _quantile_rows(name, latencies)),
        _row("p90 bound", latencies, lambda x: WITHHELD if x.p90_bound_ms is None else milliseconds(x.p90_bound_ms)),
        _row("max", latencies, lambda latency: milliseconds(latency.max_ms)),
        _row("mean", latencies, lambda latency: milliseconds(latency.mean_ms)),
        _row("n", latencies, lambda latency: str(latency.n)),
    )


def _quantile_rows(name: str, latencies: Sequence[Latency | None]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (
        _row(name, latencies, lambda latency: _value(getattr(latency, name))),
        _row(_INTERVAL, latencies, lambda latency: _interval(getattr(latency, name))),
    )


def _row(name: str, latencies: Iterable[Latency | None], cell: Callable[[Latency], str]) -> tuple[str, ...]:
    return (name, *(_NOT_MEASURED if latency is None else cell(latency) for latency in latencies))


def _value(quantile: Quantile | None) -> str:
    return milliseconds(quantile.value_ms) if quantile else WITHHELD


def _interval(quantile: Quantile | None) -> str:
    return spread(quantile.low_ms, quantile.high_ms) if quantile else NOTHING


def _branch(engine: EngineProfile, name: str) -> str:
    times = engine.branches_ms
    if name not in times:
        return NOTHING
    whole = sum(times.values())
    return f"{milliseconds(times[name])} ({share(times[name] / whole)})" if whole else milliseconds(times[name])


def _reason(engine: EngineProfile, what: str) -> str:
    return engine.not_measured.get(what, _NOT_MEASURED)


def _energy(energy: Energy) -> str:
    return (
        f"{energy.millijoules:.3g} mJ for one inference, idle subtracted: {energy.busy_w:.3g} W busy, "
        f"{energy.idle_w:.3g} W idle, of {energy.rail}, over {duration(energy.seconds)}"
    )


def _paced(paced: Paced) -> str:
    latency = paced.latency
    p50 = f"p50 {milliseconds(latency.p50.value_ms)} ms" if latency.p50 else f"p50 {WITHHELD}"
    return (
        f"at {paced.rate_hz:g} Hz {p50}, max {milliseconds(latency.max_ms)} ms from arrival to result; "
        f"{paced.late} of {latency.n} samples arrived before the result of the one before"
    )


def _sustained(run: Sustained) -> str:
    degrees = [window.temperature_c for window in run.windows if window.temperature_c is not None]
    clocks = [window.clock_mhz for window in run.windows if window.clock_mhz is not None]
    heat = f"{degrees[0]:.0f} to at most {max(degrees):.0f} °C" if degrees else f"temperature {_NOT_MEASURED}"
    clock = f"{min(clocks):.0f} to {max(clocks):.0f} MHz" if clocks else f"clock {_NOT_MEASURED}"
    throttled = {None: f"throttling {_NOT_MEASURED}", True: "throttled", False: "not throttled"}[run.throttled]
    first, last = (milliseconds(window.p50_ms) for window in (run.windows[0], run.windows[-1]))
    return (
        f"over {duration(run.seconds)} the p50 of a second went from {first} to {last} ms, slowdown "
        f"{factor(run.slowdown)}; {heat}, {clock}, {throttled}"
    )
