"""Mean and standard deviation of each channel of the training inputs, which stand in for a lost modality."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import TaskError
from edgekd.runtime.corruption import ChannelStatistics
from edgekd.training.loop.evaluate import batches
from edgekd.training.loop.weights import seed_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekd.training.task.protocol import Split


def training_channels(split: Split, seed: int) -> dict[str, ChannelStatistics]:
    """Read a split once and return the statistics of each modality, over the samples that have it.

    Args:
        split: The training split.
        seed: Seed of the augmentation that the split may draw.

    Raises:
        TaskError: No sample has a modality.
    """
    seed_all(seed)
    moments: dict[str, _RunningMoments] = {}
    for batch in batches(split):
        for name, x in batch.inputs.items():
            present = batch.present.get(name)
            rows = x if present is None else x[present > 0]
            moments.setdefault(name, _RunningMoments()).add(rows.double().numpy())
    for name, modality in moments.items():
        if not modality.count:
            raise TaskError(
                f"no training sample has the modality '{name}', so it has no mean to stand in for it: give some "
                "samples that have it, or take it out of the task's modalities"
            )
    return {name: modality.channels() for name, modality in moments.items()}


class _RunningMoments:
    """Mean and squared deviations, updated chunk by chunk (Chan, Golub and LeVeque) so that no digits are lost."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: NDArray[np.float64] = np.zeros(())
        self._squares: NDArray[np.float64] = np.zeros(())

    def add(self, rows: NDArray[np.float64]) -> None:
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
        """Return mean and standard deviation, in single precision as the inputs are."""
        deviation = np.sqrt(self._squares / self.count)
        return ChannelStatistics(np.asarray(self._mean, np.float32), np.asarray(deviation, np.float32))
