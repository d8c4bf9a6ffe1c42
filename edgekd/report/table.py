"""Tables of a report as plain strings, so that the terminal and Markdown show the same figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.report.figures import NOTHING, WITHHELD, factor, milliseconds, number, share, size
from edgekd.report.result import BASELINES, ENGINE

if TYPE_CHECKING:
    from edgekd.gram.gate import Limits, Row
    from edgekd.report.result import BuildReport, TargetResult
    from edgekd.runtime.measure import EngineProfile, Profile


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


#: What the columns of the other tables mean: said once.
LEGEND = Table(
    "How to read the tables",
    (Column("column", right=False), Column("meaning", right=False)),
    (
        ("change", "the metric less that of the student before pruning"),
        ("drift", "mean |difference| of the cosines between modalities to that student's"),
        ("bound", "one-sided upper confidence bound of that drift"),
        ("flips", "share of samples whose top-1 class is not that student's"),
        ("teacher", "drift from the teacher: what was learned; not gated"),
        ("speed", "the teacher's p50 over this one's; they took turns in one run"),
    ),
)


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
    names = (metric_name(ledger.metric), "change", "drift", "bound", "flips", "teacher", "gate")
    rows = (*(_ledger_row(row, baseline) for row in ledger.rows), _limits_row(ledger.limits))
    return Table("Ledger", _columns("stage", *names), rows, _ledger_notes(result))


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
    counted = f"{ledger.metric}: {better} is better; {result.samples} test samples{clusters}."
    warning = f"bound: one-sided, {ledger.confidence:.0%}; warns above {ledger.limits.tau_pass:g}."
    last = ledger.rows[-1]
    if last.to_student:
        worst = number(last.to_student.worst_pair_mean)
        warning += f" Worst pair of the {last.stage}: {last.to_student.worst_pair}, {worst}."
    return (counted, warning)


def engine_table(result: TargetResult) -> Table:
    """Return teacher, student and engine side by side; without a profile, only what is known of them."""
    metric = metric_name(result.ledger.metric)
    models = (*BASELINES, ENGINE)
    if result.profile is None:
        known = tuple((name, size(result.sizes.get(name)), _metric(result, name)) for name in models)
        notes = (f"Latency and memory {result.profile_reason}.", _ratios(result))
        return Table("Engines", _columns("model", "size", metric), known, notes)
    columns = _columns("model", "p50 ms", "p90 ms", "p99 ms", "speed", "size", "peak RSS", metric)
    rows = tuple(_engine_row(result, name) for name in models)
    return Table("Engines", columns, rows, _engine_notes(result, result.profile))


def candidate_table(result: TargetResult) -> Table:
    """Return the ways in which the network was written for the target, and why one of them ships."""
    metric = metric_name(result.ledger.metric)
    columns = (*_columns("candidate", metric, "bound", "flips", "gate", "p50 ms", "size"), Column("", right=False))
    rows = tuple(
        (
            candidate.name,
            number(candidate.metric),
            number(candidate.bound),
            number(candidate.flips, ".1%"),
            candidate.verdict,
            milliseconds(candidate.p50.value_ms) if candidate.p50 else "not measured",
            size(candidate.size_bytes),
            "ships" if candidate.name == result.chosen else "",
        )
        for candidate in result.candidates
    )
    return Table("Candidates", columns, rows, (f"{result.chosen} ships: {result.choice}.",))


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
    row = result.last if name == ENGINE else result.row(name)
    return number(row.metric) if row else "not measured"


def _engine_notes(result: TargetResult, profile: Profile) -> tuple[str, ...]:
    threads = f"{profile.threads} thread" + "s" * (profile.threads != 1)
    counts = sorted({engine.latency.n for engine in profile.engines})
    each = " or ".join(map(str, counts))
    how = f"{each} inferences of each at batch 1, {threads}, taking turns of {profile.block}."
    return (how, _ratios(result), *withheld_notes(profile.engines))


def withheld_notes(engines: tuple[EngineProfile, ...]) -> tuple[str, ...]:
    """Say which quantiles are withheld, and why."""
    notes = []
    for name in ("p50", "p90", "p99"):
        lacking = [engine for engine in engines if getattr(engine.latency, name) is None]
        if lacking:
            which = ", ".join(f"{engine.name} (n = {engine.latency.n})" for engine in lacking)
            notes.append(f"{name} withheld, too few inferences for its interval: {which}.")
    return tuple(notes)


def _ratios(result: TargetResult) -> str:
    """Compare the engine with both float models, for what was measured."""
    parts = []
    for baseline in BASELINES:
        speed, shrinkage = result.speedup(baseline), result.shrinkage(baseline)
        told = [f"speed {factor(speed)}"] if speed else []
        told += [f"size {share(1 / shrinkage)}"] if shrinkage else []
        parts += [f"to {baseline}: {', '.join(told)}"] if told else []
    return f"Engine {'; '.join(parts) or 'not measured'}."


def summary_table(report: BuildReport) -> Table:
    """Return one line for each target: its engine on its device."""
    names = {result.ledger.metric for result in report.targets}
    metric = metric_name(names.pop()) if len(names) == 1 else "metric"
    columns = (
        Column("target", right=False),
        Column("device", right=False),
        *(Column(name) for name in ("p50 ms", "size", metric, "bound", "verdict")),
    )
    unrun = [result.target for result in report.targets if result.last.stage != ENGINE]
    notes = (f"{metric} and bound of {', '.join(unrun)}: of the same graph in ONNX Runtime on the building host.",)
    return Table("Targets", columns, tuple(map(_summary_row, report.targets)), notes if unrun else ())


def _summary_row(result: TargetResult) -> tuple[str, ...]:
    engine = result.measured(ENGINE)
    if result.profile is None or engine is None:
        p50 = "not measured"
    else:
        p50 = milliseconds(engine.latency.p50.value_ms) if engine.latency.p50 else WITHHELD
    bound = result.last.to_student
    return (
        result.target,
        result.device,
        p50,
        size(result.sizes.get(ENGINE)),
        _metric(result, ENGINE),
        number(bound.bound) if bound else "not measured",
        result.verdict.upper(),
    )
