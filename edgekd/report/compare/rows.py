"""Rows of the joined table: one for each engine on its device; sorted, and chosen by what they keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.errors import ReportError, nearest
from edgekd.report.format import milliseconds, number, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from edgekd.gram.gate import Ledger, Verdict
    from edgekd.runtime.measure.results import Profile

#: From good to bad.
VERDICTS: tuple[Verdict, ...] = ("pass", "warn", "fail")


@dataclass(frozen=True)
class EngineRow:
    """One engine on its device. A figure that is None has its reason in ``not_measured``, by the attribute's name.

    Attributes:
        run: the folder that it was read from, as the user wrote it.
        task: what the engine does.
        target: the kind of device.
        device: the machine.
        runtime: the engine library.
        precision: e.g. "int8".
        verdict: of the build, budgets of the target included.
        reasons: why it did not simply pass.
        n: inferences that were timed, single ones at batch 1.
        p50_ms: latency; ``low`` and ``high`` are the ends of its 95 % interval.
        p50_low_ms: see there.
        p50_high_ms: see there.
        p90_ms: the same.
        p90_low_ms: the same.
        p90_high_ms: the same.
        p99_ms: the same.
        p99_low_ms: the same.
        p99_high_ms: the same.
        throughput_per_s: inferences a second of one stream.
        metric: name of the task's metric.
        higher_is_better: whether a larger metric is better.
        metric_value: of what ships.
        metric_change: that less the metric of the ledger's reference.
        drift_bound: upper confidence bound of the Gram drift against the ledger's reference.
        size_bytes: of the engine file.
        memory_bytes: peak resident memory of the process that ran it.
        energy_mj: of one inference, idle subtracted.
        energy_rail: the sensors that it was read from.
        not_measured: reasons.
    """

    run: str
    task: str
    target: str
    device: str
    runtime: str
    precision: str
    verdict: Verdict
    reasons: tuple[str, ...]
    n: int | None
    p50_ms: float | None
    p50_low_ms: float | None
    p50_high_ms: float | None
    p90_ms: float | None
    p90_low_ms: float | None
    p90_high_ms: float | None
    p99_ms: float | None
    p99_low_ms: float | None
    p99_high_ms: float | None
    throughput_per_s: float | None
    metric: str
    higher_is_better: bool
    metric_value: float | None
    metric_change: float | None
    drift_bound: float | None
    size_bytes: int | None
    memory_bytes: int | None
    energy_mj: float | None
    energy_rail: str | None
    not_measured: dict[str, str]

    def why_not(self, field: str) -> str:
        """Say why there is no figure."""
        return self.not_measured.get(field, "not measured")


@dataclass(frozen=True)
class Entry:
    """A row, and what stands behind it.

    Attributes:
        row: its figures.
        ledger: the same probe after every stage.
        profile: it and the engines measured beside it; None where nothing was timed.
        timings: folder of the raw timings, by the names in the profile.
        grams: file with the Grams of a few samples, which need not be there.
    """

    row: EngineRow
    ledger: Ledger
    profile: Profile | None
    timings: Path
    grams: Path


@dataclass(frozen=True)
class Figure:
    """A column of figures.

    Attributes:
        key: its name for ``--sort``.
        field: the row's attribute.
        heading: above the column, with its unit.
        text: writes one.
    """

    key: str
    field: str
    heading: str
    text: Callable[[float], str]

    def of(self, row: EngineRow) -> float | None:
        """Return the row's figure."""
        value: float | None = getattr(row, self.field)
        return value

    def write(self, row: EngineRow, absent: str) -> str:
        """Write the row's figure, or ``absent``."""
        value = self.of(row)
        return absent if value is None else self.text(value)


FIGURES = (
    Figure("p50", "p50_ms", "p50 ms", milliseconds),
    Figure("p90", "p90_ms", "p90 ms", milliseconds),
    Figure("p99", "p99_ms", "p99 ms", milliseconds),
    Figure(
        "throughput", "throughput_per_s", "per s", lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    ),
    Figure("metric", "metric_value", "metric", number),
    Figure("change", "metric_change", "change", lambda value: number(value, "+.4f")),
    Figure("bound", "drift_bound", "bound", number),
    Figure("size", "size_bytes", "size", lambda value: size(int(value))),
    Figure("memory", "memory_bytes", "memory", lambda value: size(int(value))),
    Figure("energy", "energy_mj", "mJ", lambda value: f"{value:.3g}"),
)
BY_KEY = {figure.key: figure for figure in FIGURES}

#: Columns of words that one can sort by.
WORDS = ("task", "target", "device", "runtime", "precision", "verdict")
SORT_KEYS = (*BY_KEY, *WORDS)


def sort_entries(entries: Sequence[Entry], key: str, reverse: bool = False) -> tuple[Entry, ...]:
    """Return the entries sorted by one of :data:`SORT_KEYS`, the smallest first; those without the figure are last."""
    figure = BY_KEY.get(key)
    if figure is None:
        return tuple(sorted(entries, key=lambda entry: _word(entry.row, key), reverse=reverse))
    known = [(value, entry) for entry in entries if (value := figure.of(entry.row)) is not None]
    known.sort(key=lambda pair: pair[0], reverse=reverse)
    return (*(entry for _, entry in known), *(entry for entry in entries if figure.of(entry.row) is None))


def _word(row: EngineRow, key: str) -> tuple[int, str]:
    word = str(getattr(row, key))
    return (VERDICTS.index(row.verdict), "") if key == "verdict" else (0, word)


@dataclass(frozen=True)
class Filters:
    """What a row must be and keep to stay in the table.

    Attributes:
        targets: names; any where there are none.
        devices: the same.
        verdict: the worst that is let through.
        max_latency_ms: of the p50.
        min_metric: where higher is better.
        max_metric: where lower is better.
    """

    targets: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    verdict: Verdict = "fail"
    max_latency_ms: float | None = None
    min_metric: float | None = None
    max_metric: float | None = None


@dataclass(frozen=True)
class ExcludedRow:
    """A row that a limit left out, and why."""

    row: EngineRow
    why: str


def filter_entries(entries: Sequence[Entry], filters: Filters) -> tuple[tuple[Entry, ...], tuple[ExcludedRow, ...]]:
    """Return the entries that keep the filters, and of those with the wanted names the ones that do not.

    A row without a figure does not keep a limit on it.

    Raises:
        ReportError: a name is of no row, or a limit on the metric has the wrong direction for one.
    """
    named = [
        entry
        for entry in entries
        if entry.row.target in _known("target", filters.targets, entries)
        and entry.row.device in _known("device", filters.devices, entries)
    ]
    for entry in named:
        check_direction(entry.row, filters.min_metric, "--min-metric", filters.max_metric, "--max-metric")
    kept, left_out = [], []
    for entry in named:
        why = "; ".join(_failings(entry.row, filters))
        if why:
            left_out.append(ExcludedRow(entry.row, why))
        else:
            kept.append(entry)
    return tuple(kept), tuple(left_out)


def check_direction(row: EngineRow, least: float | None, least_name: str, most: float | None, most_name: str) -> None:
    """Refuse a limit on the metric that keeps what is worse.

    Raises:
        ReportError: the row's metric is better the other way round.
    """
    wrong, right = (most, (most_name, least_name)) if row.higher_is_better else (least, (least_name, most_name))
    if wrong is not None:
        better = "higher" if row.higher_is_better else "lower"
        raise ReportError(
            f"{right[0]} {wrong:g}: the {row.metric} of {row.run}, {row.target} is better when {better}: use "
            f"{right[1]}, or name the targets that are meant"
        )


def _known(kind: str, wanted: tuple[str, ...], entries: Sequence[Entry]) -> set[str]:
    """Return the wanted names, or all that there are."""
    there = {getattr(entry.row, kind) for entry in entries}
    for name in wanted:
        if name not in there:
            raise ReportError(f"--{kind} {name}: no row is of that {kind}{nearest(name, there)}")
    return set(wanted) or there


def _failings(row: EngineRow, filters: Filters) -> Iterator[str]:
    if VERDICTS.index(row.verdict) > VERDICTS.index(filters.verdict):
        yield f"verdict {row.verdict}, wanted {filters.verdict}"
    limits = (
        ("p50", filters.max_latency_ms, True, " ms"),
        ("metric", filters.min_metric, False, ""),
        ("metric", filters.max_metric, True, ""),
    )
    for key, limit, upper, unit in limits:
        figure = BY_KEY[key]
        value = figure.of(row)
        if limit is None:
            continue
        name = row.metric if key == "metric" else key
        if value is None:
            yield f"{name} {row.why_not(figure.field)}"
        elif value > limit if upper else value < limit:
            yield f"{name} {figure.text(value)}{unit} is {'above' if upper else 'below'} {limit:g}{unit}"
