"""Mean and standard deviation of each channel of the training inputs, which stand in for a lost modality."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import TaskError
from edgekd.runtime.corruption import ChannelStatistics
from edgekd.training.loop.evaluate import batches
from edgekd.training.loop.weights import seed_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgekd.training.task.modality import Modality
    from edgekd.training.task.protocol import Split


def training_channels(split: Split, inputs: Sequence[Modality], seed: int) -> dict[str, ChannelStatistics]:
    """Read the training split once and return the statistics of each modality, over the samples that have it.

    Args:
        split: The training split.
        inputs: The task's inputs, which say what stands in for a modality where that is no mean.
        seed: Seed of the augmentation that the split may draw.

    Raises:
        TaskError: No sample has a modality.
    """
    seed_all(seed)
    modalities = {modality.name: modality for modality in inputs}
    moments = {name: _RunningMoments() for name, modality in modalities.items() if not modality.of}
    for batch in batches(split):
        for name, moment in moments.items():
            x, present = batch.inputs[name], batch.present.get(name)
            rows = x if present is None else x[present > 0]
            if modalities[name].is_float:
                moment.add(rows.double().numpy())
            moment.samples += len(rows)
    for name, moment in moments.items():
        if not moment.samples:
            raise TaskError(
                f"no training sample has the modality '{name}', so it has no mean to stand in for it: give some "
                "samples that have it, or take it out of the task's modalities"
            )
    return {name: _channels(name, moment, modalities) for name, moment in moments.items()}


def _channels(name: str, moments: _RunningMoments, modalities: Mapping[str, Modality]) -> ChannelStatistics:
    modality = modalities[name]
    companions = {
        key: _full(other, other.absent)
        for key, other in modalities.items()
        if other.of == name and other.absent is not None
    }
    if not modality.is_float:
        assert modality.stand_in is not None
        return ChannelStatistics(_full(modality, modality.stand_in), None, companions)
    mean, deviation = moments.channels()
    given = None if modality.absent is None else np.full_like(mean, modality.absent)
    return ChannelStatistics((mean if given is None else given).astype(modality.dtype), deviation, companions)


def _full(modality: Modality, value: float) -> NDArray[np.generic]:
    return np.asarray(value, modality.dtype)


class _RunningMoments:
    """Mean and squared deviations, updated chunk by chunk (Chan, Golub and LeVeque) so that no digits are lost."""

    def __init__(self) -> None:
        self.samples = 0
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

    def channels(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and standard deviation, in single precision."""
        deviation = np.sqrt(self._squares / self.count)
        return np.asarray(self._mean, np.float32), np.asarray(deviation, np.float32)
