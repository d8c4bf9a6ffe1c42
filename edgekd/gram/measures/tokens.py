"""Sequences of tokens: what a network that was trained by CTC says, and how far one sequence is from another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def collapse(classes: NDArray[np.intp], blank: int | None) -> NDArray[np.intp]:
    """Return the tokens of the classes [T] of steps: repeated ones are one token, blanks none.

    Args:
        classes: The class of each step [T].
        blank: The class that is no token; None where every step is a token by itself.
    """
    if blank is None:
        return classes
    first = np.ones(len(classes), bool)
    first[1:] = classes[1:] != classes[:-1]
    tokens: NDArray[np.intp] = classes[first & (classes != blank)]
    return tokens


def edit_distance(ours: NDArray[np.integer], theirs: NDArray[np.integer]) -> int:
    """Return how many insertions, deletions and substitutions make one sequence of tokens the other (Levenshtein)."""
    start = _common(ours, theirs)
    ours, theirs = ours[start:], theirs[start:]
    end = _common(ours[::-1], theirs[::-1])
    ours, theirs = ours[: len(ours) - end], theirs[: len(theirs) - end]
    if len(ours) < len(theirs):
        ours, theirs = theirs, ours
    steps = np.arange(len(ours) + 1)
    costs = steps
    for token in theirs.tolist():
        changed = np.concatenate([costs[:1] + 1, np.minimum(costs[1:] + 1, costs[:-1] + (ours != token))])
        costs = np.minimum.accumulate(changed - steps) + steps  # insertions, one after the other
    return int(costs[-1])


def _common(ours: NDArray[np.integer], theirs: NDArray[np.integer]) -> int:
    """Return how many tokens both begin with."""
    count = min(len(ours), len(theirs))
    other = np.flatnonzero(ours[:count] != theirs[:count])
    return int(other[0]) if len(other) else count
