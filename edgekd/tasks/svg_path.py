"""Draw the outline of an SVG path with numpy: https://www.w3.org/TR/SVG11/paths.html.

Points are complex numbers: x to the right, y downwards.
"""

from __future__ import annotations

import cmath
import math
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    _Points = NDArray[np.complex128]

_COMMAND = re.compile(r"([MZLHVCSQTA])([^MZLHVCSQTA]*)", re.IGNORECASE)
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
#: The two flags of an arc may stand next to each other, and to the number after them.
_ARC = re.compile(
    rf"({_NUMBER})[\s,]*({_NUMBER})[\s,]*({_NUMBER})[\s,]*([01])[\s,]*([01])[\s,]*({_NUMBER})[\s,]*({_NUMBER})"
)
#: How many numbers a command takes; with more of them it is repeated.
_TAKES = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2}
#: Where a curve is cut into straight pieces, from its start, at 0, to its end, at 1.
_STEPS = np.linspace(0, 1, 9)[1:]
#: What start, control points and end of a cubic curve count in each of these, [8, 4].
_CUBIC = np.stack([(1 - _STEPS) ** 3, 3 * (1 - _STEPS) ** 2 * _STEPS, 3 * (1 - _STEPS) * _STEPS**2, _STEPS**3], axis=1)


def drawn(path: str, box: float, pixels: int, samples: int = 4) -> NDArray[np.float32]:
    """Fill a path by the nonzero rule.

    Args:
        path: The path, as in the attribute ``d``.
        box: Width and height of the square that the path is drawn in.
        pixels: Width and height of the image.
        samples: Number of samples of a pixel along each side.

    Returns:
        Ink, float32 [pixels, pixels], 0 to 1.
    """
    size = pixels * samples
    polygons = [polygon * (size / box) for polygon in outline(path)]
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(polygon, -1) for polygon in polygons])
    lines = np.arange(size) + 0.5
    down = (starts.imag[:, None] <= lines) & (ends.imag[:, None] > lines)
    up = (ends.imag[:, None] <= lines) & (starts.imag[:, None] > lines)
    edge, line = np.nonzero(down | up)
    share = (lines[line] - starts.imag[edge]) / (ends.imag[edge] - starts.imag[edge])
    crossing = starts.real[edge] + share * (ends.real[edge] - starts.real[edge])
    winding = np.zeros((size, size + 1), np.int32)
    # From the first sample to the right of an edge on, the path winds once more around each.
    np.add.at(winding, (line, np.clip(np.ceil(crossing - 0.5), 0, size).astype(int)), np.where(down[edge, line], 1, -1))
    inked = np.cumsum(winding, axis=1)[:, :size] != 0
    ink: NDArray[np.float32] = inked.reshape(pixels, samples, pixels, samples).mean((1, 3), dtype=np.float32)
    return ink


def outline(path: str) -> list[_Points]:
    """Return the closed polygons of a path."""
    pen = _Pen()
    for letter, text in _COMMAND.findall(path):
        for numbers in _arguments(letter.upper(), text):
            pen.draw(letter, numbers)
            letter = {"M": "L", "m": "l"}.get(letter, letter)  # noqa: PLW2901 - further points are lines
    pen.lift()
    return pen.polygons


def _arguments(letter: str, text: str) -> Iterator[Sequence[float]]:
    """Yield the numbers of a command, once for each time that it is repeated."""
    if letter == "Z":
        yield ()
    elif letter == "A":
        yield from ([float(number) for number in arc] for arc in _ARC.findall(text))
    else:
        numbers, takes = [float(number) for number in re.findall(_NUMBER, text)], _TAKES[letter]
        yield from (numbers[at : at + takes] for at in range(0, len(numbers), takes))


class _Pen:
    """Follows a path's commands."""

    def __init__(self) -> None:
        self.polygons: list[_Points] = []
        self._points: list[complex] = []
        self._at = self._start = 0j
        #: The last curve's kind and last control point, which S and T mirror.
        self._control = ("", 0j)

    def lift(self) -> None:
        """Close what was drawn since the last point that a path was moved to."""
        if len(self._points) > 1:
            self.polygons.append(np.array(self._points))
        self._points = []
        self._at = self._start

    def draw(self, letter: str, numbers: Sequence[float]) -> None:
        """Do one command."""
        kind, base = letter.upper(), self._at if letter.islower() else 0j
        control = ("", 0j)
        if kind == "Z":
            self.lift()
        elif kind in "HV":
            self._line(_along(kind, numbers[0], self._at, base))
        elif kind == "A":
            self._arc(numbers[:5], base + complex(*numbers[5:]))
        else:
            points = [base + complex(x, y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
            if kind == "M":
                self.lift()
                self._at = self._start = points[0]
            elif kind == "L":
                self._line(points[0])
            else:
                control = self._curve(kind, points)
        self._control = control

    def _begin(self) -> None:
        if not self._points:
            self._points = [self._at]

    def _line(self, end: complex) -> None:
        self._begin()
        self._points.append(end)
        self._at = end

    def _curve(self, kind: str, points: list[complex]) -> tuple[str, complex]:
        """Draw a Bezier curve; return its kind, C or Q, and its last control point."""
        self._begin()
        family = "C" if kind in "CS" else "Q"
        if kind in "ST":
            mirrored = 2 * self._at - self._control[1] if self._control[0] == family else self._at
            points = [mirrored, *points]
        start, end, last = self._at, points[-1], points[-2]
        first, second = points[:2] if family == "C" else (start + 2 / 3 * (last - start), end + 2 / 3 * (last - end))
        self._points += (_CUBIC @ np.array([start, first, second, end])).tolist()
        self._at = end
        return family, last

    def _arc(self, shape: Sequence[float], end: complex) -> None:
        """Draw an arc of an ellipse: radii, rotation in degrees, whether the larger one, whether clockwise."""
        width, height, rotation, large, clockwise = shape
        if not width or not height or end == self._at:
            self._line(end)
            return
        self._begin()
        turn = cmath.exp(1j * math.radians(rotation))

        def to_circle(point: complex) -> complex:
            turned = point / turn
            return complex(turned.real / abs(width), turned.imag / abs(height))

        first, last = to_circle(self._at), to_circle(end)
        half = (last - first) / 2
        radius = max(1.0, abs(half))  # an ellipse that is too small to reach is enlarged until it does
        side = 1 if bool(large) != bool(clockwise) else -1
        centre = (first + last) / 2 + side * 1j * half / abs(half) * math.sqrt(max(0.0, radius**2 - abs(half) ** 2))
        angle = cmath.phase((last - centre) / (first - centre))
        if clockwise and angle < 0:
            angle += 2 * math.pi
        if not clockwise and angle > 0:
            angle -= 2 * math.pi
        on_circle = centre + (first - centre) * np.exp(1j * angle * _STEPS)
        self._points += (turn * (on_circle.real * abs(width) + 1j * on_circle.imag * abs(height))).tolist()
        self._at = end


def _along(kind: str, number: float, at: complex, base: complex) -> complex:
    """Return the end of a line along one axis."""
    return complex(base.real + number, at.imag) if kind == "H" else complex(at.real, base.imag + number)
