"""What a student learns from: one frozen network, or several."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from edgekd.training.distillation.outputs import NetworkOutputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from edgekd.training.taps.taps import TapOutputs, TappedModel
    from edgekd.training.task.protocol import Batch


@dataclass(frozen=True)
class ReferenceOutputs:
    """What a reference gives for a batch.

    Attributes:
        logits: Logits [B, C] of all its networks together.
        networks: Logits and embeddings of each of its networks.
    """

    logits: Tensor
    networks: Sequence[NetworkOutputs]


class Reference(Protocol):
    """Gives for each batch what the student is to learn; no gradient flows into it."""

    def __call__(self, batch: Batch) -> ReferenceOutputs:
        """Return the outputs for a batch."""


class LiveReference:
    """Networks that run on every batch, frozen and in evaluation mode.

    Where there are several, the student is aligned with the embeddings of each (its Gram with the mean of their
    Grams), and the logits are the logarithm of their mean probability.

    Args:
        networks: One network or more, with the same taps.
    """

    def __init__(self, *networks: TappedModel) -> None:
        self.networks = networks
        for tapped in networks:
            tapped.model.eval()
            tapped.model.requires_grad_(False)

    def __call__(self, batch: Batch) -> ReferenceOutputs:
        """Run the networks on a batch."""
        with torch.no_grad():
            outputs = [float_outputs(tapped.read(list(batch.inputs.values()))) for tapped in self.networks]
        return combine_outputs(outputs)


def combine_outputs(networks: Sequence[NetworkOutputs]) -> ReferenceOutputs:
    """Return what networks give together; their logits are the logarithm of their mean probability, or one's own."""
    if len(networks) == 1:
        return ReferenceOutputs(networks[0].logits, networks)
    return ReferenceOutputs(mean_logits([network.logits for network in networks]), networks)


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean probability of networks whose logits are [B, C] each."""
    return torch.stack([x.log_softmax(1) for x in logits]).logsumexp(0) - math.log(len(logits))


def float_outputs(outputs: TapOutputs) -> NetworkOutputs:
    """Return what was read of a network in float32, whatever autocast made of it."""
    return NetworkOutputs(
        outputs.logits.float(),
        {name: z.float() for name, z in outputs.embeddings.items()},
        {name: output.float() for name, output in outputs.outputs.items()},
    )
