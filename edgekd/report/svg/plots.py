"""Plots of details: precision over recall, the spread of errors, and predicted against true values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.report.svg.draw import WIDTH, Frame, Look, legend, looks, picture, x_axis, y_axis
from edgekd.report.svg.scale import AxisScale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    #: The places of a curve or of points: horizontal, and upright.
    Places = tuple[Sequence[float], Sequence[float]]

_HEIGHT, _LEFT, _RIGHT, _BELOW, _ABOVE = 200.0, 46.0, 14.0, 40.0, 22.0
_UNIT = AxisScale(0.0, 1.0, 0.2)


def precision_recall_svg(name: str, curves: Mapping[str, Places]) -> str:
    """Return precision over recall, a line for each model.

    Args:
        name: An id that no other picture of the page has.
        curves: For each model recall and precision.
    """
    marks = looks(curves)
    parts, frame = _framed(marks, _UNIT, _UNIT, ("recall", "precision"))
    parts += [_line(marks[model], frame, (_UNIT, _UNIT), places) for model, places in curves.items()]
    return picture(name, f"Precision over recall of {_and(curves)}, over all labels.", frame.bottom + _BELOW, parts)


def histogram_svg(name: str, edges: Sequence[float], counts: Mapping[str, Sequence[int]]) -> str:
    """Return how many errors lie in each bin, an outline for each model.

    Args:
        name: An id that no other picture of the page has.
        edges: Edges of the bins, in standard deviations.
        counts: For each model how many errors lie in each bin.
    """
    marks = looks(counts)
    most = max((max(values, default=0) for values in counts.values()), default=0)
    across, up = AxisScale.of([edges[0], edges[-1]], log=False), AxisScale.of([0.0, most or 1.0], log=False, zero=True)
    parts, frame = _framed(marks, across, up, ("error, in standard deviations of what is true", "count"))
    corners = [edge for edge in edges for _ in (0, 1)]
    for model, values in counts.items():
        heights = [0.0, *(value for value in values for _ in (0, 1)), 0.0]
        parts.append(_line(marks[model], frame, (across, up), (corners, heights)))
    return picture(name, f"How errors of {_and(counts)} are spread.", frame.bottom + _BELOW, parts)


def scatter_svg(name: str, points: Mapping[str, Places]) -> str:
    """Return predicted against true values, a dot for each sample, and the line on which they are the same.

    Args:
        name: An id that no other picture of the page has.
        points: For each model true and predicted values; the first is drawn above the others.
    """
    marks = looks(points)
    values = [value for places in points.values() for axis in places for value in axis]
    scale = AxisScale.of(values, log=False)
    parts, frame = _framed(marks, scale, scale, ("true", "predicted"))
    parts.append(f'<path class="axis" d="M{frame.left} {frame.bottom} L{frame.right} {frame.top}"/>')
    for model in reversed(list(points)):
        dots = "".join(
            f'<circle cx="{frame.x(scale.share(x) or 0.0):.1f}" cy="{frame.y(scale.share(y) or 0.0):.1f}" r="2.5"/>'
            for x, y in zip(*points[model], strict=True)
        )
        parts.append(f'<g class="dots {marks[model].colour}">{dots}</g>')
    return picture(name, f"Predicted against true values of {_and(points)}.", frame.bottom + _BELOW, parts)


def _framed(
    marks: Mapping[str, Look], across: AxisScale, up: AxisScale, titles: tuple[str, str]
) -> tuple[list[str], Frame]:
    """Return the legend and both axes, and the place of the plot."""
    parts, end = legend(
        marks, lambda name, x, y: f'<path class="line {marks[name].colour}"{marks[name].dash} d="M{x} {y} h20"/>'
    )
    frame = Frame(_LEFT, end + _ABOVE, WIDTH - _RIGHT, end + _ABOVE + _HEIGHT)
    return [*parts, *x_axis(frame, across, titles[0]), *y_axis(frame, up, titles[1])], frame


def _line(mark: Look, frame: Frame, scales: tuple[AxisScale, AxisScale], places: Places) -> str:
    drawn = " L".join(
        f"{frame.x(scales[0].share(x) or 0.0):.1f} {frame.y(scales[1].share(y) or 0.0):.1f}"
        for x, y in zip(*places, strict=True)
    )
    return f'<path class="line {mark.colour}"{mark.dash} d="M{drawn}"/>'


def _and(names: Mapping[str, object]) -> str:
    return ", ".join(names)
