"""The picture of where the time goes: the layers' times of each engine, added up by modality branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.report.escape import escape
from edgekd.report.format import milliseconds
from edgekd.report.svg.draw import WIDTH, Frame, legend, picture, shorten, text, x_axis
from edgekd.report.svg.scale import AxisScale

if TYPE_CHECKING:
    from edgekd.runtime.measure.results import Profile

_ROW, _LABEL, _FIGURE, _BAR = 30.0, 84, 54, 18.0
#: Behind the modalities.
_LAST = ("fusion", "other")
_COLOURS = ("c1", "c0", "c2", "c3", "c4", "c5")
#: Narrower parts have their figure in the hover text alone.
_READABLE = 40.0


def branches_svg(name: str, profile: Profile) -> str | None:
    """Return a picture with a bar for each engine whose layers were timed; None where there is no such engine."""
    times = {engine.name: engine.branches_ms for engine in profile.engines if engine.branches_ms}
    if not times:
        return None
    branches = sorted({branch for parts in times.values() for branch in parts}, key=lambda name: (name in _LAST, name))
    colours = {branch: _COLOURS[index % len(_COLOURS)] for index, branch in enumerate(branches)}
    keys, top = legend(branches, lambda branch, x, y: _bar(colours[branch], x + 4, y - 7, 14, 14))
    frame = Frame(_LABEL, top, WIDTH - _FIGURE, top + _ROW * len(times))
    scale = AxisScale.of([0.0, *(sum(parts.values()) for parts in times.values())], log=False, zero=True)
    parts = [*keys, *x_axis(frame, scale, "ms of one inference, by the profiler")]
    for index, (engine, sums) in enumerate(times.items()):
        y, start = top + _ROW * index + (_ROW - _BAR) / 2, 0.0
        parts.append(text(_LABEL - 8, y + _BAR / 2 + 4, shorten(engine, 12), "end"))
        parts.append(text(WIDTH - 4, y + _BAR / 2 + 4, milliseconds(sum(sums.values())), "end", "mark"))
        for branch in filter(sums.__contains__, branches):
            ms = sums[branch]
            x, end = (frame.x(scale.share(value) or 0.0) for value in (start, start + ms))
            parts.append(f"<g><title>{escape(f'{engine}, {branch}: {milliseconds(ms)} ms')}</title>")
            parts.append(_bar(colours[branch], x, y, end - x, _BAR))
            if end - x >= _READABLE:
                parts.append(text((x + end) / 2, y + 13, milliseconds(ms), "middle", f"on {colours[branch]}"))
            parts.append("</g>")
            start += ms
    description = "Time by branch. " + "; ".join(
        f"{engine}: {', '.join(f'{branch} {milliseconds(ms)} ms' for branch, ms in sums.items())}"
        for engine, sums in times.items()
    )
    return picture(name, description, frame.bottom + 40, parts)


def _bar(colour: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="bar {colour}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}"/>'
