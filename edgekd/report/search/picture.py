"""A study as a picture: metric against latency, the drift in colour, as SVG that needs nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from edgekd.report.blame.picture import colour
from edgekd.report.format import factor, milliseconds, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.report.search.tables import SearchResult, SearchTrial, TrialFigures

#: In pixels: the picture, and what is left of, right of, above and below the plot.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _HEAD, _FOOT = 760, 520, 76, 28, 74, 104
#: Radius of a trial on the front, and of another.
_LARGE, _SMALL = 8.0, 4.5
#: Steps of the legend, and its width in pixels.
_STEPS, _LEGEND = 60, 180
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1c1c1c }
.title { font-size: 15px; font-weight: 600 }
.quiet { fill: #595959 }
.grid { stroke: #b4b4b4; stroke-width: 0.6 }
.number { font-size: 11px; font-weight: 600; paint-order: stroke; stroke: #ffffff; stroke-width: 3 }
.trial { stroke: #8a8a8a; stroke-width: 0.8 }
.front { stroke: #1c1c1c; stroke-width: 1.6 }
.own { fill: none; stroke: #1f6fb4; stroke-width: 2.4 }
@media (prefers-color-scheme: dark) {
  text { fill: #e8e8e8 } .quiet { fill: #a8a8a8 } .grid { stroke: #5a5a5a } .front { stroke: #ffffff }
  .own { stroke: #6db3f2 } .number { stroke: #1c1c1c }
}
"""


@dataclass(frozen=True)
class _Axis:
    """From values to pixels.

    Attributes:
        low: the value at ``start``.
        high: the value at ``end``.
        start: in pixels.
        end: in pixels.
        step: between ticks.
    """

    low: float
    high: float
    start: float
    end: float
    step: float

    @classmethod
    def over(cls, values: list[float], start: float, end: float) -> _Axis:
        """Return an axis that shows all values with some room around them, from tick to tick."""
        low, high = min(values), max(values)
        room = (high - low or abs(high) or 1.0) * 0.06
        step = _nice((high - low + 2 * room) / 5)
        return cls(math.floor((low - room) / step) * step, math.ceil((high + room) / step) * step, start, end, step)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield each tick's place and what is written at it."""
        digits = max(0, -math.floor(math.log10(self.step)))
        for index in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + index * self.step
            yield self(value), f"{value + 0.0:.{digits}f}"


def _nice(step: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return power * next(times for times in (1, 2, 5, 10) if step <= times * power * (1 + 1e-9))


def search_svg(found: SearchResult) -> str:
    """Return the picture: a dot for each trial, large and numbered on the Pareto front, a ring around the recipe's."""
    known = [(trial, trial.appraisal) for trial in found.done if trial.appraisal]
    across = _Axis.over([figures.latency for _, figures in known], _LEFT, _WIDTH - _RIGHT)
    up = _Axis.over([figures.metric for _, figures in known], _HEIGHT - _FOOT, _HEAD)
    drifts = [figures.drift for _, figures in known]
    front = found.front
    known.sort(key=lambda pair: pair[0] in front)  # the front on top
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>Trials of the search {escape(found.study)}</title><style>{_STYLE}</style>",
        *_heading(found),
        *_grid(found, across, up),
        *(
            line
            for trial, figures in known
            for line in _dot(trial, figures, trial in front, (across(figures.latency), up(figures.metric)), drifts)
        ),
        *_legend(drifts),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _heading(found: SearchResult) -> Iterator[str]:
    yield f'<text class="title" x="24" y="26">{escape(found.metric)} against latency: {escape(found.study)}</text>'
    failed = f", {len(found.failed)} failed" if found.failed else ""
    told = f"{len(found.done)} trials{failed}; validation split; {len(found.front)} that no other beats in all three"
    yield f'<text class="quiet" x="24" y="46">{told}</text>'


def _grid(found: SearchResult, across: _Axis, up: _Axis) -> Iterator[str]:
    bottom, right = _HEIGHT - _FOOT, _WIDTH - _RIGHT
    for x, told in across.ticks():
        yield f'<path class="grid" d="M{x:.1f} {_HEAD} V{bottom}"/>'
        yield f'<text class="quiet" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{told}</text>'
    for y, told in up.ticks():
        yield f'<path class="grid" d="M{_LEFT} {y:.1f} H{right}"/>'
        yield f'<text class="quiet" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{told}</text>'
    what = "latency: p50 as a share of the recipe's own student"
    yield f'<text x="{(_LEFT + right) / 2:.0f}" y="{bottom + 38}" text-anchor="middle">{what}</text>'
    middle = (_HEAD + bottom) / 2
    yield (
        f'<text x="22" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 22 {middle:.0f})">'
        f"{escape(found.metric)} ({'higher' if found.higher_is_better else 'lower'} is better)</text>"
    )


def _dot(
    trial: SearchTrial, figures: TrialFigures, best: bool, at: tuple[float, float], drifts: list[float]
) -> Iterator[str]:
    low, high = min(drifts), max(drifts)
    fill = colour((figures.drift - low) / (high - low) if high > low else 0.0)
    radius, (x, y) = _LARGE if best else _SMALL, at
    told = (
        f"trial {trial.number}: {number(figures.metric)}, {factor(figures.latency)} "
        f"({milliseconds(figures.p50_ms)} ms), drift {number(figures.drift)}; {' '.join(trial.settings)}"
    )
    yield f"<g><title>{escape(told)}</title>"
    style = "front" if best else "trial"
    yield f'<circle class="{style}" fill="{fill}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
    if trial.own:
        yield f'<circle class="own" cx="{x:.1f}" cy="{y:.1f}" r="{radius + 4}"/>'
    if best or trial.own:
        beside = x + radius + (7 if trial.own else 3)
        yield f'<text class="number" x="{beside:.1f}" y="{y - radius + 2:.1f}">{trial.number}</text>'
    yield "</g>"


def _legend(drifts: list[float]) -> Iterator[str]:
    y = _HEIGHT - 44
    for index in range(_STEPS):
        x, fill = 24 + index * _LEGEND / _STEPS, colour(index / (_STEPS - 1))
        yield f'<rect x="{x:.1f}" y="{y}" width="{_LEGEND / _STEPS + 0.5}" height="12" fill="{fill}"/>'
    yield f'<text x="24" y="{y + 28}">{number(min(drifts))}</text>'
    yield f'<text x="{24 + _LEGEND}" y="{y + 28}" text-anchor="end">{number(max(drifts))}</text>'
    x = 24 + _LEGEND + 18
    yield f'<text class="quiet" x="{x}" y="{y + 10}">drift of the Gram from the teacher\'s</text>'
    yield f'<text class="quiet" x="{x}" y="{y + 27}">large dots: the Pareto front of metric, latency and drift</text>'
    yield f'<circle class="own" cx="{x + 352}" cy="{y + 23}" r="7"/>'
    yield f'<text class="quiet" x="{x + 366}" y="{y + 27}">the recipe as it stands</text>'
