"""Limits for a measure of compression, derived from the damage that perturbations did to a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.verdict import AT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: If one in ten perturbations lost too much, 2 or fewer of 61 would with a probability below 5 %: binomial, exact.
WINDOW, ALLOWED = 61, 2

#: Significant digits of a limit, which is rounded down.
_DIGITS = 2


@dataclass(frozen=True)
class Suggestion:
    """A limit for a measure.

    Attributes:
        limit: The limit; None where the perturbations do not tell one.
        reason: Why this is the limit, or why there is none.
    """

    limit: float | None
    reason: str


@dataclass(frozen=True)
class Tally:
    """Whom a limit, or several together, let through and refuse among perturbations.

    Attributes:
        missed: Number of those let through among those that lost too much.
        lost: Number of those that lost too much.
        refused: Number of those refused among those that did not.
        kept: Number of those that did not lose too much.
    """

    missed: int
    lost: int
    refused: int
    kept: int

    @classmethod
    def of(cls, refused: NDArray[np.bool_], lost: NDArray[np.bool_]) -> Tally:
        """Count what is refused [N] among what lost too much [N] and among what did not."""
        return cls(int((lost & ~refused).sum()), int(lost.sum()), int((refused & ~lost).sum()), int((~lost).sum()))


def has_lost(losses: NDArray[np.float64], max_loss: float) -> NDArray[np.bool_]:
    """Return for each loss [N] whether it is too large; a loss that is not a number is too large."""
    too_large: NDArray[np.bool_] = ~(losses <= max_loss + AT_LIMIT)
    return too_large


def is_refused(figures: NDArray[np.float64], limit: float) -> NDArray[np.bool_]:
    """Return for each figure [N] whether a limit refuses it; a figure that is not a number is refused."""
    return has_lost(figures, limit)


def suggest(figures: NDArray[np.float64], losses: NDArray[np.float64], max_loss: float, what: str) -> Suggestion:
    """Return the largest limit up to which a larger loss is provably rare.

    Perturbations are put in the order of a measure. The limit is the largest figure at which, and at every smaller one,
    at most 2 of the 61 perturbations next below lost more than ``max_loss``: at a confidence of 95 % fewer than one in
    ten does there (Clopper and Pearson, Biometrika 26, 1934), as far as perturbations of one network are independent. A
    window of a fixed count asks the same wherever the perturbations lie; the share of all that lie below the limit
    would fall with every harmless one that is added. Of perturbations with the same figure, such as a share of changed
    answers, those that lost come first: a limit lets all of them through or none. It is rounded down to two digits.

    The limit is for means. The gate holds their upper bounds against it, and so is stricter the fewer samples it has.

    Args:
        figures: The measure's mean of each perturbation [N].
        losses: Loss that each perturbation caused [N].
        max_loss: The largest loss that counts as none.
        what: The measure, in words.
    """
    if len(figures) < WINDOW:
        return Suggestion(None, f"not decided: {len(figures)} perturbations, of which {WINDOW} or more are needed")
    lost = has_lost(losses, max_loss)
    order = np.lexsort((~lost, figures))
    figures, lost = figures[order], lost[order]
    counts = np.convolve(lost, np.ones(WINDOW, int), "valid")
    too_many = np.flatnonzero(counts > ALLOWED)
    if not len(too_many):
        return Suggestion(None, f"not decided: losses above {max_loss:g} are rare up to a {what} of {figures[-1]:.3g}")
    last = too_many[0] + WINDOW - 1  # in the order of the measure, the one that made it too many
    below = figures[:last][figures[:last] < figures[last]]
    limit = round_down(float(below[-1])) if len(below) else 0.0
    if last == WINDOW - 1 or limit <= 0:
        return Suggestion(
            None,
            f"not decided: {counts[too_many[0]]} of the {WINDOW} smallest, up to a {what} of {figures[last]:.3g}, come "
            f"with a loss above {max_loss:g}",
        )
    told = f"of the {WINDOW} perturbations next below it, at most {ALLOWED} come with a loss above {max_loss:g}"
    return Suggestion(limit, told)


def round_down(value: float) -> float:
    """Return a figure of 0 or more, rounded down to two significant digits."""
    if value <= 0:
        return 0.0
    places = _DIGITS - 1 - math.floor(math.log10(value))
    rounded = round(value, places)
    return rounded if rounded <= value else round(rounded - 10.0**-places, places)


def samples_that_tell(half_widths: Sequence[float], max_loss: float, samples: int) -> int | None:
    """Return about how many samples would tell a loss from half of it.

    The half-width of a loss's interval shrinks with the root of the number of samples.

    Args:
        half_widths: Half-widths of the one-sided intervals of losses near a limit, of which the median counts.
        max_loss: The loss.
        samples: Number of samples that they were measured on.

    Returns:
        The number; None where these samples tell already, or nothing is known.
    """
    known = [width for width in half_widths if math.isfinite(width)]
    if not known or max_loss <= 0:
        return None
    needed = samples * (2 * float(np.median(known)) / max_loss) ** 2
    return math.ceil(needed) if needed > samples else None
