"""The jackknife over blocks of samples: how surely any statistic of them is known, and paired differences of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_Array: TypeAlias = "NDArray[np.float64]"

#: Number of blocks of a jackknife over independent samples.
_BLOCKS = 32

#: The most groups that are blocks by themselves; where there are more, several share a block. Each costs a statistic of
#: all samples.
_MOST_GROUPS = 128


@dataclass(frozen=True)
class Series:
    """A statistic of all samples, and of the samples without each block: the input of a jackknife.

    Attributes:
        value: The statistic of all samples.
        without: The statistic without each block [K].
    """

    value: float
    without: _Array

    @classmethod
    def of(cls, statistic: Callable[[NDArray[np.bool_]], float], blocks: NDArray[np.int64]) -> Series:
        """Compute a statistic of all samples and without each block.

        Args:
            statistic: Returns the statistic of the samples that a mask [N] chooses.
            blocks: Block of each sample [N].
        """
        everything = np.ones(len(blocks), bool)
        left_out = np.array([statistic(blocks != block) for block in np.unique(blocks)] if np.ptp(blocks) else [])
        return cls(float(statistic(everything)), left_out)

    @classmethod
    def mean(cls, figures: _Array, blocks: NDArray[np.int64]) -> Series:
        """Compute the mean of the samples' figures [N], as :meth:`of` does."""
        block = np.unique(blocks, return_inverse=True)[1]
        sums, counts = np.bincount(block, figures), np.bincount(block)
        left_out = (figures.sum() - sums) / (len(figures) - counts) if len(counts) > 1 else np.empty(0)
        return cls(float(figures.mean()), left_out)

    def __sub__(self, other: Series) -> Series:
        return Series(self.value - other.value, self.without - other.without)

    def __add__(self, other: Series) -> Series:
        return Series(self.value + other.value, self.without + other.without)

    def __truediv__(self, other: Series) -> Series:
        """Divide; the quotient is 0 where the divisor is 0."""
        value, without = (
            np.divide(mine, its, out=np.zeros_like(mine), where=its != 0)
            for mine, its in ((np.array(self.value), np.array(other.value)), (self.without, other.without))
        )
        return Series(float(value), without)

    def __mul__(self, factor: float) -> Series:
        return Series(self.value * factor, self.without * factor)

    @property
    def error(self) -> float | None:
        """The standard error by the delete-a-block jackknife; None where there is one block alone.

        ``sqrt((K - 1) / K * sum of squared deviations)`` (Efron & Tibshirani, An Introduction to the Bootstrap, 11.5).
        A statistic may be no number without some block, as a mean over classes is where one class is in that block
        alone. The others stand in for such blocks; where these are more than half, the error is None too.
        """
        known = self.without[np.isfinite(self.without)]
        count = len(self.without)
        return float(np.sqrt((count - 1) * known.var())) if count and len(known) * 2 >= count else None


def make_blocks(count: int, groups: NDArray[np.generic] | None) -> NDArray[np.int64]:
    """Return the block [N] of each sample for a jackknife: its group, or one of 32 where samples are independent.

    Of more than 128 groups several share a block, which is as independent of the others as they are.
    Where all samples are of one group, neighbours depend on each other, so the blocks are runs of neighbours.
    """
    if groups is None:
        return np.arange(count) % _BLOCKS
    blocks = np.unique(groups, return_inverse=True)[1]
    return blocks % _MOST_GROUPS if np.ptp(blocks) else np.arange(count) * _BLOCKS // count


def choosing_groups(groups: NDArray[np.generic] | None) -> NDArray[np.generic] | None:
    """Return the groups [N] of samples that networks are compared on to choose one of them.

    One group alone bounds nothing that holds for others. To choose it is enough what holds for that one, where runs of
    neighbours are the units; what ships is judged on groups as they are.
    """
    return groups if groups is None or len(np.unique(groups)) > 1 else make_blocks(len(groups), groups)
