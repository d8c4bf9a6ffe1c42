"""The figures of what ships that a reader must see first, each held against its own limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.report.compare.html import limit_state
from edgekd.report.escape import escape
from edgekd.report.figures import figure_by_key
from edgekd.report.format import factor, number
from edgekd.report.questions import row_verdicts
from edgekd.report.table import metric_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.gram.verdict import Verdict
    from edgekd.report.compare.rows import Entry

#: The figure that each budget of a target limits.
_BUDGETS = {"latency p50": "p50", "size": "size", "peak memory": "memory"}


@dataclass(frozen=True)
class Tile:
    """One figure with its limit.

    Attributes:
        name: What the figure is.
        value: The figure in words.
        notes: What it is compared with.
        limit: Its limit in words; "" where it has none.
        verdict: Whether it keeps the limit; None where it has none.
    """

    name: str
    value: str
    notes: tuple[str, ...] = ()
    limit: str = ""
    verdict: Verdict | None = None


def tiles(entry: Entry) -> list[Tile]:
    """Return the figures of what ships, each with its limit where it has one."""
    return [*_measured(entry), _metric(entry)]


def _measured(entry: Entry) -> Iterator[Tile]:
    """Yield latency, size and memory, with the target's budgets and the ratios to the float networks."""
    budgets = {_BUDGETS[check.name]: check for check in entry.result.budget_checks} if entry.result else {}
    ratios = {"p50": (entry.row.speedup_p50, "faster", "slower"), "size": (entry.row.size_ratio, "smaller", "larger")}
    for key, name in (("p50", "Latency, p50"), ("size", "Engine file"), ("memory", "Peak memory")):
        figure, budget = figure_by_key(key), budgets.get(key)
        if figure is None or (key == "memory" and budget is None):
            continue
        value = figure.value(entry.row)
        known, better, worse = ratios.get(key, ({}, "", ""))
        ratios_known = ((other, ratio) for other, ratio in known.items() if ratio)
        notes = tuple(f"{_comparison(ratio, better, worse)} than the {other}" for other, ratio in ratios_known)
        if value is None:
            notes = (entry.row.why_not(figure.field),)
        written = "not measured" if value is None else f"{figure.format(value)}{figure.unit}"
        limit = f"budget ≤ {budget.limit:g} {budget.unit}" if budget else ""
        verdict: Verdict | None = None if budget is None else "pass" if budget.kept else "warn"
        yield Tile(name, written, notes, limit, verdict)


def _comparison(ratio: float, better: str, worse: str) -> str:
    """Write a ratio in words, e.g. ``"4.7× faster"``, or for a ratio below 1 ``"1.3× slower"``."""
    return f"{factor(ratio)} {better}" if ratio >= 1 else f"{factor(1 / ratio)} {worse}"


def _metric(entry: Entry) -> Tile:
    metric, ledger = entry.row.metric, entry.ledger
    name = metric_name(metric.name) if len(metric.name) > 24 else metric.name
    if metric.shipped is None:
        return Tile(name, "not measured", (entry.row.why_not("metric.shipped"),))
    change = "" if metric.change is None else f"{metric.change:+.4f} to the {ledger.reference}"
    limits = ledger.limits
    limit = f"change {'≥ -' if limits.higher_is_better else '≤ +'}{limits.max_metric_drop:g}"
    verdict = row_verdicts(ledger, ledger.rows[-1]).get("loss")
    return Tile(name, number(metric.shipped), (change,) if change else (), limit, verdict)


def tiles_html(entry: Entry) -> str:
    """Return the tiles as a list; those beyond their limit stand out in colour, weight and words."""
    return f'<ul class="tiles">{"".join(map(_tile, tiles(entry)))}</ul>'


def _tile(tile: Tile) -> str:
    notes = "".join(f'<span class="note">{escape(note)}</span>' for note in tile.notes)
    state = limit_state(tile.verdict)
    limit = f'<span class="bound">{escape(tile.limit)} {state}</span>' if tile.limit and state else ""
    return (
        f'<li class="tile {tile.verdict or ""}"><span class="name">{escape(tile.name)}</span>'
        f'<span class="value">{escape(tile.value)}</span>{notes}{limit}</li>'
    )
