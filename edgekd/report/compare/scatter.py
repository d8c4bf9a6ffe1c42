"""The picture of metric against latency for the engines of one task, and which of them no other beats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.gram.pareto import unbeaten
from edgekd.report.escape import escape
from edgekd.report.format import milliseconds, number
from edgekd.report.svg.draw import WIDTH, Frame, picture, text, x_axis, y_axis
from edgekd.report.svg.scale import AxisScale

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgekd.report.row import EngineRow

_HEIGHT = 290
_FRAME = Frame(56, 30, WIDTH - 18, _HEIGHT - 42)
#: Around a point, from its middle: places of its number, the nearest first.
_BESIDE = ((11, -7), (11, 15), (-11, -7), (-11, 15), (11, -20), (11, 28), (-11, -20), (-11, 28))
_LINE, _CHARACTER = 12.0, 7.5


def unbeaten_rows(rows: Mapping[int, EngineRow]) -> list[int]:
    """Return the numbers of the rows that no other beats, the fastest first.

    A row beats another if it is worse in neither, and either its metric is better or the interval of its p50 lies
    wholly below the other's.

    Args:
        rows: The rows by number; those without a p50 or a metric are passed over.
    """
    known = [_Point(index, row) for index, row in _shown(rows).items()]
    kept = [known[index] for index in unbeaten(known, _Point.beats)]
    return [point.index for point in sorted(kept, key=lambda point: (point.p50, -point.metric))]


def _shown(rows: Mapping[int, EngineRow]) -> dict[int, EngineRow]:
    return {
        index: row for index, row in rows.items() if row.latency_ms.p50 is not None and row.metric.shipped is not None
    }


class _Point:
    """The p50 of a row, and its metric with a sign such that more is better."""

    def __init__(self, index: int, row: EngineRow) -> None:
        assert row.latency_ms.p50 is not None  # the caller has looked
        assert row.metric.shipped is not None
        self.index, self.p50 = index, row.latency_ms.p50
        self.low, self.high = row.latency_ms.interval_95["p50"] or (self.p50, self.p50)
        self.metric = row.metric.shipped if row.metric.higher_is_better else -row.metric.shipped

    def beats(self, other: _Point) -> bool:
        """Return whether this row is better than another, beyond noise."""
        if self.p50 > other.p50 or self.metric < other.metric:
            return False
        return self.metric > other.metric or self.high < other.low


def scatter_svg(name: str, rows: Mapping[int, EngineRow]) -> str | None:
    """Return the picture; None where no row has both figures.

    Args:
        name: An id that no other picture of the page has.
        rows: The rows of one task and metric, by their numbers in the table.
    """
    shown = _shown(rows)
    if not shown:
        return None
    metric = next(iter(shown.values())).metric.name
    ends = [x for row in shown.values() for x in (row.latency_ms.p50, *_interval(row)) if x is not None]
    across = AxisScale.of(ends)
    up = AxisScale.of([row.metric.shipped for row in shown.values() if row.metric.shipped is not None], log=False)
    best = unbeaten_rows(shown)
    description = f"{metric} against p50 latency. Not beaten in both: {', '.join(map(str, best))}. "
    description += "; ".join(f"{index}: {_describe(row)}" for index, row in shown.items())
    parts = [*x_axis(_FRAME, across, "p50 in ms"), *y_axis(_FRAME, up, metric)]
    places = {index: _at(row, across, up) for index, row in shown.items()}
    parts.append(_front([places[index] for index in best]))
    labels = _labels(places)
    for index, row in shown.items():
        parts += _point(index, row, places[index], labels[index], across, index in best)
    return picture(name, description, _HEIGHT, parts)


def _describe(row: EngineRow) -> str:
    p50, metric = row.latency_ms.p50 or 0.0, f"{row.metric.name} {number(row.metric.shipped)}"
    return f"{row.target} on {row.device}, {row.runtime} {row.precision}, {milliseconds(p50)} ms, {metric}"


def _interval(row: EngineRow) -> tuple[float, ...]:
    return row.latency_ms.interval_95["p50"] or ()


def _at(row: EngineRow, across: AxisScale, up: AxisScale) -> tuple[float, float]:
    return _FRAME.x(across.share(row.latency_ms.p50 or 0.0) or 0.0), _FRAME.y(
        up.share(row.metric.shipped or 0.0) or 0.0
    )


def _front(places: list[tuple[float, float]]) -> str:
    """Draw the front in steps: a row that is as good but slower lies beyond it."""
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    path += "".join(f" H{x:.1f} V{y:.1f}" for x, y in places[1:])
    return f'<path class="front" d="{path}"/>'


def _point(
    index: int, row: EngineRow, at: tuple[float, float], label: tuple[float, float], across: AxisScale, best: bool
) -> Iterator[str]:
    x, y = at
    yield f'<g data-row="{index}"><title>{escape(f"{index}: {_describe(row)}")}</title>'
    if interval := _interval(row):
        low, high = (_FRAME.x(across.share(end) or 0.0) for end in interval)
        yield f'<path class="interval" d="M{low:.1f} {y:.1f} H{high:.1f}"/>'
    yield f'<circle class="{"best" if best else "beaten"}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    yield text(*label, str(index), "start" if label[0] > x else "end", "mark")
    yield "</g>"


def _labels(places: Mapping[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
    """Return a place for each point's number where it covers neither a point nor another number, if there is one."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in places.values()]
    labels = {}
    for index, (x, y) in places.items():
        boxes = {(x + dx, y + dy): _box(index, x + dx, y + dy, dx) for dx, dy in _BESIDE}
        free = (at for at, box in boxes.items() if not any(_touch(box, other) for other in taken) and box[2] < WIDTH)
        labels[index] = next(free, next(iter(boxes)))
        taken.append(boxes[labels[index]])
    return labels


def _box(index: int, x: float, y: float, dx: float) -> tuple[float, float, float, float]:
    width = _CHARACTER * len(str(index))
    return (x, y - _LINE, x + width, y) if dx > 0 else (x - width, y - _LINE, x, y)


def _touch(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
