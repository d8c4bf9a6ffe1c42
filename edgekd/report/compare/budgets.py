"""Limits that the rows of a joined table must keep, from a TOML file: for all rows, or for those of some targets."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from edgekd.config.validation import check_keys, check_values, explain
from edgekd.errors import BudgetError, ReportError, nearest
from edgekd.files import read_toml
from edgekd.gram.gate import Verdict
from edgekd.report.compare.rows import VERDICTS, check_direction
from edgekd.report.format import milliseconds, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from edgekd.report.compare.rows import EngineRow, Entry

Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]

_NAMES = ("target", "device", "task")

#: A figure at its limit keeps it, as at the gate: 0.8775 - 0.88 is a little less than -0.0025.
_ROUNDING = 1e-9


class BudgetLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits for the rows whose names match; without names for all rows.

    Attributes:
        target: a name, in which ``*`` stands for anything.
        device: the same.
        task: the same.
        latency_p50_ms: at most.
        latency_p90_ms: at most.
        latency_p99_ms: at most.
        throughput_per_s: at least.
        size_mb: of the engine file, at most, 10^6 bytes.
        memory_mb: peak resident memory, at most, 10^6 bytes.
        energy_mj: of one inference, at most.
        min_metric: at least, where higher is better.
        max_metric: at most, where lower is better.
        max_metric_drop: how much worse than that of the ledger's reference the metric may be.
        max_drift_bound: of the Gram drift against the ledger's reference.
        verdict: the worst that is let through.
    """

    target: str = "*"
    device: str = "*"
    task: str = "*"
    latency_p50_ms: Positive | None = None
    latency_p90_ms: Positive | None = None
    latency_p99_ms: Positive | None = None
    throughput_per_s: Positive | None = None
    size_mb: Positive | None = None
    memory_mb: Positive | None = None
    energy_mj: Positive | None = None
    min_metric: float | None = None
    max_metric: float | None = None
    max_metric_drop: NonNegative | None = None
    max_drift_bound: NonNegative | None = None
    verdict: Verdict | None = None


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    limits: Annotated[list[BudgetLimits], Meta(min_length=1)]


@dataclass(frozen=True)
class Check:
    """One limit held against one row.

    Attributes:
        row: whose figure it is.
        place: of the limit in the file, e.g. "limits[0].size_mb".
        key: its name.
        limit: as written.
        measured: the figure, in the limit's unit; None where there is none.
        kept: whether it is measured and within the limit.
        why: why there is no figure, e.g. "not measured: ..."; "" where there is one.
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
        kind = _KINDS[self.key]
        return f"{'≤' if kind.upper else '≥'} {self.limit:g}{kind.unit}"

    @property
    def found(self) -> str:
        """The figure in words."""
        if self.measured is None:
            return "not measured"
        if isinstance(self.measured, str):
            return self.measured
        kind = _KINDS[self.key]
        return f"{kind.text(self.measured)}{kind.unit}"


@dataclass(frozen=True)
class _Kind:
    """A limit: the row's attribute, its size in the limit's unit, and whether it is an upper one."""

    field: str
    unit: str = ""
    scale: float = 1.0
    upper: bool = True
    text: Callable[[float], str] = lambda value: f"{value:.4g}"

    def of(self, row: EngineRow) -> float | None:
        """Return the row's figure in the limit's unit."""
        value: float | None = getattr(row, self.field)
        return None if value is None else value / self.scale


def _drop(row: EngineRow) -> float | None:
    """Return how much worse the metric became, positive when worse."""
    if row.metric_change is None:
        return None
    return -row.metric_change if row.higher_is_better else row.metric_change


_KINDS = {
    **{f"latency_{name}_ms": _Kind(f"{name}_ms", " ms", text=milliseconds) for name in ("p50", "p90", "p99")},
    "throughput_per_s": _Kind("throughput_per_s", upper=False),
    "size_mb": _Kind("size_bytes", " MB", 1e6),
    "memory_mb": _Kind("memory_bytes", " MB", 1e6),
    "energy_mj": _Kind("energy_mj", " mJ"),
    "min_metric": _Kind("metric_value", upper=False, text=number),
    "max_metric": _Kind("metric_value", text=number),
    "max_metric_drop": _Kind("metric_change", text=number),
    "max_drift_bound": _Kind("drift_bound", text=number),
}


def read_budgets(path: Path) -> tuple[BudgetLimits, ...]:
    """Read a budget file.

    Raises:
        BudgetError: it is absent, no TOML, has a key or value that it cannot have, or a table that limits nothing.
    """
    content = read_toml(path, BudgetError)
    check_keys(content, _File, str(path), BudgetError)
    tables = content.get("limits")
    for index, table in enumerate(tables if isinstance(tables, list) else []):
        check_keys(table, BudgetLimits, str(path), BudgetError, f"limits[{index}].")
    check_values(content, str(path), BudgetError)
    try:
        found = msgspec.convert(content, _File)
    except msgspec.ValidationError as error:
        raise BudgetError(f"{path}: {explain(error, _File)}; limits stand in tables [[limits]]") from error
    for index, limits in enumerate(found.limits):
        if not _stated(limits):
            raise BudgetError(f"{path}: limits[{index}]: limits nothing; give it one of {', '.join(_KINDS)} or verdict")
    return tuple(found.limits)


def _stated(limits: BudgetLimits) -> dict[str, float | str]:
    """Return the limits that are given, by name."""
    values = {key: getattr(limits, key) for key in (*_KINDS, "verdict")}
    return {key: value for key, value in values.items() if value is not None}


def check_budgets(entries: Sequence[Entry], budgets: Sequence[BudgetLimits], path: Path) -> tuple[Check, ...]:
    """Hold each limit against each row that it is for. A figure that was not measured does not keep its limit.

    Args:
        entries: the table.
        budgets: what the file says.
        path: the file, for errors.

    Raises:
        BudgetError: limits are for no row, or one on the metric keeps what is worse.
    """
    return tuple(
        check
        for index, limits in enumerate(budgets)
        for row in _rows(entries, limits, f"{path}: limits[{index}]")
        for check in _checks(row, limits, f"{path}: limits[{index}]", f"limits[{index}]")
    )


def _rows(entries: Sequence[Entry], limits: BudgetLimits, where: str) -> list[EngineRow]:
    """Return the rows that limits are for; none would keep them for ever, and a typo would too."""
    for name in _NAMES:
        pattern, there = getattr(limits, name), {getattr(entry.row, name) for entry in entries}
        if not any(fnmatchcase(found, pattern) for found in there):
            raise BudgetError(f"{where}: no row is of the {name} '{pattern}'{nearest(pattern, there)}")
    rows = [e.row for e in entries if all(fnmatchcase(getattr(e.row, name), getattr(limits, name)) for name in _NAMES)]
    if not rows:
        wanted = ", ".join(f"{name} '{getattr(limits, name)}'" for name in _NAMES if getattr(limits, name) != "*")
        raise BudgetError(f"{where}: no row is of {wanted} at once")
    return rows


def _checks(row: EngineRow, limits: BudgetLimits, where: str, place: str) -> Iterator[Check]:
    try:
        check_direction(row, limits.min_metric, "min_metric", limits.max_metric, "max_metric")
    except ReportError as error:
        raise BudgetError(f"{where}: {error}") from None
    for key, limit in _stated(limits).items():
        if isinstance(limit, str):
            kept = VERDICTS.index(row.verdict) <= [*VERDICTS].index(limit)  # type: ignore[arg-type]
            yield Check(row, f"{place}.{key}", key, limit, row.verdict, kept, "")
            continue
        kind = _KINDS[key]
        measured = _drop(row) if key == "max_metric_drop" else kind.of(row)
        if measured is None:
            yield Check(row, f"{place}.{key}", key, limit, None, False, row.why_not(kind.field))
        else:
            over = measured - limit if kind.upper else limit - measured
            yield Check(row, f"{place}.{key}", key, limit, measured, over <= _ROUNDING, "")
