"""Encoders and a late-fusion network, for tasks that have no networks of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Standardize(nn.Module):
    """Subtract a mean and divide by a standard deviation, inside the model, so that an app feeds raw values.

    Args:
        samples: Samples [N, C, ...] to take the statistics from, for each channel C over all other dimensions.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, samples: Tensor) -> None:
        super().__init__()
        over = [dim for dim in range(samples.dim()) if dim != 1]
        self.register_buffer("mean", samples.mean(over))
        self.register_buffer("variance", samples.var(over).clamp_min(1e-12))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise [B, C, ...]; as batch_norm it is one node of the exported graph, not two."""
        return functional.batch_norm(x, self.mean, self.variance, eps=0.0)


class MlpEncoder(nn.Sequential):
    """Vector [B, inputs] -> embedding [B, width], with one hidden layer for each of ``hidden``."""

    def __init__(self, inputs: int, hidden: Sequence[int], width: int) -> None:
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(inputs, size), nn.ReLU()]
            inputs = size
        super().__init__(*layers, nn.Linear(inputs, width))


class _ConvEncoder(nn.Module):
    """Convolutions with stride 2, BatchNorm and ReLU, averaged over space or time, then a linear embedding."""

    def __init__(self, dimensions: int, channels: Sequence[int], kernel: int, width: int) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d}[dimensions]
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dimensions]
        layers: list[nn.Module] = []
        for index in range(len(channels) - 1):
            source, sink = channels[index], channels[index + 1]
            layers += [conv(source, sink, kernel, stride=2, padding=kernel // 2, bias=False), norm(sink), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.embed = nn.Linear(channels[-1], width)

    def forward(self, x: Tensor) -> Tensor:
        """Encode [B, C, ...] to [B, width]."""
        embedding: Tensor = self.embed(self.features(x).flatten(2).mean(2))
        return embedding


class Conv1dEncoder(_ConvEncoder):
    """Series [B, channels[0], T] -> embedding [B, width]; each further channel count is one stride-2 convolution."""

    def __init__(self, channels: Sequence[int], width: int, kernel: int = 5) -> None:
        super().__init__(1, channels, kernel, width)


class Conv2dEncoder(_ConvEncoder):
    """Image [B, channels[0], H, W] -> embedding [B, width]; each further channel count is one stride-2 convolution."""

    def __init__(self, channels: Sequence[int], width: int, kernel: int = 3) -> None:
        super().__init__(2, channels, kernel, width)


class LateFusion(nn.Module):
    """One encoder for each modality, embeddings concatenated, a small head on top.

    Args:
        encoders: For each modality, in order, a module [B, ...] -> [B, width].
        width: Width of every embedding.
        hidden: Number of hidden units of the head.
        classes: Number of classes.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.head = nn.Sequential(
            nn.ReLU(), nn.Linear(width * len(encoders), hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits [B, classes] of the modalities' batches, in order."""
        embeddings = [encoder(x) for encoder, x in zip(self.encoders.values(), inputs, strict=True)]
        logits: Tensor = self.head(torch.cat(embeddings, dim=1))
        return logits
