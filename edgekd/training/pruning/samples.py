"""Training samples that an importance is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, Subset

from edgekd.training.task.protocol import as_dataset, collate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.training.task.protocol import Batch, Split

#: Training samples behind an importance.
_SAMPLES = 1024


@dataclass(frozen=True)
class DrawnBatches:
    """Batches of training samples drawn at random, the same every time: the first ones are often all of one class.

    Attributes:
        split: The split to draw from.
        batch_size: Samples in each batch.
        seed: Seed for drawing the samples.
        device: Device that the batches are moved to.
    """

    split: Split
    batch_size: int
    seed: int
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.split), generator=torch.Generator().manual_seed(self.seed))
        drawn = Subset(as_dataset(self.split), order[:_SAMPLES].tolist())
        loader: DataLoader[Batch] = DataLoader(drawn, self.batch_size, collate_fn=collate)
        return (batch.to(self.device) for batch in loader)
