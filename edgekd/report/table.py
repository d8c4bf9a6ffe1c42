"""Tables of a report as plain strings, so that terminal, Markdown and page show the same figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.gram.gate import DEVICE
from edgekd.report.escape import markdown_text
from edgekd.report.format import NOTHING, WITHHELD, factor, milliseconds, number, percent, share, size
from edgekd.report.results import SHIPPED

if TYPE_CHECKING:
    from edgekd.gram.gate import Ledger, LedgerRow
    from edgekd.gram.verdict import GateLimits
    from edgekd.report.results import BuildReport, TargetResult
    from edgekd.runtime.measure.results import EngineProfile, Profile


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its heading.
        right: Whether its cells stand right, as figures do.
    """

    name: str
    right: bool = True


@dataclass(frozen=True)
class Table:
    """A table with the sentences that a reader needs to trust it.

    Attributes:
        title: Its title.
        columns: Its columns.
        rows: The cells of each row.
        notes: Sentences that stand below it.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


#: What the columns of the other tables mean.
_MEANINGS = (
    ("change", "the metric less that of the reference: the student before pruning, or the float model"),
    ("drift", "mean |difference| of the cosines between modalities to the reference's"),
    ("bound", "one-sided upper confidence bound of that drift"),
    ("flips", "share of samples whose top-1 class is not the reference's"),
    ("teacher", "drift from the teacher: what was learned; not gated"),
    ("speed", "the first model's p50 over this one's; they took turns in one run"),
)


def legend(*tables: Table) -> Table:
    """Return a table of what the columns of these tables mean, each column once."""
    shown = {column.name for table in tables for column in table.columns}
    columns = (Column("column", right=False), Column("meaning", right=False))
    return Table("How to read the tables", columns, tuple(row for row in _MEANINGS if row[0] in shown))


def markdown(table: Table) -> str:
    """Return a table as Markdown under its title, padded so that it reads well as plain text too.

    A table without rows is its title and its notes.
    """
    cells = [[column.name for column in table.columns], *table.rows]
    cells = [[markdown_text(cell) for cell in row] for row in cells]
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
    parts = ["\n".join(lines)] if table.rows else []
    return "\n\n".join([f"### {markdown_text(table.title)}", *parts, *map(markdown_text, table.notes)]) + "\n"


def metric_name(name: str) -> str:
    """Return the metric's name where a narrow column holds it, else "metric"; the notes give it in full."""
    return name if len(name) <= 8 else "metric"


def describe(result: TargetResult) -> str:
    """Return a target with its device, runtime and precision, in words."""
    return f"{result.target} · {result.device} · {result.runtime} · {result.precision}"


def ledger_table(ledger: Ledger) -> Table:
    """Return the table of a ledger: the figures of each stage, and the limits that they are held against."""
    baseline = ledger.row(ledger.reference).metric
    names = (metric_name(ledger.metric), "change", "drift", "bound", "flips", "teacher", "gate")
    columns = _columns("stage", *names)
    rows = (*(_ledger_row(row, baseline) for row in ledger.rows), _limits_row(ledger.limits))
    if not any(row.to_teacher for row in ledger.rows):
        shown = [index for index, column in enumerate(columns) if column.name != "teacher"]
        columns = tuple(columns[index] for index in shown)
        rows = tuple(tuple(row[index] for index in shown) for row in rows)
    return Table("Ledger", columns, rows, _ledger_notes(ledger))


def _ledger_row(row: LedgerRow, baseline: float | None) -> tuple[str, ...]:
    drift = row.to_reference
    change = row.metric - baseline if drift and row.metric is not None and baseline is not None else None
    return (
        row.stage,
        number(row.metric),
        number(change, "+.4f"),
        number(drift.mean if drift else None),
        number(drift.bound if drift else None),
        percent(row.flips),
        number(row.to_teacher.mean if row.to_teacher else None),
        row.verdict or NOTHING,
    )


def _limits_row(limits: GateLimits) -> tuple[str, ...]:
    change = f"≥ -{limits.max_metric_drop:g}" if limits.higher_is_better else f"≤ +{limits.max_metric_drop:g}"
    flips = f"≤ {limits.max_flips * 100:.3g}%"
    return ("limit", NOTHING, change, NOTHING, f"≤ {limits.tau_fail:g}", flips, NOTHING, NOTHING)


def _ledger_notes(ledger: Ledger) -> tuple[str, ...]:
    last = ledger.rows[-1]
    drift = last.to_reference
    clusters = f" in {drift.clusters} groups" if drift and drift.clusters else ""
    better = "higher" if ledger.limits.higher_is_better else "lower"
    direction = "not measured, there are no labels" if last.metric is None else f"{better} is better"
    counted = f"{ledger.metric}: {direction}; {drift.samples if drift else 0} test samples{clusters}."
    warning = f"bound: one-sided, {ledger.confidence:.0%}; warns above {ledger.limits.tau_pass:g}."
    if drift:
        what = "pair" if drift.scope == "sample" else "tap"
        warning += f" Worst {what} of the {last.stage}: {drift.worst_pair}, {number(drift.worst_pair_mean)}."
    within = ("drift: of the cosines between samples within each tap; the taps do not compare with each other.",)
    repairs = tuple(f"{row.stage}: {row.note}." for row in ledger.rows if row.note)
    return (counted, warning, *(within if drift and drift.scope == "intra" else ()), *repairs)


def engine_table(result: TargetResult) -> Table:
    """Return the table of teacher, student and engine; without a profile it has only sizes and metrics."""
    metric = metric_name(result.ledger.metric)
    models = (*result.baselines, SHIPPED)
    if result.profile is None:
        known = tuple((name, size(result.sizes.get(name)), _metric(result, name)) for name in models)
        notes = (f"Latency and memory {result.profile_reason}.", _ratios(result))
        return Table("Engines", _columns("model", "size", metric), known, notes)
    columns = _columns("model", "p50 ms", "p90 ms", "p99 ms", "speed", "size", "peak RSS", metric)
    rows = tuple(_engine_row(result, name) for name in models)
    return Table("Engines", columns, rows, _engine_notes(result, result.profile))


def candidate_table(result: TargetResult) -> Table:
    """Return the table of candidates, and why one of them ships."""
    metric = metric_name(result.ledger.metric)
    columns = (*_columns("candidate", metric, "bound", "flips", "gate", "p50 ms", "size"), Column("", right=False))
    rows = tuple(
        (
            candidate.name,
            number(candidate.metric),
            number(candidate.bound),
            percent(candidate.flips),
            candidate.verdict,
            milliseconds(candidate.p50.value_ms) if candidate.p50 else "not measured",
            size(candidate.size_bytes),
            ("shown" if result.verdict == "fail" else "ships") if candidate.name == result.chosen else "",
        )
        for candidate in result.candidates
    )
    return Table("Candidates", columns, rows, (choice_sentence(result),))


def choice_sentence(result: TargetResult) -> str:
    """Say which candidate was chosen, and why; one that the gate rejects does not ship."""
    return f"{result.chosen} {'is shown' if result.verdict == 'fail' else 'ships'}: {result.choice}."


def _columns(first: str, *figures: str) -> tuple[Column, ...]:
    return (Column(first, right=False), *(Column(name) for name in figures))


def _engine_row(result: TargetResult, name: str) -> tuple[str, ...]:
    engine = result.measured(name)
    known = (size(result.sizes.get(name)), size(engine.peak_rss_bytes if engine else None), _metric(result, name))
    if engine is None:
        return (name, *("not measured",) * 3, NOTHING, *known)
    quantiles = (engine.latency.p50, engine.latency.p90, engine.latency.p99)
    ratio = result.speedup(result.baselines[0], name)
    return (
        name,
        *(milliseconds(q.value_ms) if q else WITHHELD for q in quantiles),
        factor(ratio) if ratio else NOTHING,
        *known,
    )


def _metric(result: TargetResult, name: str) -> str:
    row = result.last if name == SHIPPED else result.row(name)
    return number(row.metric) if row else "not measured"


def _engine_notes(result: TargetResult, profile: Profile) -> tuple[str, ...]:
    threads = f"{profile.threads} thread" + "s" * (profile.threads != 1)
    counts = sorted({engine.latency.n for engine in profile.engines})
    each = " or ".join(map(str, counts))
    how = f"{each} inferences of each at batch 1, {threads}, taking turns of {profile.block}."
    return (how, _ratios(result), *withheld_notes(profile.engines))


def withheld_notes(engines: tuple[EngineProfile, ...]) -> tuple[str, ...]:
    """Return which quantiles are withheld, and why."""
    notes = []
    for name in ("p50", "p90", "p99"):
        lacking = [engine for engine in engines if getattr(engine.latency, name) is None]
        if lacking:
            which = ", ".join(f"{engine.name} (n = {engine.latency.n})" for engine in lacking)
            notes.append(f"{name} withheld, too few inferences for its interval: {which}.")
    return tuple(notes)


def _ratios(result: TargetResult) -> str:
    """Return speed and size of the engine against each float network, as far as they were measured."""
    parts = []
    for baseline in result.baselines:
        speed, shrinkage = result.speedup(baseline), result.shrinkage(baseline)
        ratios = [f"speed {factor(speed)}"] if speed else []
        ratios += [f"size {share(1 / shrinkage)}"] if shrinkage else []
        parts += [f"to {baseline}: {', '.join(ratios)}"] if ratios else []
    return f"Shipped {'; '.join(parts) or 'not measured'}."


def summary_table(report: BuildReport) -> Table:
    """Return the table of all targets: the engine of each on its device, and those that refused."""
    names = {result.ledger.metric for result in report.targets}
    metric = metric_name(names.pop()) if len(names) == 1 else "metric"
    columns = (
        Column("target", right=False),
        Column("device", right=False),
        *(Column(name) for name in ("p50 ms", "size", metric, "bound", "verdict")),
    )
    unrun = [result.target for result in report.targets if result.last.stage != DEVICE]
    notes = (f"{metric} and bound of {', '.join(unrun)}: of the same graph in ONNX Runtime on the building host.",)
    refused = tuple((target, *[NOTHING] * (len(columns) - 2), "REFUSED") for target in report.refused)
    rows = (*map(_summary_row, report.targets), *refused)
    return Table("Targets", columns, rows, notes if unrun else ())


def _summary_row(result: TargetResult) -> tuple[str, ...]:
    engine = result.measured(SHIPPED)
    if result.profile is None or engine is None:
        p50 = "not measured"
    else:
        p50 = milliseconds(engine.latency.p50.value_ms) if engine.latency.p50 else WITHHELD
    bound = result.last.to_reference
    return (
        result.target,
        result.device,
        p50,
        size(result.sizes.get(SHIPPED)),
        _metric(result, SHIPPED),
        number(bound.bound) if bound else "not measured",
        result.verdict.upper(),
    )
