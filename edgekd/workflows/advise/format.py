"""The form of an advice's figures in text: budgets, seeds, metrics and differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.report.format import number

if TYPE_CHECKING:
    from edgekd.workflows.advise.paired import Paired
    from edgekd.workflows.advise.result import ValidationFacts


def budget_text(seconds: float) -> str:
    """Write seconds as a budget, rounded up to a number that is easily read."""
    if seconds <= 90:
        return f"{max(1, math.ceil(seconds))}s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes}m" if minutes < 120 else f"{math.ceil(minutes / 60)}h"


def count_seeds(count: int, more: str = "") -> str:
    """Write a number of seeds, e.g. ``"1 seed"`` or ``"2 more seeds"``."""
    return f"{count}{more} seed{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class MetricFormat:
    """The form of a metric and of its differences.

    Attributes:
        factor: Factor that differences are multiplied by.
        digits: Digits behind the decimal point of a difference.
        unit: Unit of a difference, with a leading space.
    """

    factor: float
    digits: int
    unit: str

    @classmethod
    def of(cls, facts: ValidationFacts) -> MetricFormat:
        """Return the form of a metric: differences of an accuracy are in points, those of others as they are."""
        return cls(100.0, 1, " points") if facts.step else cls(1.0, 4, f" of {facts.metric}")

    def value(self, metric: float | None) -> str:
        """Write a metric."""
        return number(metric)

    def signed(self, difference: float) -> str:
        """Write a difference, without its unit."""
        return f"{round(difference * self.factor, self.digits) + 0.0:+.{self.digits}f}"  # + 0.0: no "-0.0"

    def ends(self, difference: Paired) -> str:
        """Write the ends of a difference's interval."""
        return f"{self.signed(difference.low)}..{self.signed(difference.high)}"

    def interval(self, difference: Paired) -> str:
        """Write a difference with its unit and its interval."""
        return f"{self.signed(difference.mean)}{self.unit} ({self.ends(difference)})"
