"""The picture of a blame: branches of the graph side by side, flowing down into the fusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.gram.blame import FUSION
from edgekd.report.escape import escape
from edgekd.report.format import milliseconds, number, percent
from edgekd.report.svg.draw import RAMP_WIDTH, ramp_colour, ramp_legend, shorten, standalone_svg, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekd.gram.blame import Blame, RankedFigure, Suspect, WeightedLayer

#: In pixels: a box, the space between boxes, columns and around all, what stands above and below the graph.
_WIDTH, _HEIGHT, _ABOVE, _BESIDE, _MARGIN, _HEAD, _FOOT = 208, 62, 26, 44, 24, 100, 84
#: Characters that fit into a box.
_NAME = 28
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1c1c1c }
.name { font-family: ui-monospace, monospace; font-size: 11.5px }
.title { font-size: 15px; font-weight: 600 }
.quiet { fill: #595959 }
.box { stroke: #7a7a7a; stroke-width: 1 }
.float { fill: none; stroke: #7a7a7a; stroke-dasharray: 4 3 }
.edge { fill: none; stroke: #7a7a7a; stroke-width: 1.4 }
.arrow { fill: #7a7a7a }
.dark { fill: #ffffff }
.light { fill: #1c1c1c }
@media (prefers-color-scheme: dark) {
  text { fill: #e8e8e8 } .quiet { fill: #a8a8a8 } .dark { fill: #ffffff } .light { fill: #1c1c1c }
}
"""


@dataclass(frozen=True)
class _Box:
    layer: WeightedLayer
    x: float
    y: float

    @property
    def middle(self) -> float:
        return self.x + _WIDTH / 2

    @property
    def bottom(self) -> float:
        return self.y + _HEIGHT


def blame_svg(blame: Blame) -> str:
    """Return the picture: one box for each layer, darker the more of the output's loss its return to float takes."""
    boxes = _place(blame.layers)
    suspects = {suspect.name: suspect for suspect in blame.of("layer")}
    width = max(480.0, max(box.x + _WIDTH for box in boxes.values()) + _MARGIN)
    height = max(box.bottom for box in boxes.values()) + _FOOT
    parts = [
        *_heading(blame),
        *_branches(blame, boxes),
        *(line for box in boxes.values() for line in _edges(box, boxes)),
        *(line for box in boxes.values() for line in _box(box, suspects.get(box.layer.name), blame)),
        *_legend(height - _FOOT + 26),
    ]
    return standalone_svg((width, height), "Output loss that each layer's return to float takes away", _STYLE, parts)


def small(value: float | None) -> str:
    """Write a divergence, a drift, or a part of one, with five digits: it may be far below what the gate looks at."""
    return number(value if value is None else round(value, 5) + 0.0, ".5f")  # never "-0.00000"


def relieved_share(relief: RankedFigure) -> str:
    """Write a share of the output's loss with its standard error, e.g. "62 ± 3%"."""
    error = f" ± {number(100 * relief.error, '.0f')}" if relief.error is not None else ""
    return f"{number(100 * relief.value, 'z.0f')}{error}%"


def relieved_drift(suspect: Suspect, blame: Blame) -> float:
    """Return the drift that goes where only this part is float."""
    return blame.quantized.drift - suspect.undone.drift


def all_in_int8(blame: Blame) -> tuple[str, str]:
    """Say what the output loses where everything is quantized, beside the drift; and which decisions that changes."""
    effect = blame.quantized
    loss = f"All in INT8: divergence {small(effect.divergence)}, error {percent(effect.error)}"
    decided = f"{percent(effect.flips)} flips, " if effect.flips is not None else ""
    decided += f"metric {number(effect.metric)}, " if effect.metric is not None else ""
    return f"{loss}, drift {small(effect.drift)}", f"{decided}against float on {blame.samples} calibration samples"


def _place(layers: Sequence[WeightedLayer]) -> dict[str, _Box]:
    """Stack the layers of each branch in a column, and those of the fusion below the middle of all columns."""
    branches = [name for name in dict.fromkeys(layer.branch for layer in layers) if name != FUSION]
    rows = dict.fromkeys((*branches, FUSION), 0)
    rows[FUSION] = max((sum(layer.branch == name for layer in layers) for name in branches), default=0)
    columns = {name: float(index) for index, name in enumerate(branches)} | {FUSION: max(len(branches) - 1, 0) / 2}
    boxes = {}
    for layer in layers:
        x = _MARGIN + columns[layer.branch] * (_WIDTH + _BESIDE)
        y = _HEAD + rows[layer.branch] * (_HEIGHT + _ABOVE) + (_ABOVE if layer.branch == FUSION else 0)
        boxes[layer.name] = _Box(layer, x, y)
        rows[layer.branch] += 1
    return boxes


def _heading(blame: Blame) -> Iterator[str]:
    yield text(_MARGIN, 26, "Output loss that returning a layer to float takes away", kind="title")
    for line, content in enumerate(all_in_int8(blame)):
        yield text(_MARGIN, 46 + 16 * line, content, kind="quiet")


def _branches(blame: Blame, boxes: dict[str, _Box]) -> Iterator[str]:
    """Write each branch's name and relief above its first box."""
    relief = {suspect.name: relieved_share(suspect.relief) for suspect in blame.of("branch")}
    first: dict[str, _Box] = {}
    for box in boxes.values():
        first.setdefault(box.layer.branch, box)
    for name, box in first.items():
        heading = f"{shorten(name, 16)}: {relief.get(name, 'float')}"
        x, anchor = (box.x + _WIDTH + 10, "start") if name == FUSION else (box.middle, "middle")
        y = box.y + 14 if name == FUSION else box.y - 9
        yield text(x, y, heading, anchor)


def _edges(box: _Box, boxes: dict[str, _Box]) -> Iterator[str]:
    """Draw an arrow to each layer that follows: straight down, or around the boxes that lie between in one column."""
    for after in (boxes[name] for name in box.layer.following):
        if box.x == after.x and after.y - box.bottom > _ABOVE:
            start, end, out = box.y + _HEIGHT / 2, after.y + _HEIGHT / 2, box.x - 26
            path = f"M{box.x:.0f} {start:.0f} C{out:.0f} {start:.0f} {out:.0f} {end:.0f} {after.x - 7:.0f} {end:.0f}"
            head = f"M{after.x:.0f} {end:.0f} l-8 -4 v8 z"
        else:
            x1, x2, half = box.middle, after.middle, (box.bottom + after.y) / 2
            path = f"M{x1:.0f} {box.bottom:.0f} C{x1:.0f} {half:.0f} {x2:.0f} {half:.0f} {x2:.0f} {after.y - 7:.0f}"
            head = f"M{x2:.0f} {after.y:.0f} l-4 -8 h8 z"
        yield f'<path class="edge" d="{path}"/><path class="arrow" d="{head}"/>'


def _box(box: _Box, suspect: Suspect | None, blame: Blame) -> Iterator[str]:
    """Draw one layer with its figures; a layer that stays float has none."""
    style, ink, relief, about = 'class="float"', "", "float", box.layer.operator
    if suspect:
        share = max(0.0, suspect.relief.value)
        style, ink = f'class="box" fill="{ramp_colour(share)}"', "dark" if share > 0.8 else "light"
        relief = f"{relieved_share(suspect.relief)} · drift {small(relieved_drift(suspect, blame))}"
        about += f" · {milliseconds(suspect.latency.value_ms)} ms" if suspect.latency else ""
    yield f"<g><title>{escape(f'{box.layer.name} ({about}): {relief}')}</title>"
    yield f'<rect {style} x="{box.x:.0f}" y="{box.y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>'
    name = shorten(box.layer.name, _NAME)
    for kind, below, content in (("name", 18, name), ("figure", 36, relief), ("figure", 53, about)):
        yield text(box.middle, box.y + below, content, "middle", f"{kind} {ink}")
    yield "</g>"


def _legend(y: float) -> Iterator[str]:
    yield from ramp_legend(_MARGIN, y, "0", "100%")
    lines = (
        "of the output's loss, ± standard error",
        "drift: what goes of it",
        "ms: what float costs where it was timed",
    )
    for line, content in enumerate(lines):
        yield text(_MARGIN + RAMP_WIDTH + 16, y + 10 + 17 * line, content, kind="quiet")
