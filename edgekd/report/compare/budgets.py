"""Limits that the rows of a table must keep, from a TOML file: for all rows, or for those of some targets."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from edgekd.config.toml import read_toml
from edgekd.config.validation import check_keys, check_values, explain
from edgekd.errors import BudgetError, ReportError, nearest
from edgekd.gram.verdict import VERDICTS, Verdict
from edgekd.report.compare.rows import check_direction
from edgekd.report.figures import budget_limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from edgekd.files import JsonObject
    from edgekd.report.compare.rows import Entry
    from edgekd.report.figures import Limit
    from edgekd.report.row import EngineRow

#: Names by which limits are for some rows alone; ``*`` in one stands for anything.
_NAMES = ("target", "device", "task")

#: The largest number that a limit may be, in whatever unit.
_LARGEST = 10**12

#: A figure at its limit keeps it, as at the gate: 0.8775 - 0.88 is a little less than -0.0025.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class BudgetLimits:
    """Limits for the rows whose names match.

    Attributes:
        patterns: Pattern of each of the names "target", "device" and "task"; ``*`` stands for anything.
        limits: The limits that are given, by name; that on the verdict is the worst verdict that keeps it.
    """

    patterns: Mapping[str, str]
    limits: Mapping[str, float | str]


def _file_type() -> type[Struct]:
    """Return the type of a budget file, whose limits are those of the figures."""
    keys = [(limit.name, _number(limit) | None, None) for _, limit in budget_limits().values()]
    table = msgspec.defstruct(
        "BudgetTable",
        [*((name, str, "*") for name in _NAMES), *keys, ("verdict", Verdict | None, None)],
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    tables = Annotated[list[table], Meta(min_length=1)]  # type: ignore[valid-type]
    return msgspec.defstruct("BudgetFile", [("limits", tables)], frozen=True, forbid_unknown_fields=True)


def _number(limit: Limit) -> Any:
    """Return the type of the numbers that a limit may be."""
    if limit.above is None:
        return Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)]
    least = Meta(ge=limit.above, le=_LARGEST) if limit.zero else Meta(gt=limit.above, le=_LARGEST)
    return Annotated[float, least]


@dataclass(frozen=True)
class Check:
    """One limit held against one row.

    Attributes:
        row: The row whose figure it is.
        place: Place of the limit in the file, e.g. "limits[0].size_mb".
        key: Name of the limit.
        limit: The limit as it is written.
        measured: The figure in the limit's unit; None where it was not measured.
        kept: Whether the figure was measured and is within the limit.
        why: Why there is no figure, e.g. "not measured: ..."; "" where there is one.
    """

    row: EngineRow
    place: str
    key: str
    limit: float | str
    measured: float | str | None
    kept: bool
    why: str

    @property
    def wanted(self) -> str:
        """The limit in words, e.g. "≤ 5 ms"."""
        if isinstance(self.limit, str):
            return f"{self.limit} or better"
        _, limit = budget_limits()[self.key]
        return f"{'≤' if limit.upper else '≥'} {self.limit:g}{limit.unit}"

    @property
    def found(self) -> str:
        """The figure in words."""
        if self.measured is None:
            return "not measured"
        if isinstance(self.measured, str):
            return self.measured
        _, limit = budget_limits()[self.key]
        return f"{limit.format(self.measured)}{limit.unit}"


def read_budgets(path: Path) -> tuple[BudgetLimits, ...]:
    """Read a budget file.

    Raises:
        BudgetError: The file is absent, is no TOML, has a key or value that it cannot have, or a table that limits
            nothing.
    """
    content, kind = read_toml(path, BudgetError), _file_type()
    check_keys(content, kind, str(path), BudgetError)
    (tables_field,) = msgspec.structs.fields(kind)
    (table_kind,) = tables_field.type.__origin__.__args__
    tables = content.get("limits")
    for index, table in enumerate(tables if isinstance(tables, list) else []):
        check_keys(table, table_kind, str(path), BudgetError, f"limits[{index}].")
    check_values(content, kind, str(path), BudgetError)
    try:
        budgets = msgspec.to_builtins(msgspec.convert(content, kind))["limits"]
    except msgspec.ValidationError as error:
        raise BudgetError(f"{path}: {explain(error, kind)}; limits stand in tables [[limits]]") from error
    return tuple(_limits(table, f"{path}: limits[{index}]") for index, table in enumerate(budgets))


def _limits(table: JsonObject, where: str) -> BudgetLimits:
    names = (*budget_limits(), "verdict")
    limits = {name: table[name] for name in names if table[name] is not None}
    if not limits:
        raise BudgetError(f"{where}: limits nothing; give it one of {', '.join(names[:-1])} or verdict")
    return BudgetLimits({name: table[name] for name in _NAMES}, limits)


def check_budgets(entries: Sequence[Entry], budgets: Sequence[BudgetLimits], path: Path) -> tuple[Check, ...]:
    """Hold each limit against each row that it is for. A figure that was not measured does not keep its limit.

    Args:
        entries: The table.
        budgets: What the file says.
        path: The file, for errors.

    Raises:
        BudgetError: Limits are for no row, or one on the metric keeps what is worse.
    """
    return tuple(
        check
        for index, limits in enumerate(budgets)
        for row in _rows(entries, limits, f"{path}: limits[{index}]")
        for check in _checks(row, limits, f"{path}: limits[{index}]", f"limits[{index}]")
    )


def _rows(entries: Sequence[Entry], limits: BudgetLimits, where: str) -> list[EngineRow]:
    """Return the rows that limits are for; none would keep them for ever, and a typo would too."""
    for name, pattern in limits.patterns.items():
        names = {getattr(entry.row, name) for entry in entries}
        if not any(fnmatchcase(known, pattern) for known in names):
            raise BudgetError(f"{where}: no row is of the {name} '{pattern}'{nearest(pattern, names)}")
    rows = [
        entry.row
        for entry in entries
        if all(fnmatchcase(getattr(entry.row, name), pattern) for name, pattern in limits.patterns.items())
    ]
    if not rows:
        wanted = ", ".join(f"{name} '{pattern}'" for name, pattern in limits.patterns.items() if pattern != "*")
        raise BudgetError(f"{where}: no row is of {wanted} at once")
    return rows


def _checks(row: EngineRow, budget: BudgetLimits, where: str, place: str) -> Iterator[Check]:
    _check_direction(row, budget, where)
    for key, value in budget.limits.items():
        if isinstance(value, str):
            kept = VERDICTS.index(row.verdict) <= [*VERDICTS].index(value)  # type: ignore[arg-type]
            yield Check(row, f"{place}.{key}", key, value, row.verdict, kept, "")
            continue
        figure, limit = budget_limits()[key]
        measured = limit.measure(figure, row)
        if measured is None:
            yield Check(row, f"{place}.{key}", key, value, None, False, row.why_not(figure.field))
        else:
            kept = limit.exceeds(measured, value) <= _ROUNDING
            yield Check(row, f"{place}.{key}", key, value, measured, kept, "")


def _check_direction(row: EngineRow, budget: BudgetLimits, where: str) -> None:
    names = ("min_metric", "max_metric")
    least, most = (value if isinstance(value := budget.limits.get(name), float) else None for name in names)
    try:
        check_direction(row, (least, most), names)
    except ReportError as error:
        raise BudgetError(f"{where}: {error}") from None
