"""Mean and standard deviation of each channel of the training inputs: what stands in for a modality that is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import TaskError
from edgekd.runtime.corruption import ChannelStatistics
from edgekd.training.loop.evaluate import batches
from edgekd.training.loop.weights import seed_all

if TYPE_CHECKING:
    from edgekd.training.task.protocol import Split

    Array = np.ndarray[Any, Any]


def training_channels(split: Split, seed: int) -> dict[str, ChannelStatistics]:
    """Read a split once and return the statistics of each modality, over the samples that have it.

    Args:
        split: the training split.
        seed: of whatever augmentation the split draws.

    Raises:
        TaskError: no sample has a modality.
    """
    seed_all(seed)
    moments: dict[str, _RunningMoments] = {}
    for batch in batches(split):
        for name, x in batch.inputs.items():
            there = batch.present.get(name)
            rows = x if there is None else x[there > 0]
            moments.setdefault(name, _RunningMoments()).add(rows.double().numpy())
    for name, found in moments.items():
        if not found.count:
            raise TaskError(
                f"no training sample has the modality '{name}', so it has no mean to stand in for it: give some "
                "samples that have it, or take it out of the task's modalities"
            )
    return {name: found.channels() for name, found in moments.items()}


class _RunningMoments:
    """Mean and squared deviations, joined chunk by chunk (Chan, Golub and LeVeque), which loses no digits."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, rows: Array) -> None:
        """Add rows [N, C, ...] of float64."""
        if not len(rows):
            return
        over = tuple(axis for axis in range(rows.ndim) if axis != 1)
        mean = rows.mean(over, keepdims=True)[0]
        squares = ((rows - mean) ** 2).sum(over, keepdims=True)[0]
        count = rows.size // mean.size
        apart, total = mean - self._mean, self.count + count
        self._squares = self._squares + squares + apart**2 * self.count * count / total
        self._mean = self._mean + apart * count / total
        self.count = total

    def channels(self) -> ChannelStatistics:
        """Return what was found, in single precision as the inputs are."""
        deviation = np.sqrt(self._squares / self.count)
        return ChannelStatistics(np.asarray(self._mean, np.float32), np.asarray(deviation, np.float32))
