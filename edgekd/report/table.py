"""Tables of a report as plain strings, so that terminal, Markdown and page show the same figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.gram.gate import DEVICE
from edgekd.report.escape import markdown_text
from edgekd.report.format import NOTHING, WITHHELD, factor, milliseconds, number, share, size, small
from edgekd.report.results import SHIPPED

if TYPE_CHECKING:
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


#: Ends the name of a column of upper bounds of the figure before it.
BOUND = " ≤"

#: What the columns of the other tables mean.
_MEANINGS = (
    ("KL", "divergence of a sample's answer from that of the unpruned student, or the float model, in nats"),
    ("error", "squared error of a sample's output over the variance of the reference's"),
    ("Δcos", "change of an embedding's cosines to the reference's and to the nearest of it"),
    ("flips", "share of answers that are not the reference's, such as top-1 classes"),
    ("nearest", "share of the five nearest embeddings that are others than the reference's"),
    ("drift", "mean |difference| of the cosines between modalities to the reference's"),
    (BOUND.strip(), "one-sided upper confidence bound of the figure named before it; this is what must keep the limit"),
    ("speed", "the first timed model's p50 over this one's; they took turns in one run"),
)


def legend(*tables: Table) -> Table:
    """Return a table of what the columns of these tables mean, each column once."""
    names = [column.name for table in tables for column in table.columns]
    shown = {*names, *(BOUND.strip() for name in names if name.endswith(BOUND))}
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


def figure_columns(first: str, *figures: str) -> tuple[Column, ...]:
    """Return the columns of a table whose first column has names, and whose others have figures."""
    return (Column(first, right=False), *(Column(name) for name in figures))


def describe(result: TargetResult) -> str:
    """Return a target with its device, runtime and precision, in words."""
    return f"{result.target} · {result.device} · {result.runtime} · {result.precision}"


def engine_table(result: TargetResult) -> Table:
    """Return the table of teacher, student and engine; without a profile it has only sizes and metrics."""
    metric = metric_name(result.ledger.metric)
    models = (*result.baselines, SHIPPED)
    if result.profile is None:
        known = tuple((name, size(result.sizes.get(name)), _metric(result, name)) for name in models)
        notes = (f"Latency and memory {result.profile_reason}.", _ratios(result))
        return Table("Engines", figure_columns("model", "size", metric), known, notes)
    columns = figure_columns("model", "p50 ms", "p90 ms", "p99 ms", "speed", "size", "peak RSS", metric)
    rows = tuple(_engine_row(result, name) for name in models)
    return Table("Engines", columns, rows, _engine_notes(result, result.profile))


def _engine_row(result: TargetResult, name: str) -> tuple[str, ...]:
    engine = result.measured(name)
    known = (size(result.sizes.get(name)), size(engine.peak_rss_bytes if engine else None), _metric(result, name))
    if engine is None:
        return (name, *("not measured",) * 3, NOTHING, *known)
    quantiles = (engine.latency.p50, engine.latency.p90, engine.latency.p99)
    first = next((baseline for baseline in result.baselines if result.measured(baseline)), result.baselines[0])
    ratio = result.speedup(first, name)
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
        *(Column(name) for name in ("p50 ms", "size", metric, f"drift{BOUND}", "verdict")),
    )
    unrun = [result.target for result in report.targets if result.last.stage != DEVICE]
    notes = (f"{metric} and drift of {', '.join(unrun)}: of the same graph in ONNX Runtime on the building host.",)
    refused = tuple((target, *[NOTHING] * (len(columns) - 2), "REFUSED") for target in report.refused)
    rows = (*map(_summary_row, report.targets), *refused)
    return Table("Targets", columns, rows, notes if unrun else ())


def _summary_row(result: TargetResult) -> tuple[str, ...]:
    engine = result.measured(SHIPPED)
    if result.profile is None or engine is None:
        p50 = "not measured"
    else:
        p50 = milliseconds(engine.latency.p50.value_ms) if engine.latency.p50 else WITHHELD
    drift = result.last.to_reference
    return (
        result.target,
        result.device,
        p50,
        size(result.sizes.get(SHIPPED)),
        _metric(result, SHIPPED),
        small(drift.bound) if drift else "not measured",
        result.verdict.upper(),
    )
