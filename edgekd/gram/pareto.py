"""The Pareto front: which of several candidates no other beats in every objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_C = TypeVar("_C")


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether ``one`` [K] is nowhere worse than ``other`` [K] and somewhere better; lower costs are better."""
    no_worse = all(a <= b for a, b in zip(one, other, strict=True))
    return no_worse and any(a < b for a, b in zip(one, other, strict=True))


def unbeaten(candidates: Sequence[_C], beats: Callable[[_C, _C], bool]) -> list[int]:
    """Return the indices of the candidates that no other beats, in their order.

    Args:
        candidates: The candidates.
        beats: Function that says whether its first argument beats its second; no candidate may beat itself.
    """
    return [
        index for index, candidate in enumerate(candidates) if not any(beats(other, candidate) for other in candidates)
    ]


def pareto_front(costs: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the candidates that no other dominates, in the order of ``costs``.

    Of several candidates with equal costs only the first is on the front.

    Args:
        costs: Objectives of each candidate [N, K]; lower is better. Negate an objective that is to be large.
    """
    points = [tuple(cost) for cost in costs]
    return [index for index in unbeaten(points, dominates) if points[index] not in points[:index]]
