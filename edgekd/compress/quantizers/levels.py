"""Rounding of stored weights to integer levels, symmetric around 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekd.runtime.session import Array

    Floats = NDArray[np.float32]
    Levels = NDArray[np.int8]

#: The largest level of INT8 weights, by ``Scheme.reduce_range``.
LARGEST = {True: 64, False: 127}
#: Shares of the largest magnitude among which the scale of few levels is searched.
_SHARES = np.linspace(0.7, 1.0, 13, dtype=np.float32)


def to_levels(weight: Array, axes: int | tuple[int, ...] | None, largest: int) -> tuple[Levels, Floats]:
    """Return the nearest levels of a weight, and their scales.

    Args:
        weight: The float weight.
        axes: The axes that share one scale; None for all.
        largest: The largest level.

    Returns:
        The levels in the weight's shape, and the scales in float32, their shared axes kept with the size 1.
    """
    values = weight.astype(np.float32)
    reach = np.abs(values).max(axes, keepdims=True, initial=0)
    scale = np.where(reach > 0, reach / largest, 1).astype(np.float32)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)  # numbers so small that their share is 0
    return np.rint(values / scale).clip(-largest, largest).astype(np.int8), scale


def closest_levels(blocks: Array, bits: int) -> tuple[Levels, Floats]:
    """Return the levels of blocks of weights with the least squared error, and each block's scale.

    The levels reach from -2^(bits-1) to 2^(bits-1) - 1. Of several scales for each block, that of its larger end and
    smaller ones, which clip, the best is taken; a negative scale lets the one level more be on the positive side.

    Args:
        blocks: Float weights [..., block].
        bits: Bits of a level, at most 8.

    Returns:
        The levels [..., block], and the scales in float32 [..., 1].
    """
    values = blocks.astype(np.float32)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    ends = np.take_along_axis(values, np.abs(values).argmax(-1, keepdims=True), -1)
    best = np.full(ends.shape, np.inf, np.float32)
    levels, scales = np.zeros(values.shape, np.int8), np.ones(ends.shape, np.float32)
    for share in _SHARES if bits < 8 else _SHARES[-1:]:
        scale = np.where(ends == 0, 1, ends * share / low).astype(np.float32)
        rounded = np.rint(values / scale).clip(low, high)
        error = np.square(rounded * scale - values).sum(-1, keepdims=True)
        better = error < best
        np.copyto(levels, rounded.astype(np.int8), where=better)
        np.copyto(scales, scale, where=better)
        np.copyto(best, error, where=better)
    return levels, scales
