"""The table of compared engines in every form but the page: for the terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from edgekd.gram.output_kind import MEASURES
from edgekd.report import figures
from edgekd.report.escape import csv_text, json_text
from edgekd.report.figures import WORDS
from edgekd.report.format import NOTHING
from edgekd.report.table import Column, Table, markdown, metric_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekd.files import JsonObject
    from edgekd.report.compare.budgets import Check
    from edgekd.report.compare.rows import Entry, ExcludedRow
    from edgekd.report.figures import Figure
    from edgekd.report.row import EngineRow

SCHEMA_VERSION = 1

_NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Comparison:
    """Engines that are compared in one table.

    Attributes:
        entries: The engines, in the order of the table.
        left_out: The rows that limits left out.
        sort: The key that the entries are sorted by.
        reverse: Whether the largest comes first.
        checks: The limits of a budget file, each held against its rows; None where no file was given.
    """

    entries: tuple[Entry, ...]
    left_out: tuple[ExcludedRow, ...] = ()
    sort: str = "p50"
    reverse: bool = False
    checks: tuple[Check, ...] | None = None

    @property
    def rows(self) -> tuple[EngineRow, ...]:
        """The entries' rows."""
        return tuple(entry.row for entry in self.entries)


def several(rows: Iterable[EngineRow], field: str) -> bool:
    """Return whether the rows differ at a dotted path."""
    return len({row.value(field) for row in rows}) > 1


def only_metric(rows: Iterable[EngineRow]) -> str | None:
    """Return the name of the metric where all rows that have one share it; None otherwise."""
    names = {row.metric.name for row in rows if row.metric.shipped is not None}
    return names.pop() if len(names) == 1 else None


def short_tables(comparison: Comparison) -> tuple[Table, Table]:
    """Return the table in two that fit 80 columns, joined by the number of a row: what it does, and what it takes."""
    rows = comparison.rows
    if not rows:
        return Table("", (), ()), Table("", (), (), notes(comparison))
    tasks = ["task"] if several(rows, "task") else []
    doing = tuple(figure for figure in figures.FIGURES if figure.narrow and figure.speed)
    taking = tuple(figure for figure in figures.FIGURES if figure.narrow and not figure.speed)
    return (
        _table(rows, ["target"], doing, verdict=True),
        _table(rows, [*tasks, "device", "runtime", "precision"], taking, notes=notes(comparison)),
    )


def _table(
    rows: tuple[EngineRow, ...],
    words: list[str],
    shown: tuple[Figure, ...],
    verdict: bool = False,
    notes: tuple[str, ...] = (),
) -> Table:
    """Return a short table with columns of words and of figures."""
    cells = tuple(
        (
            str(index),
            *(getattr(row, word) for word in words),
            *(figure.write(row, NOTHING) for figure in shown),
            *([row.verdict.upper()] if verdict else []),
        )
        for index, row in enumerate(rows, 1)
    )
    names = ["type" if word == "precision" else word for word in words]
    return Table("", (*_columns(rows, names, shown), *([Column("verdict")] if verdict else [])), cells, notes)


def _columns(rows: tuple[EngineRow, ...], words: Iterable[str], shown: Iterable[Figure]) -> tuple[Column, ...]:
    headings = (_heading(rows, figure) for figure in shown)
    return (Column("#"), *(Column(word, right=False) for word in words), *map(Column, headings))


def _heading(rows: tuple[EngineRow, ...], figure: Figure) -> str:
    """Return the heading of a column; for the metric its own name, where all rows share it."""
    if figure.key == "metric" and (name := only_metric(rows)):
        return metric_name(name)
    return figure.heading


def long_table(comparison: Comparison) -> Table:
    """Return the whole table, which may be as wide as it must."""
    rows = comparison.rows
    cells = tuple(
        (
            str(index),
            *(getattr(row, word) for word in WORDS),
            *(figure.write(row, _NOT_MEASURED) for figure in figures.FIGURES),
            row.verdict.upper(),
        )
        for index, row in enumerate(rows, 1)
    )
    columns = (*_columns(rows, WORDS, figures.FIGURES), Column("verdict"))
    return Table(title(comparison), columns, cells, notes(comparison))


def title(comparison: Comparison) -> str:
    """Return what the user calls the builds of the table."""
    return ", ".join(dict.fromkeys(entry.project for entry in comparison.entries)) or "No row"


def notes(comparison: Comparison) -> tuple[str, ...]:
    """Return the sentences that a reader needs to trust the table."""
    rows = comparison.rows
    counts = sorted({row.latency_ms.n for row in rows if row.latency_ms.n})
    sentences = []
    if counts:
        sentences.append(
            f"p50, p90, p99: of {' or '.join(map(str, counts))} single inferences at batch 1, back to back; per s: of "
            "that one stream."
        )
    if rows:
        sentences += _metrics(rows)
        sentences.append("bound: upper confidence bound of the Gram drift that compression caused.")
        if any(row.answers for row in rows):
            sentences.append(f"divergence: upper bound of that of the outputs: {_measures(rows)}.")
    rails = dict.fromkeys(row.energy_rail for row in rows if row.energy_rail)
    sentences += [
        f"mJ of {_numbers(rows, 'energy_rail', rail)}: energy of one inference, idle subtracted, by {rail}."
        for rail in rails
    ]
    if several(rows, "run"):
        runs = dict.fromkeys(row.run for row in rows)
        sentences.append("Read from " + "; ".join(f"{run}: {_numbers(rows, 'run', run)}" for run in runs) + ".")
    sentences += _reasons(rows)
    total = len(rows) + len(comparison.left_out)
    sentences += [
        f"Left out, {index} of {total}: {left.row.target} on {left.row.device}: {left.why}."
        for index, left in enumerate(comparison.left_out, 1)
    ]
    return tuple(sentences)


def _metrics(rows: tuple[EngineRow, ...]) -> list[str]:
    """Return a sentence on each metric: which direction is better, and what the change is measured against."""
    better = {
        row.metric.name: "higher" if row.metric.higher_is_better else "lower"
        for row in rows
        if row.metric.shipped is not None
    }
    sentences = [
        f"metric of {_numbers(rows, 'metric.name', name)}: {name}, {how} is better"
        if len(better) > 1
        else f"{name}: {how} is better"
        for name, how in better.items()
    ]
    return [f"{'; '.join(sentences)}; change: less that of the float network before compression."] if sentences else []


def _measures(rows: tuple[EngineRow, ...]) -> str:
    """Return what the divergences of the rows measure, each once."""
    return "; ".join(dict.fromkeys(MEASURES[row.answers.kind] for row in rows if row.answers))


def _numbers(rows: tuple[EngineRow, ...], field: str, value: object) -> str:
    return ", ".join(str(index) for index, row in enumerate(rows, 1) if row.value(field) == value)


def _reasons(rows: tuple[EngineRow, ...]) -> list[str]:
    """Return one sentence for each reason why figures are lacking, with the rows that it holds for."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for index, row in enumerate(rows, 1):
        by_reason: dict[str, list[str]] = {}
        for figure in figures.FIGURES:
            if figure.value(row) is None:
                by_reason.setdefault(row.why_not(figure.field), []).append(figure.key)
        for reason, keys in by_reason.items():
            lacking.setdefault((", ".join(keys), reason), []).append(str(index))
    return [f"{keys} of {', '.join(numbers)}: {reason}." for (keys, reason), numbers in lacking.items()]


def check_table(comparison: Comparison) -> Table:
    """Return the table of limits with the measured figures; limits that are not kept come first."""
    numbers = {id(row): str(index) for index, row in enumerate(comparison.rows, 1)}
    checks = sorted(comparison.checks or (), key=lambda check: check.kept)
    rows = tuple(
        (
            "kept" if check.kept else "NOT KEPT",
            numbers[id(check.row)],
            check.row.target,
            check.key,
            check.found,
            check.wanted,
        )
        for check in checks
    )
    columns = (
        Column("limit", right=False),
        Column("#"),
        *(Column(name, right=False) for name in ("target", "of")),
        *(Column(name) for name in ("found", "wanted")),
    )
    reasons = dict.fromkeys(f"{check.key} of {numbers[id(check.row)]}: {check.why}." for check in checks if check.why)
    missed = sum(not check.kept for check in checks)
    return Table("Budgets", columns, rows, (f"{len(checks) - missed} of {len(checks)} limits kept.", *reasons))


def as_markdown(comparison: Comparison) -> str:
    """Return the table and the checks as Markdown."""
    tables = [long_table(comparison), *([] if comparison.checks is None else [check_table(comparison)])]
    return "\n".join(map(markdown, tables))


def as_json(comparison: Comparison) -> str:
    """Return the rows as one JSON object, each null with its reason in the row's ``not_measured``."""
    content: JsonObject = {
        "schema_version": SCHEMA_VERSION,
        "sort": comparison.sort,
        "reverse": comparison.reverse,
        "rows": [flat_row(row) for row in comparison.rows],
        "left_out": [{"row": flat_row(excluded.row), "why": excluded.why} for excluded in comparison.left_out],
    }
    if comparison.checks is not None:
        content["kept"] = all(check.kept for check in comparison.checks)
        content["checks"] = [_check(check) for check in comparison.checks]
    return json_text(content, indent=2) + "\n"


def _check(check: Check) -> JsonObject:
    row = check.row
    names = {name: getattr(row, name) for name in ("run", "task", "target", "device")}
    return {**names, **{f.name: getattr(check, f.name) for f in fields(check) if f.name != "row"}}


def flat_row(row: EngineRow) -> JsonObject:
    """Return a row with one key for each column of each figure, and the reasons of those that are None."""
    columns = [column for figure in figures.FIGURES for column in figure.columns]
    return {
        **{name: getattr(row, name) for name in ("run", *WORDS, "verdict")},
        "reasons": row.reasons,
        **{name: row.value(path) for name, path in columns},
        "not_measured": {name: row.not_measured[path] for name, path in columns if path in row.not_measured},
    }


def as_csv(comparison: Comparison) -> str:
    """Return one line a row with every figure, empty where it was not measured; reasons are joined by "; "."""
    stream = io.StringIO()
    columns = [name for figure in figures.FIGURES for name, _ in figure.columns]
    writer = csv.DictWriter(
        stream, ["run", *WORDS, "verdict", "reasons", *columns, "not_measured"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in flat_row(row).items()} for row in comparison.rows)
    return stream.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, dict):
        return csv_text("; ".join(f"{name}: {reason}" for name, reason in value.items()))
    if isinstance(value, bool):
        return str(value).lower()
    text = "; ".join(value) if isinstance(value, tuple) else value
    return csv_text(text) if isinstance(text, str) else text
