"""What a student learns from: one frozen network, or several."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from edgekd.training.distillation.terms import Side

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from edgekd.training.taps.taps import TapOutputs, TappedModel
    from edgekd.training.task.protocol import Batch


@dataclass(frozen=True)
class Known:
    """What a reference says of a batch.

    Attributes:
        logits: [B, C].
        sides: of each of its networks logits and embeddings.
    """

    logits: Tensor
    sides: Sequence[Side]


class Reference(Protocol):
    """Anything that says of a batch what the student is to learn; no gradient goes there."""

    def __call__(self, batch: Batch) -> Known:
        """Return it."""


class Live:
    """Networks that run on every batch, frozen and in evaluation mode.

    Of several, each has its embeddings aligned with (the Gram with the mean of theirs), and the logits are the
    logarithm of their mean probability.

    Args:
        networks: one or more, tapped alike.
    """

    def __init__(self, *networks: TappedModel) -> None:
        self.networks = networks
        for tapped in networks:
            tapped.model.eval()
            tapped.model.requires_grad_(False)

    def __call__(self, batch: Batch) -> Known:
        """Run them."""
        with torch.no_grad():
            sides = [side(tapped.read(list(batch.inputs.values()))) for tapped in self.networks]
        return known(sides)


def known(sides: Sequence[Side]) -> Known:
    """Return what networks say together: logits that are the logarithm of their mean probability, or one's own."""
    if len(sides) == 1:
        return Known(sides[0].logits, sides)
    return Known(mean_logits([one.logits for one in sides]), sides)


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean probability of networks whose logits are [B, C] each."""
    return torch.stack([one.log_softmax(1) for one in logits]).logsumexp(0) - math.log(len(logits))


def side(reading: TapOutputs) -> Side:
    """Return a reading in fp32, whatever autocast made of it."""
    return Side(
        reading.logits.float(),
        {name: z.float() for name, z in reading.embeddings.items()},
        {name: output.float() for name, output in reading.outputs.items()},
    )
