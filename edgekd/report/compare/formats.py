"""The joined table in every form but the page: for the terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from edgekd.report.compare.rows import BY_KEY, FIGURES, EngineRow, Entry, ExcludedRow
from edgekd.report.format import NOTHING
from edgekd.report.table import Column, Table, markdown, metric_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekd.report.compare.budgets import Check

SCHEMA_VERSION = 1

_NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Comparison:
    """The joined table.

    Attributes:
        entries: in their order.
        left_out: rows that limits left out.
        sort: the key that they are sorted by.
        reverse: whether the largest comes first.
        checks: what came of a budget file; None where none was given.
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
    """Whether the rows differ in a field."""
    return len({getattr(row, field) for row in rows}) > 1


def only_metric(rows: Iterable[EngineRow]) -> str | None:
    """Return the metric's name where all rows that were measured have one and the same; None where none was."""
    names = {row.metric for row in rows if row.metric_value is not None}
    return names.pop() if len(names) == 1 else None


def short_tables(joined: Comparison) -> tuple[Table, Table]:
    """Return the table in two that fit 80 columns, told by one number a row: what it does, and what it takes."""
    rows = joined.rows
    first = ("p50", "p90", "p99", "metric", "change", "bound")
    second = ("throughput", "size", "memory", "energy")
    doing = tuple(
        (str(index), row.target, *(BY_KEY[key].write(row, NOTHING) for key in first), row.verdict.upper())
        for index, row in enumerate(rows, 1)
    )
    taking = tuple(
        (
            str(index),
            *([row.task] if several(rows, "task") else []),
            *(row.device, row.runtime, row.precision),
            *(BY_KEY[key].write(row, NOTHING) for key in second),
        )
        for index, row in enumerate(rows, 1)
    )
    words = [*(["task"] if several(rows, "task") else []), "device", "runtime", "type"]
    tables = (
        Table("", _columns(rows, ["target"], (*first, "verdict")), doing),
        Table("", _columns(rows, words, second), taking, notes(joined)),
    )
    return tables if rows else (Table("", (), ()), Table("", (), (), notes(joined)))


def _columns(rows: tuple[EngineRow, ...], words: list[str], figures: tuple[str, ...]) -> tuple[Column, ...]:
    headings = (_heading(rows, key) for key in figures)
    return (Column("#"), *(Column(word, right=False) for word in words), *map(Column, headings))


def _heading(rows: tuple[EngineRow, ...], key: str) -> str:
    """Return what stands above a column; the metric's own name where there is one alone."""
    if key == "metric" and (name := only_metric(rows)):
        return metric_name(name)
    return BY_KEY[key].heading if key in BY_KEY else key


def long_table(joined: Comparison) -> Table:
    """Return the whole table, which may be as wide as it must."""
    rows = joined.rows
    words = ["task", "target", "device", "runtime", "precision"]
    cells = tuple(
        (
            str(index),
            *(getattr(row, word) for word in words),
            *(figure.write(row, _NOT_MEASURED) for figure in FIGURES),
            row.verdict.upper(),
        )
        for index, row in enumerate(rows, 1)
    )
    columns = _columns(rows, words, (*BY_KEY, "verdict"))
    return Table(title(joined), columns, cells, notes(joined))


def title(joined: Comparison) -> str:
    """Return the tasks of the table."""
    return ", ".join(dict.fromkeys(row.task for row in joined.rows)) or "No row"


def notes(joined: Comparison) -> tuple[str, ...]:
    """Return what a reader needs to trust the table."""
    rows = joined.rows
    counts = sorted({row.n for row in rows if row.n})
    told = []
    if counts:
        told.append(
            f"p50, p90, p99: of {' or '.join(map(str, counts))} single inferences at batch 1, back to back; per s: of "
            "that one stream."
        )
    if rows:
        told += _metrics(rows)
        told.append("bound: upper confidence bound of the Gram drift that compression caused.")
    rails = dict.fromkeys(row.energy_rail for row in rows if row.energy_rail)
    told += [
        f"mJ of {_numbers(rows, 'energy_rail', rail)}: energy of one inference, idle subtracted, by {rail}."
        for rail in rails
    ]
    if several(rows, "run"):
        runs = dict.fromkeys(row.run for row in rows)
        told.append("Read from " + "; ".join(f"{run}: {_numbers(rows, 'run', run)}" for run in runs) + ".")
    told += _reasons(rows)
    total = len(rows) + len(joined.left_out)
    told += [
        f"Left out, {index} of {total}: {left.row.target} on {left.row.device}: {left.why}."
        for index, left in enumerate(joined.left_out, 1)
    ]
    return tuple(told)


def _metrics(rows: tuple[EngineRow, ...]) -> list[str]:
    """Name each metric, and say what is better and to what the change is."""
    better = {row.metric: "higher" if row.higher_is_better else "lower" for row in rows if row.metric_value is not None}
    told = [
        f"metric of {_numbers(rows, 'metric', name)}: {name}, {how} is better"
        if len(better) > 1
        else f"{name}: {how} is better"
        for name, how in better.items()
    ]
    return [f"{'; '.join(told)}; change: less that of the float network before compression."] if told else []


def _numbers(rows: tuple[EngineRow, ...], field: str, value: object) -> str:
    return ", ".join(str(index) for index, row in enumerate(rows, 1) if getattr(row, field) == value)


def _reasons(rows: tuple[EngineRow, ...]) -> list[str]:
    """Say once for each reason which figures of which rows it is of."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for index, row in enumerate(rows, 1):
        by_reason: dict[str, list[str]] = {}
        for figure in FIGURES:
            if figure.of(row) is None:
                by_reason.setdefault(row.why_not(figure.field), []).append(figure.key)
        for reason, keys in by_reason.items():
            lacking.setdefault((", ".join(keys), reason), []).append(str(index))
    return [f"{keys} of {', '.join(numbers)}: {reason}." for (keys, reason), numbers in lacking.items()]


def check_table(joined: Comparison) -> Table:
    """Return each limit with what was found, those that are not kept first."""
    numbers = {id(row): str(index) for index, row in enumerate(joined.rows, 1)}
    checks = sorted(joined.checks or (), key=lambda check: check.kept)
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


def as_markdown(joined: Comparison) -> str:
    """Return the table and the checks as Markdown."""
    parts = [markdown(long_table(joined)), *([] if joined.checks is None else [markdown(check_table(joined))])]
    return "\n".join(parts)


def as_json(joined: Comparison) -> str:
    """Return the rows as one JSON object, each null with its reason in the row's ``not_measured``."""
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "sort": joined.sort,
        "reverse": joined.reverse,
        "rows": [asdict(row) for row in joined.rows],
        "left_out": [{"row": asdict(left.row), "why": left.why} for left in joined.left_out],
    }
    if joined.checks is not None:
        content["kept"] = all(check.kept for check in joined.checks)
        content["checks"] = [_check(check) for check in joined.checks]
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _check(check: Check) -> dict[str, Any]:
    row = check.row
    names = {name: getattr(row, name) for name in ("run", "task", "target", "device")}
    return {**names, **{f.name: getattr(check, f.name) for f in fields(check) if f.name != "row"}}


def as_csv(joined: Comparison) -> str:
    """Return one line a row with every figure, empty where it was not measured; reasons are joined by "; "."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [field.name for field in fields(EngineRow)]
    writer.writerow(names)
    writer.writerows([_cell(getattr(row, name)) for name in names] for row in joined.rows)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {reason}" for name, reason in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return "; ".join(value) if isinstance(value, tuple) else value
