"""The picture of a study: metric against latency for each trial, with the drift in colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.report.escape import escape
from edgekd.report.format import factor, milliseconds, number
from edgekd.report.svg.draw import RAMP_WIDTH, Frame, ramp_colour, ramp_legend, standalone_svg, text, turned_text
from edgekd.report.svg.scale import AxisScale

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.report.search.tables import SearchResult, SearchTrial, TrialFigures

#: In pixels: the picture, and what is left of, right of, above and below the plot.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _HEAD, _FOOT = 760, 520, 76, 28, 74, 104
#: Radius of a trial on the front, and of another.
_LARGE, _SMALL = 8.0, 4.5
_FRAME = Frame(_LEFT, _HEAD, _WIDTH - _RIGHT, _HEIGHT - _FOOT)
#: Room around the trials, as a share of what they span.
_ROOM = 0.06
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1c1c1c }
.title { font-size: 15px; font-weight: 600 }
.quiet { fill: #595959 }
.grid { stroke: #b4b4b4; stroke-width: 0.6 }
.number { font-size: 11px; font-weight: 600; paint-order: stroke; stroke: #ffffff; stroke-width: 3 }
.trial { stroke: #8a8a8a; stroke-width: 0.8 }
.front { stroke: #1c1c1c; stroke-width: 1.6 }
.rejected { fill: none; stroke: #b3261e; stroke-width: 1.4; stroke-dasharray: 2.5 2 }
.own { fill: none; stroke: #1f6fb4; stroke-width: 2.4 }
@media (prefers-color-scheme: dark) {
  text { fill: #e8e8e8 } .quiet { fill: #a8a8a8 } .grid { stroke: #5a5a5a } .front { stroke: #ffffff }
  .own { stroke: #6db3f2 } .rejected { stroke: #f2877f } .number { stroke: #1c1c1c }
}
"""


def search_svg(result: SearchResult) -> str:
    """Return the picture: a dot for each trial, large and numbered on the Pareto front, a ring around the recipe's.

    A trial that the gate rejects is hollow.
    """
    known = [(trial, trial.appraisal) for trial in result.done if trial.appraisal]
    across = _scale([figures.latency for _, figures in known])
    up = _scale([figures.metric for _, figures in known])
    drifts = [figures.drift for _, figures in known]
    front = result.front
    known.sort(key=lambda pair: pair[0] in front)  # the front on top
    parts = [*_heading(result), *_grid(result, across, up)]
    for trial, figures in known:
        x, y = _FRAME.x(across.share(figures.latency) or 0.0), _FRAME.y(up.share(figures.metric) or 0.0)
        parts += _dot(trial, figures, trial in front, (x, y), drifts)
    parts += _legend(drifts, bool(result.rejected))
    return standalone_svg((_WIDTH, _HEIGHT), f"Trials of the search {result.study}", _STYLE, parts)


def _scale(values: list[float]) -> AxisScale:
    """Return a scale that shows all values with some room around them."""
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * _ROOM
    return AxisScale.of([low - room, high + room], log=False)


def _heading(result: SearchResult) -> Iterator[str]:
    yield text(24, 26, f"{result.metric} against latency: {result.study}", kind="title")
    failed = f", {len(result.failed)} failed" if result.failed else ""
    rejected = f", {len(result.rejected)} rejected by the gate" if result.rejected else ""
    best = f"{len(result.front)} that no other beats in all three"
    counts = f"{len(result.done)} trials{failed}{rejected}; validation split; {best}"
    yield text(24, 46, counts, kind="quiet")


def _grid(result: SearchResult, across: AxisScale, up: AxisScale) -> Iterator[str]:
    for tick in across.ticks():
        x = _FRAME.x(across.share(tick) or 0.0)
        yield f'<path class="grid" d="M{x:.1f} {_FRAME.top:.0f} V{_FRAME.bottom:.0f}"/>'
        yield text(x, _FRAME.bottom + 18, across.label(tick), "middle", "quiet")
    for tick in up.ticks():
        y = _FRAME.y(up.share(tick) or 0.0)
        yield f'<path class="grid" d="M{_FRAME.left:.0f} {y:.1f} H{_FRAME.right:.0f}"/>'
        yield text(_FRAME.left - 8, y + 4, up.label(tick), "end", "quiet")
    latency = "latency: p50 as a share of the recipe's own student"
    yield text((_FRAME.left + _FRAME.right) / 2, _FRAME.bottom + 38, latency, "middle")
    better = "higher" if result.higher_is_better else "lower"
    yield turned_text(22, (_FRAME.top + _FRAME.bottom) / 2, -90, f"{result.metric} ({better} is better)")


def _dot(
    trial: SearchTrial, figures: TrialFigures, best: bool, at: tuple[float, float], drifts: list[float]
) -> Iterator[str]:
    low, high = min(drifts), max(drifts)
    fill = ramp_colour((figures.drift - low) / (high - low) if high > low else 0.0)
    radius, (x, y) = _LARGE if best else _SMALL, at
    description = (
        f"trial {trial.number}: {number(figures.metric)}, {factor(figures.latency)} "
        f"({milliseconds(figures.p50_ms)} ms), drift {number(figures.drift)}; "
        f"{'; '.join((*(['rejected'] if trial.rejected else []), *figures.reasons, ' '.join(trial.settings)))}"
    )
    yield f"<g><title>{escape(description)}</title>"
    style = "rejected" if trial.rejected else "front" if best else "trial"
    yield f'<circle class="{style}" fill="{fill}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
    if trial.own:
        yield f'<circle class="own" cx="{x:.1f}" cy="{y:.1f}" r="{radius + 4}"/>'
    if best or trial.own:
        beside = x + radius + (7 if trial.own else 3)
        yield text(beside, y - radius + 2, str(trial.number), kind="number")
    yield "</g>"


def _legend(drifts: list[float], rejected: bool) -> Iterator[str]:
    y = _HEIGHT - 44
    yield from ramp_legend(24, y, number(min(drifts)), number(max(drifts)))
    x = 24 + RAMP_WIDTH + 18
    yield text(x, y + 10, "drift of the Gram from the teacher's", kind="quiet")
    yield text(x, y + 27, "large dots: the Pareto front of metric, latency and drift", kind="quiet")
    yield f'<circle class="own" cx="{x + 352}" cy="{y + 23}" r="7"/>'
    yield text(x + 366, y + 27, "the recipe as it stands", kind="quiet")
    if rejected:
        yield f'<circle class="rejected" cx="{x + 352}" cy="{y + 6}" r="{_SMALL}"/>'
        yield text(x + 366, y + 10, "rejected by the gate", kind="quiet")
