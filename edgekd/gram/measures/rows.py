"""What several measures compute of rows of numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekd.gram.npz import Array

Rows: TypeAlias = "NDArray[np.float64]"

#: An output is as good as zero where it is shorter than this share of the outputs' root mean square, and is compared
#: with that instead: a cosine with it, or an error over its length, would be noise.
_NEAR_ZERO = 0.1

#: Probabilities are kept away from 0 and 1 by this much.
EDGE = 1e-7


def as_rows(outputs: Array) -> Rows:
    """Return outputs [B, ...] as rows of numbers [B, D]."""
    rows: Rows = outputs.reshape(len(outputs), -1).astype(np.float64)
    return rows


def lengths(rows: Rows) -> Rows:
    """Return the length of each row [B] of rows [B, D]."""
    found: Rows = np.sqrt((rows**2).sum(1))
    return found


def near_zero(square: float, count: int) -> float:
    """Return the length below which one of ``count`` rows is as good as zero, from the sum of all their squares."""
    return max(_NEAR_ZERO * math.sqrt(square / count), float(np.finfo(np.float32).tiny))


def log_softmax(scores: Rows) -> Rows:
    """Return the logarithms of the probabilities of logits [..., C]."""
    shifted = scores - scores.max(-1, keepdims=True)
    logs: Rows = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logs


def log_of_probabilities(scores: Rows) -> Rows:
    """Return the logarithms of probabilities [..., C], which are kept away from 0."""
    logs: Rows = np.log(scores.clip(EDGE))
    return logs


def sigmoid(scores: Rows) -> Rows:
    """Return the probabilities of logits, without overflow."""
    small = np.exp(-np.abs(scores))
    probabilities: Rows = np.where(scores >= 0, 1, small) / (1 + small)
    return probabilities
