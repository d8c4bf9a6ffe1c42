"""The figures of a report's table. JSON, CSV, tables, page, budgets, sorting, filters and help derive from this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.report.format import milliseconds, number, rate, significant, size, small

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.report.row import EngineRow


@dataclass(frozen=True)
class Limit:
    """A limit that a budget file can set on a figure.

    Attributes:
        name: Its key in the budget file, e.g. ``"latency_p50_ms"``.
        meaning: What must be kept, for the help.
        upper: Whether the figure may be at most the limit; otherwise it must be at least the limit.
        scale: How many of the figure's units are one of the limit's.
        unit: Unit of the limit, with a space before it, e.g. ``" ms"``.
        above: The limit must be a number above this one; None where any number will do.
        zero: Whether the limit may also be equal to ``above``.
        worse: Whether what counts is by how much the figure is worse than 0, in the metric's direction.
        format: Function that writes a figure in the limit's unit, without the unit.
        option: Name of the option of ``edgekd report`` that filters by it, without dashes; "" where there is none.
    """

    name: str
    meaning: str
    upper: bool = True
    scale: float = 1.0
    unit: str = ""
    above: float | None = 0.0
    zero: bool = False
    worse: bool = False
    format: Callable[[float], str] = lambda value: f"{value:.4g}"
    option: str = ""

    def measure(self, figure: Figure, row: EngineRow) -> float | None:
        """Return the row's figure in the limit's unit; None where it was not measured."""
        value = figure.value(row)
        if value is None:
            return None
        if self.worse:
            return -value if row.metric.higher_is_better else value
        return value / self.scale

    def exceeds(self, value: float, limit: float) -> float:
        """Return by how much a value is beyond the limit; it is 0 or negative where the limit is kept."""
        return value - limit if self.upper else limit - value


@dataclass(frozen=True)
class Figure:
    """One column of figures.

    Attributes:
        key: Its name for ``--sort``, in notes and for the page's filters.
        field: Dotted path of the figure in an :class:`~edgekd.report.row.EngineRow`, and so in ``report.json``.
        column: Its column in CSV and its key in JSON.
        heading: What stands above its column in tables.
        format: Function that writes one value, without the unit.
        unit: Unit that follows a written value, with a space before it.
        limits: The limits that a budget file can set on it.
        beside: Further columns of CSV and keys of JSON that belong to it, each with its dotted path.
        speed: Whether the figure says what the engine does; otherwise it says what the engine takes. The terminal
            divides the columns among two tables by it.
        narrow: Whether the terminal's tables, which are narrow, have it.
    """

    key: str
    field: str
    column: str
    heading: str
    format: Callable[[float], str]
    unit: str = ""
    limits: tuple[Limit, ...] = ()
    beside: tuple[tuple[str, str], ...] = ()
    speed: bool = True
    narrow: bool = True

    def value(self, row: EngineRow) -> float | None:
        """Return the row's figure."""
        value: float | None = row.value(self.field)
        return value

    def write(self, row: EngineRow, absent: str) -> str:
        """Write the row's figure, or ``absent`` where it was not measured."""
        value = self.value(row)
        return absent if value is None else self.format(value)

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """The columns of CSV and the keys of JSON that it fills, each with its dotted path; its own is the first."""
        return ((self.column, self.field), *self.beside)


def _latency(name: str, *beside: tuple[str, str], option: str = "") -> Figure:
    ends = ((f"{name}_{end}_ms", f"latency_ms.interval_95.{name}.{place}") for place, end in enumerate(("low", "high")))
    limit = Limit(f"latency_{name}_ms", f"{name} of the latency", unit=" ms", format=milliseconds, option=option)
    return Figure(
        key=name,
        field=f"latency_ms.{name}",
        column=f"{name}_ms",
        heading=f"{name} ms",
        format=milliseconds,
        unit=" ms",
        limits=(limit,),
        beside=(*ends, *beside),
    )


def _metric_limit(name: str, meaning: str, upper: bool) -> Limit:
    return Limit(name, meaning, upper=upper, above=None, format=number, option=name)


#: Every column of the table, from left to right.
FIGURES: tuple[Figure, ...] = (
    _latency("p50", ("n", "latency_ms.n"), option="max_latency_ms"),
    _latency("p90"),
    _latency("p99"),
    Figure(
        key="throughput",
        field="throughput_per_s",
        column="throughput_per_s",
        heading="per s",
        format=rate,
        limits=(Limit("throughput_per_s", "inferences a second of one stream", upper=False),),
        speed=False,
    ),
    Figure(
        key="metric",
        field="metric.shipped",
        column="metric_value",
        heading="metric",
        format=number,
        limits=(
            _metric_limit("min_metric", "metric, where higher is better", upper=False),
            _metric_limit("max_metric", "metric, where lower is better", upper=True),
        ),
        beside=(("metric", "metric.name"), ("higher_is_better", "metric.higher_is_better")),
    ),
    Figure(
        key="change",
        field="metric.change",
        column="metric_change",
        heading="change",
        format=lambda value: number(value, "+.4f"),
        limits=(
            Limit(
                "max_metric_drop", "how much worse than the ledger's reference", zero=True, worse=True, format=number
            ),
        ),
    ),
    Figure(
        key="divergence",
        field="answers.divergence_bound",
        column="divergence_bound",
        heading="divergence",
        format=small,
        limits=(Limit("max_divergence_bound", "bound of the output's divergence", zero=True, format=small),),
        beside=(("divergence_low", "answers.divergence_low"), ("error_bound", "answers.error_bound")),
        narrow=False,
    ),
    Figure(
        key="bound",
        field="gram.bound",
        column="drift_bound",
        heading="bound",
        format=number,
        limits=(Limit("max_drift_bound", "bound of the Gram drift", zero=True, format=number),),
    ),
    Figure(
        key="size",
        field="size_bytes",
        column="size_bytes",
        heading="size",
        format=lambda value: size(int(value)),
        limits=(Limit("size_mb", "size of the engine file", scale=1e6, unit=" MB"),),
        speed=False,
    ),
    Figure(
        key="memory",
        field="peak_rss_bytes",
        column="memory_bytes",
        heading="memory",
        format=lambda value: size(int(value)),
        limits=(Limit("memory_mb", "peak resident memory", scale=1e6, unit=" MB"),),
        speed=False,
    ),
    Figure(
        key="energy",
        field="energy_mj",
        column="energy_mj",
        heading="mJ",
        format=significant,
        unit=" mJ",
        limits=(Limit("energy_mj", "energy of one inference, idle subtracted", unit=" mJ"),),
        beside=(("energy_rail", "energy_rail"),),
        speed=False,
    ),
)

#: Columns of words that the table has besides, and that one can sort by.
WORDS = ("task", "target", "device", "runtime", "precision")


def figure_by_key(key: str) -> Figure | None:
    """Return the figure of a key; None where the key is of a column of words."""
    return next((figure for figure in FIGURES if figure.key == key), None)


def sort_keys() -> tuple[str, ...]:
    """Return what ``--sort`` takes: the keys of the figures, and the columns of words."""
    return (*(figure.key for figure in FIGURES), *WORDS, "verdict")


def budget_limits() -> dict[str, tuple[Figure, Limit]]:
    """Return each limit that a budget file can set, with the figure that it is on, by the limit's name."""
    return {limit.name: (figure, limit) for figure in FIGURES for limit in figure.limits}


def filter_limits() -> dict[str, tuple[Figure, Limit]]:
    """Return each limit that ``edgekd report`` can filter by, with its figure, by the option's name without dashes."""
    return {limit.option: (figure, limit) for figure in FIGURES for limit in figure.limits if limit.option}
