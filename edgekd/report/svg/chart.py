"""Lines over epochs as SVG that needs nothing else: scales, ticks, gaps, a legend, and a second axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from edgekd.report.blame.picture import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: In units of the picture, which is read at 400 pixels as well: its width, a panel's plot, and what is around that.
WIDTH, _HEIGHT, _LEFT, _RIGHT, _TITLE, _GAP, _BELOW = 560, 180, 84, 84, 36, 4, 66
_ROW, _KEY, _CHARACTER = 21, 30, 7.6
#: Characters that fit beside an axis, and into a row of the legend.
_AXIS_NAME, _LEGEND_NAME = 22, 56
#: From here on the largest is so many times the smallest that small differences would not be seen on even steps.
_LOG_RATIO = 20
#: Less of an axis than this share of its largest figure would show rounding.
_NARROWEST = 0.04
_STEPS = (1, 2, 5, 10)
#: Ticks on an axis, and digits of one, at most.
_TICKS, _DIGITS = 7, 6

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
    """One figure by epoch.

    Attributes:
        name: in the legend.
        values: one an epoch; what is no finite number is a gap.
        colour: one of :data:`COLOURS`.
        dash: one of :data:`DASHES`.
        right: whether it is read on the right axis.
    """

    name: str
    values: Sequence[float]
    colour: str
    dash: str = ""
    right: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines over the same epochs.

    Attributes:
        title: above it.
        left: title of the left axis, with its unit.
        lines: what is drawn.
        right: title of the right axis, where a line is read there.
        log: whether the left axis may be logarithmic; it is where the figures want it. The right one begins at 0.
    """

    title: str
    left: str
    lines: Sequence[Curve]
    right: str = ""
    log: bool = True


@dataclass(frozen=True)
class AxisScale:
    """From figures to shares of an axis.

    Attributes:
        low: its lower end.
        high: its upper end.
        step: between two ticks; None where it is logarithmic.
    """

    low: float
    high: float
    step: float | None

    @classmethod
    def of(cls, values: Sequence[float], log: bool = True, zero: bool = False) -> AxisScale:
        """Return the scale that shows all values, between round ends; on a logarithmic one those above 0.

        Args:
            values: figures, those that are no finite numbers among them.
            log: whether it may be logarithmic: it is where the values span more than a factor of 20.
            zero: whether an even one begins at 0 or below.
        """
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        positive = [value for value in finite if value > 0]
        if log and positive and min(finite) >= 0 and max(positive) / min(positive) > _LOG_RATIO:
            return cls(_round(min(positive), up=False), _round(max(positive), up=True), None)
        low, high = min(finite), max(finite)
        if zero or 0 < low < 0.4 * high:
            low = min(low, 0.0)
        if low == high == 0:
            high = 1.0
        lacking = _NARROWEST * max(abs(low), abs(high)) - (high - low)
        if lacking > 0:
            low, high = low - lacking / 2, high + lacking / 2
        step = _step(high - low)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step)

    def share(self, value: float) -> float | None:
        """Return where a value is, 0 at the low end and 1 at the high one; None where the axis has no place for it."""
        if not math.isfinite(value) or (self.step is None and value <= 0):
            return None
        if self.step is None:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return the round values to mark."""
        if self.step is not None:
            count = round((self.high - self.low) / self.step)
            return [self.low + index * self.step for index in range(count + 1)]
        first, last = math.floor(math.log10(self.low) + 1e-9), math.ceil(math.log10(self.high) - 1e-9)
        for factors, every in (((1, 2, 5), 1), ((1, 3), 1), *(((1,), every) for every in range(1, last - first + 1))):
            powers = range(first, last + 1, every)
            marks = [factor * 10.0**power for power in powers for factor in factors]
            inside = [mark for mark in marks if self.low * (1 - 1e-9) <= mark <= self.high * (1 + 1e-9)]
            if len(inside) <= _TICKS:
                break
        return inside

    def label(self, tick: float) -> str:
        """Write a tick, all of one axis with as many digits."""
        if self.step is None:
            return format(tick, ".6g")
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return format(round(tick, digits) + 0.0, f".{digits}f" if digits < _DIGITS else ".2e")


def _step(extent: float) -> float:
    """Return a round step of which four or five fill an extent."""
    power = 10.0 ** math.floor(math.log10(extent / 4))
    return next(factor * power for factor in _STEPS if factor * power >= extent / 5 * (1 - 1e-9))


def _round(value: float, up: bool) -> float:
    """Return the nearest 1, 2 or 5 of a power of ten above or below a value."""
    power = 10.0 ** math.floor(math.log10(value) + 1e-12)
    marks = [factor * power for factor in _STEPS]
    if up:
        return next(mark for mark in marks if mark >= value * (1 - 1e-9))
    return [mark for mark in marks if mark <= value * (1 + 1e-9)][-1]


def chart_svg(head: str, panels: Sequence[Panel]) -> str:
    """Return one picture of panels below each other, on white, so that it reads on any page."""
    parts, y = [], 40.0
    for panel in panels:
        parts += list(_panel(panel, y))
        y += _height(panel)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y:.0f}" viewBox="0 0 {WIDTH} {y:.0f}" '
        'role="img">',
        f"<title>{escape(head)}</title><style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{y:.0f}" fill="#ffffff"/>',
        f'<text class="head" x="16" y="26">{escape(head)}</text>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _height(panel: Panel) -> float:
    return _TITLE + _ROW * len(_legend_rows(panel)) + _GAP + _HEIGHT + _BELOW


def _panel(panel: Panel, y: float) -> Iterator[str]:
    rows = _legend_rows(panel)
    yield f'<text class="title" x="16" y="{y + 18:.0f}">{escape(panel.title)}</text>'
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
    """Return a line's name, which says on which axis it is, and that there is nothing of it to draw."""
    drawn = any(scale.share(value) is not None for value in line.values)
    return f"{shorten(line.name, _LEGEND_NAME)}{' (right)' if line.right else ''}{'' if drawn else ' (none)'}"


def _legend(row: Sequence[tuple[Curve, str]], y: float) -> Iterator[str]:
    x = 16.0
    for line, name in row:
        yield f'<path class="line" {_stroke(line)} d="M{x:.0f} {y:.0f} h24"/>'
        yield f'<text x="{x + _KEY:.0f}" y="{y + 5:.0f}">{escape(name)}</text>'
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
        at = f'x="{edge + away}" y="{y + 4.5:.1f}" text-anchor="{anchor}"'
        yield f'<text class="tick" {at}>{scale.label(tick)}</text>'
    yield f'<path class="axis" d="M{edge} {top:.0f} v{_HEIGHT}"/>'
    x, y, turn = (WIDTH - 14, top + _HEIGHT / 2, 90) if right else (20, top + _HEIGHT / 2, -90)
    told = f"{shorten(title, _AXIS_NAME)}{', log' if scale.step is None else ''}"
    yield (
        f'<text x="{x}" y="{y:.0f}" text-anchor="middle" transform="rotate({turn} {x} {y:.0f})">{escape(told)}</text>'
    )


def _epochs(count: int, top: float) -> Iterator[str]:
    bottom = top + _HEIGHT
    yield f'<path class="axis" d="M{_LEFT} {bottom:.0f} H{WIDTH - _RIGHT}"/>'
    step = max(1, math.ceil(_step(max(count - 1, 1))))
    marks = [1, *range(step, count + 1, step)] if step > 1 else range(1, count + 1)
    for epoch in marks:
        x = _across(epoch - 1, count)
        yield f'<path class="axis" d="M{x:.1f} {bottom:.0f} v5"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 20:.0f}" text-anchor="middle">{epoch}</text>'
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    yield f'<text x="{middle:.0f}" y="{bottom + 41:.0f}" text-anchor="middle">epoch</text>'


def _across(index: int, count: int) -> float:
    share = index / (count - 1) if count > 1 else 0.5
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _curve(line: Curve, scale: AxisScale, epochs: int, top: float) -> Iterator[str]:
    """Draw a line with its gaps; an epoch that has none beside it is a dot."""
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
