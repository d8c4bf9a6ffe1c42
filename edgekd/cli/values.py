"""Values of options: numbers that have bounds and are finite, and times."""

from __future__ import annotations

import math
import re
from typing import ClassVar

import click

#: Counts on the command line: more of any of them is a slip of the keyboard.
THREADS, WORKERS, ITERATIONS = click.IntRange(1, 1024), click.IntRange(1, 256), click.IntRange(1, 10_000_000)
TRIALS = EPOCHS = click.IntRange(1, 1_000_000)

_DAY_SECONDS = 24 * 3600


class Finite(click.FloatRange):
    """A number in a range that is neither infinite nor NaN, which no bound holds off."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


class Duration(click.ParamType[float]):
    """A time such as ``90s``, ``30m`` or ``1h30m``, in seconds.

    Args:
        days: The longest time.
    """

    name = "time"
    _UNITS: ClassVar = {"h": 3600, "m": 60, "s": 1}

    def __init__(self, days: int) -> None:
        self._days = days

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Add up hours, minutes and seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(?=.)(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", str(value), re.ASCII)
        if not match or not any(map(int, filter(None, match.groups()))):
            self.fail(f"'{value}' is no time above 0: write it as 90s, 30m or 1h30m", param, ctx)
        seconds = sum(int(n or 0) * unit for n, unit in zip(match.groups(), self._UNITS.values(), strict=True))
        if seconds > self._days * _DAY_SECONDS:
            self.fail(f"'{value}' is longer than {self._days * 24} hours", param, ctx)
        return float(seconds)
