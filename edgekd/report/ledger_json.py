"""Read a ledger's JSON, in which null stands for figures that JSON cannot hold."""

from __future__ import annotations

import math

#: Figures that every drift, or every comparison of outputs has: where a ledger has null for one, it was not finite.
_FIGURES = dict.fromkeys(("mean", "bound", "worst_pair_mean", "bias", "largest_error"), math.nan)

#: What the best constant answer has; its metric is always there, where that of a row need not be.
_CONSTANT = {"metric", "gain"}

#: The figures of a mean with its bounds, and what null stands for where there is a mean.
_ESTIMATE = {"mean": math.nan, "low": -math.inf, "high": math.inf}


def ledger_with_nan(ledger: object) -> object:
    """Return the JSON of a bundle's ledger with NaN or an infinity where it has null for a figure that is always there.

    Without a mean there is NaN for it and its bounds; without one of the bounds there was none.
    """
    if isinstance(ledger, list):
        return [ledger_with_nan(item) for item in ledger]
    if not isinstance(ledger, dict):
        return ledger
    if ledger.keys() == _ESTIMATE.keys():
        lacking = dict.fromkeys(_ESTIMATE, math.nan) if ledger["mean"] is None else _ESTIMATE
    elif ledger.keys() >= _CONSTANT:
        lacking = {"metric": math.nan}
    else:
        lacking = _FIGURES
    filled = {name: lacking.get(name) if value is None else value for name, value in ledger.items()}
    return {name: ledger_with_nan(value) for name, value in filled.items()}
