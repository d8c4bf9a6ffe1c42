"""The blame on the graph: branches side by side, flowing down into the fusion, as SVG that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from edgekd.gram.blame import FUSION
from edgekd.report.format import milliseconds, number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekd.gram.blame import Blame, Suspect, WeightedLayer

#: In pixels: a box, the space between boxes, columns and around all, what stands above and below the graph.
_WIDTH, _HEIGHT, _ABOVE, _BESIDE, _MARGIN, _HEAD, _FOOT = 208, 62, 26, 44, 24, 84, 66
#: Characters that fit into a box.
_NAME = 28
#: "YlOrBr" of ColorBrewer: one direction of lightness, so it reads with any colour vision, and in grey.
_RAMP = ((255, 255, 212), (254, 217, 142), (254, 153, 41), (217, 95, 14), (153, 52, 4))
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
    """Return the picture: a box for each layer, the darker the more of the drift its return to float relieves."""
    boxes = _place(blame.layers)
    suspects = {suspect.name: suspect for suspect in blame.of("layer")}
    width = max(480.0, max(box.x + _WIDTH for box in boxes.values()) + _MARGIN)
    height = max(box.bottom for box in boxes.values()) + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>Drift that each layer's return to float relieves</title><style>{_STYLE}</style>",
        *_heading(blame),
        *_branches(blame, boxes),
        *(line for box in boxes.values() for line in _edges(box, boxes)),
        *(line for box in boxes.values() for line in _box(box, suspects.get(box.layer.name), blame.quantized.drift)),
        *_legend(blame.quantized.drift, height - _FOOT + 26),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def shorten(name: str, length: int) -> str:
    """Return a name of at most ``length`` characters, without some of its middle where it is longer."""
    if len(name) <= length:
        return name
    tail = (length - 1) * 2 // 3
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


def drift_figure(value: float | None) -> str:
    """Write a drift or a part of one, which may be far below what the gate looks at."""
    return number(value if value is None else round(value, 5) + 0.0, ".5f")  # never "-0.00000"


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
    effect = blame.quantized
    flips = f", {number(effect.flips, '.1%')} flips" if effect.flips is not None else ""
    yield f'<text class="title" x="{_MARGIN}" y="26">Drift that returning a layer to float relieves</text>'
    told = f"All in INT8: drift {drift_figure(effect.drift)}{flips}; {blame.samples} calibration samples"
    yield f'<text class="quiet" x="{_MARGIN}" y="46">{told}</text>'


def _branches(blame: Blame, boxes: dict[str, _Box]) -> Iterator[str]:
    """Write each branch's name and relief above its first box."""
    relief = {suspect.name: suspect.relief.value for suspect in blame.of("branch")}
    first: dict[str, _Box] = {}
    for box in boxes.values():
        first.setdefault(box.layer.branch, box)
    for name, box in first.items():
        told = f"{escape(shorten(name, 16))}: {drift_figure(relief[name]) if name in relief else 'float'}"
        x, anchor = (box.x + _WIDTH + 10, "start") if name == FUSION else (box.middle, "middle")
        y = box.y + 14 if name == FUSION else box.y - 9
        yield f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{told}</text>'


def _edges(box: _Box, boxes: dict[str, _Box]) -> Iterator[str]:
    """Draw an arrow to each layer that follows: down into it, or around the boxes between in the same column."""
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


def _box(box: _Box, suspect: Suspect | None, most: float) -> Iterator[str]:
    """Draw one layer with its figures; one that is float has none."""
    style, ink, told, about = 'class="float"', "", "float", box.layer.operator
    if suspect:
        share = max(0.0, suspect.relief.value / most) if most > 0 else 0.0
        style, ink = f'class="box" fill="{colour(share)}"', "dark" if share > 0.8 else "light"
        told = drift_figure(suspect.relief.value)
        told += f" ± {drift_figure(suspect.relief.error)}" if suspect.relief.error is not None else ""
        about += f" · {milliseconds(suspect.latency_ms)} ms" if suspect.latency_ms is not None else ""
    name = escape(shorten(box.layer.name, _NAME))
    yield f"<g><title>{escape(f'{box.layer.name} ({about}): {told}')}</title>"
    yield f'<rect {style} x="{box.x:.0f}" y="{box.y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>'
    for kind, below, text in (("name", 18, name), ("figure", 36, told), ("figure", 53, about)):
        at = f'x="{box.middle:.0f}" y="{box.y + below:.0f}"'
        yield f'<text class="{kind} {ink}" {at} text-anchor="middle">{text}</text>'
    yield "</g>"


def _legend(most: float, y: float) -> Iterator[str]:
    steps = 60
    for index in range(steps):
        fill = colour(index / (steps - 1))
        yield f'<rect x="{_MARGIN + index * 3}" y="{y:.0f}" width="3.5" height="12" fill="{fill}"/>'
    yield f'<text x="{_MARGIN}" y="{y + 28:.0f}">0</text>'
    yield f'<text x="{_MARGIN + steps * 3}" y="{y + 28:.0f}" text-anchor="end">{drift_figure(most)}</text>'
    x = _MARGIN + steps * 3 + 16
    yield f'<text class="quiet" x="{x}" y="{y + 10:.0f}">drift relieved ± its standard error;</text>'
    yield f'<text class="quiet" x="{x}" y="{y + 27:.0f}">ms: what float costs where it was timed</text>'


def colour(share: float) -> str:
    """Return the ramp's colour at 0 to 1."""
    place = min(share, 1.0) * (len(_RAMP) - 1)
    index = min(int(place), len(_RAMP) - 2)
    mixed = (a + (b - a) * (place - index) for a, b in zip(_RAMP[index], _RAMP[index + 1], strict=True))
    return "#" + "".join(f"{round(value):02x}" for value in mixed)
