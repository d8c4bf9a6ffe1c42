"""In which batches, and in which order, training goes through the samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import Sampler

from edgekd.errors import RecipeError
from edgekd.training.loop import distributed
from edgekd.training.loop.settings import count_batches

if TYPE_CHECKING:
    from collections.abc import Iterator


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch of a training."""
    return seed * 100_003 + epoch


class BatchOrder(Sampler[list[int]]):
    """Every sample once an epoch, in an order decided by seed and epoch alone, in batches of nearly one size.

    No batch is left with a single sample, which has no batch statistics and no batch-wide Gram. Each is given in as
    many parts as gradients are accumulated over, and each of several processes has its own share of every part.

    Args:
        length: Number of samples.
        batch_size: Samples in a batch.
        seed: Seed of the order.
        parts: Parts that each batch is given in.

    Attributes:
        epoch: Number of the epoch that is gone through next.
        count: Batches in an epoch.

    Raises:
        RecipeError: A share would be of fewer than two samples.
    """

    def __init__(self, length: int, batch_size: int, seed: int, parts: int) -> None:
        self.length, self.seed, self.parts, self.epoch = length, seed, parts, 0
        self.count = count_batches(length, batch_size)
        smallest, shares = length // self.count, parts * distributed.world_size()
        if shares > 1 and smallest < 2 * shares:
            raise RecipeError(
                f"batches of {smallest} samples leave fewer than two to a share (accumulate = {parts}, processes = "
                f"{distributed.world_size()}): raise batch_size, or make fewer shares"
            )

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        parts = [part for batch in order.tensor_split(self.count) for part in batch.tensor_split(self.parts)]
        return iter([part.tensor_split(distributed.world_size())[distributed.rank()].tolist() for part in parts])

    def __len__(self) -> int:
        return self.count * self.parts

    @property
    def weights(self) -> list[float]:
        """The share that each part has of its batch."""
        batches = torch.arange(self.length).tensor_split(self.count)
        return [len(part) / len(batch) for batch in batches for part in batch.tensor_split(self.parts)]
