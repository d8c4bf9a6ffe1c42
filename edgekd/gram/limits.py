"""Limits for the drift, derived from the damage that perturbations did to a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: If one in ten perturbations lost too much, 2 or fewer of 61 would with a probability below 5 %: binomial, exact.
WINDOW, ALLOWED = 61, 2

#: A loss at its limit keeps it: 0.9125 - 0.8975 is a little more than 0.015.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Suggestion:
    """A limit for the drift.

    Attributes:
        tau: The limit; None where the perturbations do not tell one.
        reason: Why this is the limit, or why there is none.
    """

    tau: float | None
    reason: str


def has_lost(losses: NDArray[np.float64], max_loss: float) -> NDArray[np.bool_]:
    """Return for each loss [N] whether it is too large; a loss that is not a number is too large."""
    too_large: NDArray[np.bool_] = ~(losses <= max_loss + _ROUNDING)
    return too_large


def suggest(drifts: NDArray[np.float64], losses: NDArray[np.float64], max_loss: float) -> Suggestion:
    """Return the largest drift up to which a larger loss is provably rare.

    Perturbations are put in the order of their drift. tau is the largest drift at which, and at every smaller one, at
    most 2 of the 61 perturbations next below lost more than ``max_loss``: at a confidence of 95 % fewer than one in ten
    does there (Clopper and Pearson, Biometrika 26, 1934), as far as perturbations of one network are independent. A
    window of a fixed count asks the same wherever the perturbations lie; the share of all that lie below tau would fall
    with every harmless one that is added.

    tau is for the mean drift. The gate holds the upper bound of the drift against it, and so is stricter the fewer
    samples it has.

    Args:
        drifts: Mean drift of each perturbation [N].
        losses: Loss of the metric that each perturbation caused [N].
        max_loss: The largest loss that counts as none.
    """
    if len(drifts) < WINDOW:
        return Suggestion(None, f"not decided: {len(drifts)} perturbations, of which {WINDOW} or more are needed")
    order = np.argsort(drifts, kind="stable")
    drifts, lost = drifts[order], has_lost(losses[order], max_loss)
    counts = np.convolve(lost, np.ones(WINDOW, int), "valid")
    too_many = np.flatnonzero(counts > ALLOWED)
    if not len(too_many):
        return Suggestion(None, f"not decided: losses above {max_loss:g} are rare up to a drift of {drifts[-1]:.4f}")
    last = too_many[0] + WINDOW - 1  # in the order of drift, the one that made it too many
    if last == WINDOW - 1:
        return Suggestion(
            None,
            f"not decided: {counts[0]} of the {WINDOW} smallest drifts, up to {drifts[last]:.4f}, come with a loss "
            f"above {max_loss:g}; measure on more samples, which tell loss from chance",
        )
    what = f"of the {WINDOW} drifts next below it, at most {ALLOWED} come with a loss above {max_loss:g}"
    return Suggestion(float(drifts[last - 1]), what)
