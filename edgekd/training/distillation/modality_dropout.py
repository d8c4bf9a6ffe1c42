"""Modality dropout: the student learns to work without a modality, since its targets never depend on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgekd.runtime.corruption import ChannelStatistics
    from edgekd.training.task.protocol import Batch


class ModalityDropout:
    """Replaces modalities of single samples by what stands in for them, and excludes their embeddings from all losses.

    It is the training mean, or what the task says; their masks and lengths are replaced where the task says by what.

    The embedding of a mean says nothing of its sample. On digits with p = 0.3 (means of five seeds), aligning it with
    the teacher's doubled the drift from the teacher (0.105 instead of 0.052) and cost 0.6 points of accuracy; with a
    modality missing it was worth 0.4 points. Without any dropout the drift is 0.066, and accuracy with one modality
    missing is 14 points lower.

    Each modality that a sample has is dropped with the same probability p, except one, drawn evenly, that stays where
    all would be dropped: of M modalities each is dropped with probability ``p - p^M / M``. Random numbers come from
    torch's global generator, which training seeds by seed and epoch.

    Args:
        channels: Of each modality what stands in for it.
        probability: The probability p.
    """

    def __init__(self, channels: Mapping[str, ChannelStatistics], probability: float) -> None:
        self._modalities = list(channels)
        self._stand_ins = {
            name: {key: torch.from_numpy(np.asarray(x)) for key, x in {name: known.mean, **known.companions}.items()}
            for name, known in channels.items()
        }
        self._probability = probability

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch that the student is given; the argument stays as it is."""
        dropped, available = self.draw(batch)
        inputs, present = dict(batch.inputs), {}
        for index, name in enumerate(self._modalities):
            for key, stand_in in self._stand_ins[name].items():
                x = batch.inputs[key]
                where = dropped[:, index].to(x.device).view(-1, *[1] * (x.dim() - 1))
                inputs[key] = torch.where(where, stand_in.to(x.device, x.dtype), x)
            present[name] = (available[:, index] & ~dropped[:, index]).to(batch.labels.device, torch.float32)
        return replace(batch, inputs=inputs, present=present)

    def draw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return which modalities of each sample are dropped, and which it has: two masks [B, M] on the CPU."""
        available = torch.ones(len(batch.ids), len(self._modalities), dtype=torch.bool)
        for index, name in enumerate(self._modalities):
            if name in batch.present:
                available[:, index] = batch.present[name].cpu() > 0
        drawn = torch.rand(available.shape)
        stays = drawn.masked_fill(~available, -1).argmax(1, keepdim=True)
        return ((drawn < self._probability) & available).scatter(1, stays, False), available
