"""What the page's pictures share: a plot's frame, its axes, and colours that follow the page's light or dark."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from edgekd.report.blame.picture import shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from edgekd.report.svg.chart import AxisScale

#: In units of a picture, which a phone shows at about one pixel each.
WIDTH = 380

#: Classes of the style sheet; an engine has the same in every picture.
_KNOWN = {"teacher": "c2", "student": "c1", "float": "c1", "shipped": "c0", "device": "c0", "engine": "c0"}
_OTHERS = ("c3", "c4", "c5")
#: Dashes, so that no two lines are told by colour alone.
_DASHES = {"c0": "", "c1": "6 3", "c2": "2 3", "c3": "9 3 2 3", "c4": "4 2 1 2", "c5": "1 4"}


@dataclass(frozen=True)
class Look:
    """How a series is drawn: its class, and the dash of its line."""

    colour: str

    @property
    def dash(self) -> str:
        """The attribute of its line."""
        return f' stroke-dasharray="{_DASHES[self.colour]}"' if _DASHES[self.colour] else ""


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return how each of some series is drawn."""
    found, others = {}, 0
    for name in names:
        found[name] = Look(_KNOWN.get(name) or _OTHERS[others % len(_OTHERS)])
        others += name not in _KNOWN
    return found


@dataclass(frozen=True)
class Frame:
    """A plot's place in its picture."""

    left: float
    top: float
    right: float
    bottom: float

    def x(self, share: float) -> float:
        """Return where a share of the horizontal axis is."""
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        """Return where a share of the upright axis is."""
        return self.bottom - share * (self.bottom - self.top)


def picture(name: str, told: str, height: float, parts: Iterable[str]) -> str:
    """Return an SVG element.

    Args:
        name: an id that no other picture of the page has.
        told: what those hear who do not see it.
        height: in units.
        parts: its content.
    """
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-labelledby="{name}">'
    return "\n".join([head, f'<title id="{name}">{escape(told)}</title>', *parts, "</svg>"])


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    """Return a line of text."""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(content)}</text>'


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
    told = f"{title}{', log' if scale.step is None else ''}"
    yield text((frame.left + frame.right) / 2, frame.bottom + 32, told, "middle")


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
        names: what is drawn.
        mark: draws the mark of one, 20 wide, from its left end on at the height of the text's middle.
    """
    parts, x, y = [], 6.0, 12.0
    for name in names:
        told = shorten(name, 24)
        width = 34 + 7.2 * len(told)
        if x > 6 and x + width > WIDTH:
            x, y = 6.0, y + 19
        parts += [mark(name, x, y), text(x + 25, y + 4, told)]
        x += width
    return parts, y + 19
