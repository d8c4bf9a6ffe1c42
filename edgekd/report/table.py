"""Tables of a report as plain strings, so that the terminal and Markdown show the same figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.report.result import BASELINES, ENGINE

if TYPE_CHECKING:
    from edgekd.gram.gate import Limits, Row
    from edgekd.report.result import BuildReport, TargetResult
    from edgekd.runtime.measure import EngineProfile, Profile

#: A cell to which nothing belongs; what could have been measured and was not is said in words.
NOTHING = "–"
WITHHELD = "withheld"


@dataclass(frozen=True)
class Column:
    """One column; figures stand right."""

    name: str
    right: bool = True


@dataclass(frozen=True)
class Table:
    """A table, and below it the sentences that a reader needs to trust it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def markdown(table: Table) -> str:
    """Return a Markdown table under its title, padded so that it reads well as plain text too."""
    cells = [[column.name for column in table.columns], *table.rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in cells]
    widths = [max(3, *(len(row[index]) for row in cells)) for index in range(len(table.columns))]
    rule = [
        "-" * (width - 1) + ":" if column.right else "-" * width
        for column, width in zip(table.columns, widths, strict=True)
    ]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, table.columns, strict=True)
        )
        lines.append("| " + " | ".join(padded) + " |")
    return "\n\n".join([f"### {table.title}", "\n".join(lines), *table.notes]) + "\n"


def milliseconds(value: float) -> str:
    """Write ms with three significant digits or so."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def spread(low: float, high: float) -> str:
    """Write a range of ms, e.g. ``"0.410–0.415"``."""
    return "–".join(dict.fromkeys((milliseconds(low), milliseconds(high))))


def size(count: int | None) -> str:
    """Write bytes in decimal units, as the budgets are."""
    if count is None:
        return "not measured"
    if count < 999_500:
        return f"{count / 1e3:.{0 if count >= 99_950 else 1}f} kB"
    return f"{count / 1e6:.{0 if count >= 99_950_000 else 1 if count >= 9_995_000 else 2}f} MB"


def factor(value: float | None) -> str:
    """Write a ratio, e.g. ``"4.7×"``."""
    if value is None:
        return "not measured"
    return f"{value:.{0 if value >= 99.5 else 1 if value >= 9.95 else 2}f}×"


def number(value: float | None, form: str = ".4f") -> str:
    """Write a figure; one that is not a number says so."""
    if value is None:
        return NOTHING
    return format(value, form) if math.isfinite(value) else "NaN"


def metric_name(name: str) -> str:
    """Return the metric's name where a narrow column holds it, else "metric"; the notes give it in full."""
    return name if len(name) <= 8 else "metric"


def describe(result: TargetResult) -> str:
    """Name a target, its device, runtime and precision."""
    return f"{result.target} · {result.device} · {result.runtime} · {result.precision}"


def ledger_table(result: TargetResult) -> Table:
    """Return the ledger: what each stage kept, and the limits it was held against."""
    ledger = result.ledger
    student = result.row("student")
    baseline = student.metric if student else math.nan
    names = (metric_name(ledger.metric), "change", "drift", "bound", "flips", "teacher")
    columns = (Column("stage", right=False), *map(Column, names), Column("gate", right=False))
    rows = (*(_ledger_row(row, baseline) for row in ledger.rows), _limits_row(ledger.limits))
    return Table("Ledger", columns, rows, _ledger_notes(result))


def _ledger_row(row: Row, student_metric: float) -> tuple[str, ...]:
    return (
        row.stage,
        number(row.metric),
        number(row.metric - student_metric, "+.4f") if row.to_student else NOTHING,
        number(row.to_student.mean if row.to_student else None),
        number(row.to_student.bound if row.to_student else None),
        number(row.flips, ".1%"),
        number(row.to_teacher.mean if row.to_teacher else None),
        row.verdict or NOTHING,
    )


def _limits_row(limits: Limits) -> tuple[str, ...]:
    change = f"≥ -{limits.max_metric_drop:g}" if limits.higher_is_better else f"≤ +{limits.max_metric_drop:g}"
    flips = f"≤ {limits.max_flips * 100:.3g}%"
    return ("limit", NOTHING, change, NOTHING, f"≤ {limits.tau_fail:g}", flips, NOTHING, NOTHING)


def _ledger_notes(result: TargetResult) -> tuple[str, ...]:
    ledger = result.ledger
    drifts = [row.to_teacher for row in ledger.rows if row.to_teacher]
    clusters = f" in {drifts[0].clusters} groups" if drifts and drifts[0].clusters else ""
    better = "higher" if ledger.limits.higher_is_better else "lower"
    notes = [
        f"{ledger.metric}: {better} is better, {result.samples} test samples{clusters}. "
        "Change, drift, bound and flips are against the unpruned student; 'teacher' is the drift against the teacher.",
        "drift: mean |difference| of the cosines between modalities; bound: its one-sided upper confidence bound, "
        f"which warns above {ledger.limits.tau_pass:g} and fails above {ledger.limits.tau_fail:g}.",
    ]
    last = ledger.rows[-1]
    if last.to_student:
        drift = last.to_student
        notes.append(f"Worst pair of the {last.stage}: {drift.worst_pair}, drift {number(drift.worst_pair_mean)}.")
    return tuple(notes)


def engine_table(result: TargetResult) -> Table:
    """Return teacher, student and engine side by side; without a profile, only what is known of them."""
    metric = metric_name(result.ledger.metric)
    models = (*BASELINES, ENGINE)
    if result.profile is None:
        known = tuple((name, size(result.sizes.get(name)), _metric(result, name)) for name in models)
        notes = (f"Latency and memory: {result.profile_reason}.", _ratios(result))
        return Table("Engines", _columns("model", "size", metric), known, notes)
    columns = _columns("model", "p50 ms", "p90 ms", "p99 ms", "speed", "size", "peak RSS", metric)
    rows = tuple(_engine_row(result, name) for name in models)
    return Table("Engines", columns, rows, _engine_notes(result, result.profile))


def _columns(first: str, *figures: str) -> tuple[Column, ...]:
    return (Column(first, right=False), *(Column(name) for name in figures))


def _engine_row(result: TargetResult, name: str) -> tuple[str, ...]:
    engine = result.measured(name)
    known = (size(result.sizes.get(name)), size(engine.peak_rss_bytes if engine else None), _metric(result, name))
    if engine is None:
        return (name, *("not measured",) * 3, NOTHING, *known)
    quantiles = (engine.latency.p50, engine.latency.p90, engine.latency.p99)
    ratio = result.speedup("teacher", name)
    return (
        name,
        *(milliseconds(q.value_ms) if q else WITHHELD for q in quantiles),
        factor(ratio) if ratio else NOTHING,
        *known,
    )


def _metric(result: TargetResult, name: str) -> str:
    row = result.row(name)
    return number(row.metric) if row else "not measured"


def _engine_notes(result: TargetResult, profile: Profile) -> tuple[str, ...]:
    threads = f"{profile.threads} thread" + "s" * (profile.threads != 1)
    counts = sorted({engine.latency.n for engine in profile.engines})
    each = " or ".join(map(str, counts))
    notes = [
        f"{each} single inferences of each at batch 1, {threads}, taking turns of {profile.block}. "
        "speed: the teacher's p50 over this one's.",
        _ratios(result),
        *withheld(profile.engines),
    ]
    return (*notes, result.remark + ".") if result.remark else tuple(notes)


def withheld(engines: tuple[EngineProfile, ...]) -> tuple[str, ...]:
    """Say which quantiles are withheld, and why."""
    return tuple(
        f"{engine.name}: {name} is withheld, {engine.latency.n} inferences are too few for its interval."
        for engine in engines
        for name in ("p50", "p90", "p99")
        if getattr(engine.latency, name) is None
    )


def _ratios(result: TargetResult) -> str:
    """Compare the engine with both float models, for what was measured."""
    parts = []
    for baseline in BASELINES:
        fast, small = result.speedup(baseline), result.shrinkage(baseline)
        told = [f"{factor(fast)} its speed"] if fast else []
        told += [f"{1 / small:.1%} of its size"] if small else []
        parts.append(f"against the {baseline}: {', '.join(told) or 'not measured'}")
    return f"Engine {'; '.join(parts)}."


def summary_table(report: BuildReport) -> Table:
    """Return one line for each target: its engine on its device."""
    names = {result.ledger.metric for result in report.targets}
    metric = metric_name(names.pop()) if len(names) == 1 else "metric"
    columns = (
        Column("target", right=False),
        Column("device", right=False),
        *(Column(name) for name in ("p50 ms", "speed", "size", metric, "bound")),
        Column("verdict", right=False),
    )
    return Table("Targets", columns, tuple(_summary_row(result) for result in report.targets))


def _summary_row(result: TargetResult) -> tuple[str, ...]:
    engine, row = result.measured(ENGINE), result.row(ENGINE)
    if result.profile is None or engine is None:
        p50 = "not measured"
    else:
        p50 = milliseconds(engine.latency.p50.value_ms) if engine.latency.p50 else WITHHELD
    ratio = result.speedup("teacher")
    return (
        result.target,
        result.device,
        p50,
        factor(ratio) if ratio else NOTHING,
        size(result.sizes.get(ENGINE)),
        _metric(result, ENGINE),
        number(row.to_student.bound) if row and row.to_student else "not measured",
        result.verdict.upper(),
    )
