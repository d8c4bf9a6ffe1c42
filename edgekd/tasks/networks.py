"""Networks of the shipped tasks that are more than encoders and a head of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class WordEncoder(nn.Module):
    """Token ids [B, T], 0 to fill up -> embedding [B, width]: the mean of the words' vectors, through a hidden layer.

    Args:
        buckets: Number of different ids.
        vector: Width of a word's vector.
        width: Width of the embedding.
    """

    def __init__(self, buckets: int, vector: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(buckets, vector)
        self.drop = nn.Dropout(0.2)
        self.hidden = nn.Linear(vector, width)
        self.embed = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode token ids; a text without words is all zeros before the first layer."""
        there = (tokens != 0).unsqueeze(2).float()
        mean = (self.vectors(tokens) * there).sum(1) / there.sum(1).clamp_min(1.0)
        embedding: Tensor = self.embed(torch.relu(self.hidden(self.drop(mean))))
        return embedding


class Unscaled(nn.Module):
    """Turn standard scores [B, K] into values in the targets' own units, inside the model, as an app reads them.

    Args:
        targets: Training targets [N, K] to take mean and standard deviation from.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, targets: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", targets.mean(0))
        self.register_buffer("deviation", targets.std(0).clamp_min(1e-6))

    def forward(self, scores: Tensor) -> Tensor:
        """Scale and shift."""
        return scores * self.deviation + self.mean


class Matching(nn.Module):
    """One encoder for each of two modalities, a head of classes on both, and a vector of each by which they match.

    Args:
        encoders: For each modality, in order, a module [B, ...] -> [B, width].
        width: Width of every embedding.
        hidden: Number of hidden units of the head.
        classes: Number of classes.
        vector: Width of the vectors.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], width: int, hidden: int, classes: int, vector: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.head = nn.Sequential(
            nn.ReLU(), nn.Linear(width * len(encoders), hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )
        self.vectors = nn.ModuleDict({name: nn.Linear(width, vector) for name in encoders})

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the group's logits [B, classes], and for each modality its vector [B, vector]."""
        embeddings = {name: encoder(x) for (name, encoder), x in zip(self.encoders.items(), inputs, strict=True)}
        vectors = {f"{name}_vector": self.vectors[name](z) for name, z in embeddings.items()}
        return {"group": self.head(torch.cat(list(embeddings.values()), dim=1)), **vectors}


class TwoScales(nn.Module):
    """A patch [B, 1, S, S] close by and one of its surroundings -> logits of each pixel [B, classes, S, S].

    Args:
        channels: Channels at the full, and at the half and the quarter resolution.
        classes: Number of classes.
        steps: For each modality, in order, the module that standardises it.
    """

    def __init__(self, channels: Sequence[int], classes: int, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        fine, middle = channels
        self.fine = nn.Sequential(steps[0], *_block(1, fine))
        self.detail = nn.Sequential(*_block(fine, middle, stride=2), *_block(middle, middle))
        self.surroundings = nn.Sequential(steps[1], *_block(1, middle, stride=2), *_block(middle, middle, stride=2))
        self.wide = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.joined = nn.Sequential(*_block(2 * middle, middle), nn.Upsample(scale_factor=2.0, mode="nearest"))
        self.answer = nn.Sequential(*_block(fine + middle, fine), nn.Conv2d(fine, classes, 1))

    def forward(self, detail: Tensor, surroundings: Tensor) -> Tensor:
        """Return the logits of each pixel of the patch close by."""
        fine = self.fine(detail)
        joined = self.joined(torch.cat([self.detail(fine), self.wide(self.surroundings(surroundings))], dim=1))
        logits: Tensor = self.answer(torch.cat([fine, joined], dim=1))
        return logits


def _block(source: int, sink: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(source, sink, 3, stride, padding=1, bias=False), nn.BatchNorm2d(sink), nn.ReLU()]
