"""Labels and the metric of those who bring none. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

#: Label of a sample that has none. Distillation uses such samples; the cross entropy skips them.
UNLABELLED = -100


def accuracy(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Return the share of labelled samples whose top-1 class is right; logits [N, C], labels [N]."""
    labelled = labels != UNLABELLED
    return float((logits.argmax(-1) == labels)[labelled].mean()) if labelled.any() else float("nan")
