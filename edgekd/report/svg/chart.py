"""Panels of curves over epochs: gaps, a legend, and a second axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.report.svg.draw import figure_svg, shorten, standalone_svg, text, turned_text
from edgekd.report.svg.scale import AxisScale, round_step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: In units of the picture, which is read at 400 pixels as well: its width, a panel's plot, and what is around that.
WIDTH, _HEIGHT, _LEFT, _RIGHT, _TITLE, _GAP, _BELOW = 560, 180, 84, 84, 36, 4, 66
_ROW, _KEY, _CHARACTER = 21, 30, 7.6
#: Characters that fit beside an axis, and into a row of the legend.
_AXIS_NAME, _LEGEND_NAME = 22, 56
#: Okabe and Ito's colours, which differ to those who are colour-blind too; but for yellow, too pale on white.
COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
#: The first for the first colours, another for each time that the colours begin again.
DASHES = ("", "7 4", "2 3", "9 3 2 3")

STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1c1c1c }
.title { font-size: 15px; font-weight: 600 }
.head { font-size: 17px; font-weight: 600 }
.tick { font-size: 13px; fill: #4d4d4d }
.grid { stroke: #e2e2e2 }
.axis { stroke: #7a7a7a; fill: none }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round }
"""


@dataclass(frozen=True)
class Curve:
    """The curve of one figure by epoch.

    Attributes:
        name: Its name in the legend.
        values: One value for each epoch; a value that is not finite is a gap.
        colour: One of :data:`COLOURS`.
        dash: One of :data:`DASHES`.
        right: Whether the curve is read on the right axis.
    """

    name: str
    values: Sequence[float]
    colour: str
    dash: str = ""
    right: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves over the same epochs.

    Attributes:
        title: Title above the panel.
        left: Title of the left axis, with its unit.
        lines: The curves.
        right: Title of the right axis, where a curve is read there.
        log: Whether the left axis may be logarithmic; the right one has even steps from 0.
    """

    title: str
    left: str
    lines: Sequence[Curve]
    right: str = ""
    log: bool = True


def chart_svg(head: str, panels: Sequence[Panel]) -> str:
    """Return panels below each other as a picture that stands alone, on white, so that it reads on any page."""
    parts, height = _stack(panels, top=40.0)
    white = f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>'
    title = text(16, 26, head, kind="head")
    return standalone_svg((WIDTH, height), head, STYLE, [white, title, *parts])


def chart_figure(name: str, head: str, panels: Sequence[Panel]) -> str:
    """Return the same panels as a picture of a page, whose style sheet draws it.

    Args:
        name: An id that no other picture of the page has.
        head: What the picture shows, for those who do not see it.
        panels: The panels.
    """
    parts, height = _stack(panels, top=0.0)
    return figure_svg(name, head, (WIDTH, height), parts, kind="chart")


def _stack(panels: Sequence[Panel], top: float) -> tuple[list[str], float]:
    """Draw panels below each other; return the parts and where the last ends."""
    parts: list[str] = []
    for panel in panels:
        parts += _panel(panel, top)
        top += _height(panel)
    return parts, top


def _height(panel: Panel) -> float:
    return _TITLE + _ROW * len(_legend_rows(panel)) + _GAP + _HEIGHT + _BELOW


def _panel(panel: Panel, y: float) -> Iterator[str]:
    rows = _legend_rows(panel)
    yield text(16, y + 18, panel.title, kind="title")
    for number, row in enumerate(rows):
        yield from _legend(row, y + _TITLE + _ROW * number)
    top = y + _TITLE + _ROW * len(rows) + _GAP
    epochs = max(len(line.values) for line in panel.lines)
    for right in (False, True):
        lines = [line for line in panel.lines if line.right == right]
        if lines:
            scale = _scale(panel, right)
            yield from _axis(scale, panel.right if right else panel.left, top, right)
            for line in lines:
                yield from _curve(line, scale, epochs, top)
    yield from _epochs(epochs, top)


def _scale(panel: Panel, right: bool) -> AxisScale:
    values = [value for line in panel.lines if line.right == right for value in line.values]
    return AxisScale.of(values, panel.log and not right, zero=right)


def _legend_rows(panel: Panel) -> list[list[tuple[Curve, str]]]:
    """Divide the lines and their names among rows that fit the picture's width."""
    rows: list[list[tuple[Curve, str]]] = []
    used = float(WIDTH)
    for line in panel.lines:
        name = _legend_name(line, _scale(panel, line.right))
        width = _legend_width(name)
        if used + width > WIDTH - 16:
            rows.append([])
            used = 16.0
        rows[-1].append((line, name))
        used += width
    return rows


def _legend_width(name: str) -> float:
    return _KEY + _CHARACTER * len(name) + 16


def _legend_name(line: Curve, scale: AxisScale) -> str:
    """Return a line's name with its axis where that is the right one, and with "(none)" where nothing is drawn."""
    drawn = any(scale.share(value) is not None for value in line.values)
    return f"{shorten(line.name, _LEGEND_NAME)}{' (right)' if line.right else ''}{'' if drawn else ' (none)'}"


def _legend(row: Sequence[tuple[Curve, str]], y: float) -> Iterator[str]:
    x = 16.0
    for line, name in row:
        yield f'<path class="line" {_stroke(line)} d="M{x:.0f} {y:.0f} h24"/>'
        yield text(x + _KEY, y + 5, name)
        x += _legend_width(name)


def _stroke(line: Curve) -> str:
    return f'stroke="{line.colour}"' + (f' stroke-dasharray="{line.dash}"' if line.dash else "")


def _axis(scale: AxisScale, title: str, top: float, right: bool) -> Iterator[str]:
    """Draw an upright axis with its title; only the left one has a grid."""
    edge = WIDTH - _RIGHT if right else _LEFT
    anchor, away = ("start", 7) if right else ("end", -7)
    for tick in scale.ticks():
        y = top + _HEIGHT * (1 - (scale.share(tick) or 0.0))
        if not right:
            yield f'<path class="grid" d="M{_LEFT} {y:.1f} H{WIDTH - _RIGHT}"/>'
        yield text(edge + away, y + 4.5, scale.label(tick), anchor, "tick")
    yield f'<path class="axis" d="M{edge} {top:.0f} v{_HEIGHT}"/>'
    x, y, turn = (WIDTH - 14, top + _HEIGHT / 2, 90) if right else (20, top + _HEIGHT / 2, -90)
    yield turned_text(x, y, turn, f"{shorten(title, _AXIS_NAME)}{', log' if scale.step is None else ''}")


def _epochs(count: int, top: float) -> Iterator[str]:
    bottom = top + _HEIGHT
    yield f'<path class="axis" d="M{_LEFT} {bottom:.0f} H{WIDTH - _RIGHT}"/>'
    step = max(1, math.ceil(round_step(max(count - 1, 1))))
    marks = [1, *range(step, count + 1, step)] if step > 1 else range(1, count + 1)
    for epoch in marks:
        x = _across(epoch - 1, count)
        yield f'<path class="axis" d="M{x:.1f} {bottom:.0f} v5"/>'
        yield text(x, bottom + 20, str(epoch), "middle", "tick")
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    yield text(middle, bottom + 41, "epoch", "middle")


def _across(index: int, count: int) -> float:
    share = index / (count - 1) if count > 1 else 0.5
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _curve(line: Curve, scale: AxisScale, epochs: int, top: float) -> Iterator[str]:
    """Draw a line with its gaps; an epoch without a neighbour is a dot."""
    run: list[str] = []
    for index, value in enumerate((*line.values, math.nan)):
        share = scale.share(value)
        if share is not None:
            run.append(f"{_across(index, epochs):.1f} {top + _HEIGHT * (1 - share):.1f}")
            continue
        if len(run) == 1:
            x, y = run[0].split()
            yield f'<circle cx="{x}" cy="{y}" r="3.5" fill="{line.colour}"/>'
        elif run:
            yield f'<path class="line" {_stroke(line)} d="M{" L".join(run)}"/>'
        run = []
