"""The confusions between classes as a picture: a row for each class that is true, a column for each that was said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.report.svg.draw import figure_svg, ramp_colour, ramp_legend, shorten, text, turned_text
from edgekd.report.svg.png import png_uri

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Side of a cell with its count, from how many classes on cells have no counts, and the side of those.
_WIDE, _COUNTED, _NARROW = 34.0, 14, 12.0
_LETTERS, _LETTER, _LEVELS, _EDGE = 14, 6.6, 255, 24.0


def confusion_svg(name: str, classes: Sequence[str], counts: Sequence[Sequence[int]], unit: str) -> tuple[str, float]:
    """Return the picture, and how wide it is to be shown at most.

    Each cell's colour is its share of its row, so that rare classes show as well as frequent ones.

    Args:
        name: An id that no other picture of the page has.
        classes: Names of the classes.
        counts: How often each class (row) was said to be each (column).
        unit: What was counted.
    """
    table = np.array(counts, np.float64).reshape(len(classes), len(classes))
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = _WIDE if len(classes) <= _COUNTED else _NARROW
    labels = [shorten(label, _LETTERS) for label in classes]
    head = max(map(len, labels), default=1) * _LETTER + 10
    left, top = head + _EDGE, head + _EDGE
    extent = side * len(classes)
    width = max(left + extent + 6, left + 200)
    parts = [
        f'<image href="{_pixels(shares)}" x="{left:.1f}" y="{top:.1f}" width="{extent:.1f}" height="{extent:.1f}" '
        'preserveAspectRatio="none"/>',
        f'<rect class="axis" x="{left:.1f}" y="{top:.1f}" width="{extent:.1f}" height="{extent:.1f}"/>',
        text(left + extent / 2, 14, "said by what ships", "middle"),
        turned_text(12, top + extent / 2, -90, "true"),
        *_names(labels, (left, top), side),
        *(_cells(table, shares, (left, top), side) if side == _WIDE else ()),
        *ramp_legend(left, top + extent + 12, "none of the row", "all"),
    ]
    right = float(np.trace(table))
    description = (
        f"Confusions between {len(classes)} classes, counted in {unit}: {right:,.0f} of {table.sum():,.0f} are right. "
        "The table of classes has their recall, and the list of pairs the most frequent confusions."
    )
    return figure_svg(name, description, (width, top + extent + 46), parts), width


def _pixels(shares: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    colours = (ramp_colour(level / _LEVELS) for level in range(_LEVELS + 1))
    palette = b"".join(bytes.fromhex(colour[1:]) for colour in colours)
    return png_uri(np.rint(shares * _LEVELS).astype(np.uint8), palette)


def _names(labels: Sequence[str], corner: tuple[float, float], side: float) -> Iterator[str]:
    left, top = corner
    for index, label in enumerate(labels):
        middle = (index + 0.5) * side
        yield text(left - 6, top + middle + 4, label, "end", "tick")
        x, y = left + middle + 4, top - 6
        yield (f'<g transform="rotate(-90 {x:.1f} {y:.1f})">{text(x, y, label, kind="tick")}</g>')


def _cells(
    table: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    shares: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    corner: tuple[float, float],
    side: float,
) -> Iterator[str]:
    """Write the counts that are not 0, dark on light colours and light on dark ones."""
    left, top = corner
    for row, column in np.argwhere(table > 0).tolist():
        count = int(table[row, column])
        shown = f"{count}" if count < 10_000 else f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.0f}M"
        colour = "#ffffff" if shares[row, column] > 0.55 else "#1c1c1c"
        x, y = left + (column + 0.5) * side, top + (row + 0.5) * side + 4
        yield f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" style="fill:{colour}">{shown}</text>'
