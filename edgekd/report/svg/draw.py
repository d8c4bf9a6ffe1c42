"""What all pictures share: a plot's frame, axes and legend, colours, and the SVG element around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.report.escape import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from edgekd.report.svg.scale import AxisScale

#: In units of a picture, which a phone shows at about one pixel each.
WIDTH = 380

#: "YlOrBr" of ColorBrewer: one direction of lightness, so it reads with any colour vision, and in grey.
_RAMP = ((255, 255, 212), (254, 217, 142), (254, 153, 41), (217, 95, 14), (153, 52, 4))
_RAMP_STEPS, RAMP_WIDTH = 60, 180.0

#: Blue, white and vermilion for -1, 0 and 1, which differ to those who are colour-blind too; and the id of the gradient
#: of these colours, which all pictures of a page share.
DIVERGING, GRADIENT = ((0, 90, 150), (250, 250, 250), (190, 75, 0)), "cosines"

#: Classes of the style sheet; an engine has the same in every picture.
_KNOWN = {"teacher": "c2", "student": "c1", "float": "c1", "shipped": "c0", "device": "c0", "engine": "c0"}
_OTHERS = ("c3", "c4", "c5")
#: Dashes, so that no two lines differ by colour alone.
_DASHES = {"c0": "", "c1": "6 3", "c2": "2 3", "c3": "9 3 2 3", "c4": "4 2 1 2", "c5": "1 4"}


@dataclass(frozen=True)
class Look:
    """How a series is drawn.

    Attributes:
        colour: Its class in the style sheet.
    """

    colour: str

    @property
    def dash(self) -> str:
        """The attribute that dashes its line; "" where it is whole."""
        return f' stroke-dasharray="{_DASHES[self.colour]}"' if _DASHES[self.colour] else ""


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return how each series is drawn, by name."""
    found, others = {}, 0
    for name in names:
        found[name] = Look(_KNOWN.get(name) or _OTHERS[others % len(_OTHERS)])
        others += name not in _KNOWN
    return found


@dataclass(frozen=True)
class Frame:
    """The place of a plot in its picture, in the picture's units."""

    left: float
    top: float
    right: float
    bottom: float

    def x(self, share: float) -> float:
        """Return the place of a share of the horizontal axis, in units of the picture."""
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        """Return the place of a share of the upright axis, in units of the picture."""
        return self.bottom - share * (self.bottom - self.top)


def picture(name: str, description: str, height: float, parts: Iterable[str]) -> str:
    """Return a picture of a page that is :data:`WIDTH` wide; see :func:`figure_svg`."""
    return figure_svg(name, description, (WIDTH, height), parts)


def figure_svg(name: str, description: str, size: tuple[float, float], parts: Iterable[str], kind: str = "") -> str:
    """Return an SVG element for a page, whose style sheet draws it light or dark.

    Args:
        name: An id that no other picture of the page has.
        description: What the picture shows, for those who do not see it.
        size: Width and height of the picture in its own units.
        parts: The content of the element.
        kind: The element's class; "" for none.
    """
    width, height = size
    style = f' class="{kind}"' if kind else ""
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}"{style} role="img" aria-labelledby="{name}">'
    return "\n".join([head, f'<title id="{name}">{escape(description)}</title>', *parts, "</svg>"])


def standalone_svg(size: tuple[float, float], title: str, style: str, parts: Iterable[str]) -> str:
    """Return an SVG file that needs nothing else.

    Args:
        size: Width and height of the picture in pixels.
        title: What the picture shows.
        style: Its style sheet.
        parts: The content of the picture.
    """
    width, height = size
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>{escape(title)}</title><style>{style}</style>",
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    """Return a line of text."""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(content)}</text>'


def turned_text(x: float, y: float, degrees: float, content: str) -> str:
    """Return a line of text that is turned around its middle, for an upright axis."""
    turn = f'transform="rotate({degrees:g} {x:.1f} {y:.1f})"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" {turn}>{escape(content)}</text>'


def shorten(name: str, length: int) -> str:
    """Return a name of at most ``length`` characters, without some of its middle where it is longer."""
    if len(name) <= length:
        return name
    tail = (length - 1) * 2 // 3
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


def ramp_colour(share: float) -> str:
    """Return the colour of the ramp from light to dark at a share from 0 to 1."""
    place = min(share, 1.0) * (len(_RAMP) - 1)
    index = min(int(place), len(_RAMP) - 2)
    mixed = (a + (b - a) * (place - index) for a, b in zip(_RAMP[index], _RAMP[index + 1], strict=True))
    return "#" + "".join(f"{round(value):02x}" for value in mixed)


def ramp_legend(x: float, y: float, low: str, high: str) -> Iterator[str]:
    """Draw the ramp of colours, :data:`RAMP_WIDTH` wide, with what its ends stand for below it."""
    width = RAMP_WIDTH / _RAMP_STEPS
    for index in range(_RAMP_STEPS):
        fill = ramp_colour(index / (_RAMP_STEPS - 1))
        yield f'<rect x="{x + index * width:.1f}" y="{y:.0f}" width="{width + 0.5}" height="12" fill="{fill}"/>'
    yield text(x, y + 28, low)
    yield text(x + RAMP_WIDTH, y + 28, high, "end")


def gradient() -> str:
    """Return the gradient of the scale of colours, which all pictures of a page share."""
    stops = "".join(
        f'<stop offset="{share}" stop-color="rgb{colour}"/>'
        for share, colour in zip((0, 0.5, 1), DIVERGING, strict=True)
    )
    return f'<svg class="away" aria-hidden="true"><linearGradient id="{GRADIENT}">{stops}</linearGradient></svg>'


def x_axis(frame: Frame, scale: AxisScale, title: str) -> Iterator[str]:
    """Draw the horizontal axis with its grid; labels that would touch the one before are left out."""
    free = -1.0
    for tick in scale.ticks():
        x, label = frame.x(scale.share(tick) or 0.0), scale.label(tick)
        yield f'<path class="grid" d="M{x:.1f} {frame.top:.0f} V{frame.bottom:.0f}"/>'
        half = 3.6 * len(label)
        if x - half > free and x + half <= WIDTH:
            yield text(x, frame.bottom + 15, label, "middle", "tick")
            free = x + half + 4
    yield f'<path class="axis" d="M{frame.left:.0f} {frame.bottom:.0f} H{frame.right:.0f}"/>'
    axis_title = f"{title}{', log' if scale.step is None else ''}"
    yield text((frame.left + frame.right) / 2, frame.bottom + 32, axis_title, "middle")


def y_axis(frame: Frame, scale: AxisScale, title: str) -> Iterator[str]:
    """Draw the upright axis with its grid."""
    for tick in scale.ticks():
        y = frame.y(scale.share(tick) or 0.0)
        yield f'<path class="grid" d="M{frame.left:.0f} {y:.1f} H{frame.right:.0f}"/>'
        yield text(frame.left - 6, y + 4, scale.label(tick), "end", "tick")
    yield f'<path class="axis" d="M{frame.left:.0f} {frame.top:.0f} V{frame.bottom:.0f}"/>'
    yield text(6, frame.top - 10, f"{shorten(title, 40)}{', log' if scale.step is None else ''}")


def legend(names: Iterable[str], mark: Callable[[str, float, float], str]) -> tuple[list[str], float]:
    """Return a legend at the top of a picture, in as many rows as it needs, and where it ends.

    Args:
        names: Names of what is drawn.
        mark: Function that draws the mark of a name, 20 wide, from its left end on, at the height of the text's middle.
    """
    parts, x, y = [], 6.0, 12.0
    for name in names:
        label = shorten(name, 24)
        width = 34 + 7.2 * len(label)
        if x > 6 and x + width > WIDTH:
            x, y = 6.0, y + 19
        parts += [mark(name, x, y), text(x + 25, y + 4, label)]
        x += width
    return parts, y + 19
