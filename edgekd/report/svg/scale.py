"""The scale of an axis: its round ends, its ticks, and the place of a figure on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: From this ratio of the largest to the smallest figure on, an axis is logarithmic: even steps would hide the small.
_LOG_RATIO = 20
#: Less of an axis than this share of its largest figure would show rounding.
_NARROWEST = 0.04
_STEPS = (1, 2, 5, 10)
#: Ticks on an axis, and digits of one, at most.
_TICKS, _DIGITS = 7, 6


@dataclass(frozen=True)
class AxisScale:
    """The scale of an axis, which turns figures into shares of its length.

    Attributes:
        low: The figure at the lower end.
        high: The figure at the upper end.
        step: The distance between two ticks; None where the scale is logarithmic.
    """

    low: float
    high: float
    step: float | None

    @classmethod
    def of(cls, values: Sequence[float], log: bool = True, zero: bool = False) -> AxisScale:
        """Return the scale that shows all values between round ends; a logarithmic one shows those above 0.

        Args:
            values: The figures to show; those that are not finite are passed over.
            log: Whether the scale may be logarithmic: it is where the values span more than a factor of 20.
            zero: Whether a scale with even steps begins at 0 or below.
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
        step = round_step(high - low)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step)

    def share(self, value: float) -> float | None:
        """Return the place of a value, 0 at the low end and 1 at the high one; None where the axis has none."""
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
        """Write a tick, with the same number of digits as all ticks of the axis."""
        if self.step is None:
            return format(tick, ".6g")
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return format(round(tick, digits) + 0.0, f".{digits}f" if digits < _DIGITS else ".2e")


def round_step(extent: float) -> float:
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
