"""Labels of samples, and the metric of tasks that define none. Importing this module imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Label of a sample without a class. Distillation uses such samples; the cross entropy skips them.
UNLABELLED = -100


def accuracy(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the share of labelled samples whose top-1 class is right, of logits [N, C] and labels [N]."""
    labelled = labels != UNLABELLED
    return float((logits.argmax(-1) == labels)[labelled].mean()) if labelled.any() else float("nan")
