"""What a student learns from: one frozen network, or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from edgekd.training.distillation.kinds.registry import joined_outputs
from edgekd.training.distillation.outputs import NetworkOutputs
from edgekd.training.taps.taps import outputs_read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from edgekd.gram.output_kind import OutputKind
    from edgekd.training.taps.taps import TapOutputs, TappedModel
    from edgekd.training.task.protocol import Batch


@dataclass(frozen=True)
class ReferenceOutputs:
    """What a reference gives for a batch.

    Attributes:
        answers: Outputs [B, ...] of all its networks together, by name.
        networks: Outputs and embeddings of each of its networks.
    """

    answers: Mapping[str, Tensor]
    networks: Sequence[NetworkOutputs]


class Reference(Protocol):
    """Gives for each batch what the student is to learn; no gradient flows into it."""

    def __call__(self, batch: Batch) -> ReferenceOutputs:
        """Return the outputs for a batch."""


class LiveReference:
    """Networks that run on every batch, frozen and in evaluation mode.

    Where there are several, the student is aligned with the embeddings of each (its Gram with the mean of their
    Grams), and their outputs are joined: of scores the mean probability is taken, else the mean.

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
        return combine_outputs(outputs, self.kinds)

    @property
    def kinds(self) -> Mapping[str, OutputKind]:
        """What each output of the networks is, by name."""
        return outputs_read(self.networks[0].taps)


def combine_outputs(networks: Sequence[NetworkOutputs], kinds: Mapping[str, OutputKind]) -> ReferenceOutputs:
    """Return what networks give together; see :func:`~edgekd.training.distillation.kinds.registry.joined_outputs`."""
    return ReferenceOutputs(join_answers([network.answers for network in networks], kinds), networks)


def join_answers(answers: Sequence[Mapping[str, Tensor]], kinds: Mapping[str, OutputKind]) -> dict[str, Tensor]:
    """Return the outputs that several networks give together."""
    return {name: joined_outputs([one[name] for one in answers], kind) for name, kind in kinds.items()}


def float_outputs(outputs: TapOutputs) -> NetworkOutputs:
    """Return what was read of a network in float32, whatever autocast made of it."""
    return NetworkOutputs(
        {name: x.float() for name, x in outputs.answers.items()},
        {name: z.float() for name, z in outputs.embeddings.items()},
        {name: output.float() for name, output in outputs.outputs.items()},
    )
