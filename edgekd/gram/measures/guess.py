"""What an output is, told by its values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.measures.rows import as_rows, lengths
from edgekd.gram.output_kind import CLASS_AXES, OutputKind

if TYPE_CHECKING:
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputName

#: Probabilities, and lengths of 1, may be this far off, in float16 too.
_ROUNDING = 1e-3


def guess_kind(outputs: Array, labelled: bool) -> OutputKind:
    """Guess what an output is from its values: for a network that comes without a task.

    Args:
        outputs: The output for some samples [N, ...].
        labelled: Whether samples have class indices as labels.

    Returns:
        "classes" for [N, C] where there are labels, or where rows are distributions; "multilabel" where all values lie
        between 0 and 1; "embedding" where rows have unit length. "dense-classes" for [N, C, ...] that are distributions
        over C, and "sequence-classes" for [N, T, C] that are so. Else "regression".
    """
    if outputs.ndim != 2:
        names: tuple[OutputName, ...] = (
            ("sequence-classes", "dense-classes")
            if outputs.ndim == 3
            else ("dense-classes",)
            if outputs.ndim > 3
            else ()
        )
        found = (name for name in names if outputs.shape[CLASS_AXES[name]] > 1 and are_probabilities(outputs, name))
        name = next(found, None)
        return OutputKind(name, True) if name else OutputKind("regression")
    if outputs.shape[1] > 1:
        distributions = are_probabilities(outputs, "classes")
        if labelled or distributions:
            return OutputKind("classes", distributions)
        if np.allclose(lengths(as_rows(outputs)), 1, atol=_ROUNDING):
            return OutputKind("embedding")
    labels = are_probabilities(outputs, "multilabel") and outputs.any()
    return OutputKind("multilabel", True, 0.5) if labels else OutputKind("regression")


def are_probabilities(outputs: Array, kind: OutputName) -> bool:
    """Whether an output [N, ...] of a kind is probabilities, by its values; those of classes sum to 1."""
    within = bool((outputs >= -_ROUNDING).all() and (outputs <= 1 + _ROUNDING).all())
    if kind in CLASS_AXES:
        return within and bool(np.allclose(outputs.sum(CLASS_AXES[kind], dtype=np.float64), 1, atol=_ROUNDING))
    return kind == "multilabel" and within
