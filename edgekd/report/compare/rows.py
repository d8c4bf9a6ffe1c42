"""Entries of the table: one for each engine on its device; sorted, and filtered by what they keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekd.errors import ReportError, nearest
from edgekd.gram.verdict import VERDICTS
from edgekd.report.figures import figure_by_key, filter_limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from edgekd.gram.gate import Ledger
    from edgekd.gram.verdict import Verdict
    from edgekd.report.results import BuildReport, TargetResult
    from edgekd.report.row import EngineRow
    from edgekd.runtime.measure.results import Profile


@dataclass(frozen=True)
class Entry:
    """A row, and what stands behind it.

    Attributes:
        row: The engine's figures.
        ledger: The same probe after every stage.
        profile: The engine and those measured beside it; None where nothing was timed.
        timings: Folder of the raw timings, by the names in the profile.
        grams: File with the Gram matrices of a few samples, which need not be there.
        result: All that a build says of the target; None for a bundle that was profiled.
        report: The whole build; None for a bundle that was profiled.
    """

    row: EngineRow
    ledger: Ledger
    profile: Profile | None
    timings: Path
    grams: Path
    result: TargetResult | None = None
    report: BuildReport | None = None

    @property
    def project(self) -> str:
        """What a user calls the build that the row is of."""
        return self.report.name if self.report else self.row.task


def sort_entries(entries: Sequence[Entry], key: str, reverse: bool = False) -> tuple[Entry, ...]:
    """Return the entries sorted by a key of :func:`edgekd.report.figures.sort_keys`, the smallest first.

    Entries without the figure are last in either direction.
    """
    figure = figure_by_key(key)
    if figure is None:
        return tuple(sorted(entries, key=lambda entry: _word(entry.row, key), reverse=reverse))
    known = [(value, entry) for entry in entries if (value := figure.value(entry.row)) is not None]
    known.sort(key=lambda pair: pair[0], reverse=reverse)
    return (*(entry for _, entry in known), *(entry for entry in entries if figure.value(entry.row) is None))


def _word(row: EngineRow, key: str) -> tuple[int, str]:
    word = str(getattr(row, key))
    return (VERDICTS.index(row.verdict), "") if key == "verdict" else (0, word)


@dataclass(frozen=True)
class Filters:
    """What a row must be and keep to stay in the table.

    Attributes:
        targets: Names of targets; empty for any.
        devices: Names of devices; empty for any.
        verdict: The worst verdict that stays.
        limits: The limits that figures must keep, by the name of the option that sets one, e.g. "max_latency_ms".
    """

    targets: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    verdict: Verdict = "fail"
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ExcludedRow:
    """A row that a limit left out of the table, and why."""

    row: EngineRow
    why: str


def filter_entries(entries: Sequence[Entry], filters: Filters) -> tuple[tuple[Entry, ...], tuple[ExcludedRow, ...]]:
    """Return the entries that keep the filters, and of those with the wanted names the ones that do not.

    A row without a figure does not keep a limit on it.

    Raises:
        ReportError: A name is of no row, or a limit on the metric keeps what is worse.
    """
    named = [
        entry
        for entry in entries
        if entry.row.target in _known("target", filters.targets, entries)
        and entry.row.device in _known("device", filters.devices, entries)
    ]
    for entry in named:
        limits = (filters.limits.get("min_metric"), filters.limits.get("max_metric"))
        check_direction(entry.row, limits, ("--min-metric", "--max-metric"))
    kept, excluded = [], []
    for entry in named:
        why = "; ".join(_failings(entry.row, filters))
        if why:
            excluded.append(ExcludedRow(entry.row, why))
        else:
            kept.append(entry)
    return tuple(kept), tuple(excluded)


def check_direction(row: EngineRow, limits: tuple[float | None, float | None], names: tuple[str, str]) -> None:
    """Refuse a limit on the metric that keeps what is worse.

    Args:
        row: The row that the limits are for.
        limits: The least and the most that the metric may be; None where there is no such limit.
        names: What the two are called where the user wrote them.

    Raises:
        ReportError: The row's metric is better in the other direction.
    """
    (least, most), (least_name, most_name) = limits, names
    higher = row.metric.higher_is_better
    wrong, right = (most, (most_name, least_name)) if higher else (least, (least_name, most_name))
    if wrong is not None:
        better = "higher" if higher else "lower"
        raise ReportError(
            f"{right[0]} {wrong:g}: the {row.metric.name} of {row.run}, {row.target} is better when {better}: use "
            f"{right[1]}, or name the targets that are meant"
        )


def _known(kind: str, wanted: tuple[str, ...], entries: Sequence[Entry]) -> set[str]:
    """Return the wanted names, or all that there are."""
    names = {getattr(entry.row, kind) for entry in entries}
    for name in wanted:
        if name not in names:
            raise ReportError(f"--{kind} {name}: no row is of that {kind}{nearest(name, names)}")
    return set(wanted) or names


def _failings(row: EngineRow, filters: Filters) -> Iterator[str]:
    if VERDICTS.index(row.verdict) > VERDICTS.index(filters.verdict):
        yield f"verdict {row.verdict}, wanted {filters.verdict}"
    for option, (figure, limit) in filter_limits().items():
        bound = filters.limits.get(option)
        if bound is None:
            continue
        value = limit.measure(figure, row)
        name = row.metric.name if figure.key == "metric" else figure.key
        if value is None:
            yield f"{name} {row.why_not(figure.field)}"
        elif limit.exceeds(value, bound) > 0:
            side = "above" if limit.upper else "below"
            yield f"{name} {figure.format(value)}{limit.unit} is {side} {bound:g}{limit.unit}"
