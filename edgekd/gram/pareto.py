"""The Pareto front: which of several candidates no other beats in every objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether ``one`` [K] is nowhere worse than ``other`` [K] and somewhere better; lower costs are better."""
    no_worse = all(a <= b for a, b in zip(one, other, strict=True))
    return no_worse and any(a < b for a, b in zip(one, other, strict=True))


def pareto_front(costs: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the candidates that no other dominates, in the order of ``costs``.

    Of several candidates with equal costs only the first is on the front.

    Args:
        costs: Objectives of each candidate [N, K]; lower is better. Negate an objective that is to be large.
    """
    points = [tuple(cost) for cost in costs]
    return [
        index
        for index, point in enumerate(points)
        if point not in points[:index] and not any(dominates(other, point) for other in points)
    ]
