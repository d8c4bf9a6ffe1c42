"""Several teachers as one network, for the ledger and the export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekd.config.recipe import Tap
from edgekd.gram.matrix import normalize
from edgekd.training.distillation.references import join_answers
from edgekd.training.taps.taps import NetworkTaps, TappedModel, outputs_read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Ensemble(nn.Module):
    """Members whose outputs are joined: of scores the mean probability is taken, else the mean.

    The embedding of a modality is the concatenation of the members' embeddings at unit length, divided by the root of
    their number, so that its cosines are the mean of the members' cosines.

    Args:
        members: Networks of the same class.
        taps: For each modality where a member's embedding is; the ensemble's own are at :attr:`taps`.
    """

    def __init__(self, members: Sequence[nn.Module], taps: Mapping[str, Tap]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.embeddings = nn.ModuleList(nn.Identity() for _ in taps)
        self._of_members = NetworkTaps(taps, outputs_read(taps))

    @property
    def taps(self) -> NetworkTaps:
        """For each modality where the ensemble's embedding is."""
        taps = {name: Tap(module=f"embeddings.{index}") for index, name in enumerate(self._of_members)}
        return NetworkTaps(taps, outputs_read(self._of_members))

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs [B, ...] by name of the inputs' batches, in order."""
        readings = []
        for member in self.members:
            with TappedModel(member, self._of_members) as tapped:
                readings.append(tapped(list(inputs)))
        for tap, name in zip(self.embeddings, self._of_members, strict=True):
            units = [normalize(embeddings[name]) for _, embeddings in readings]
            tap(torch.cat(units, 1) / len(units) ** 0.5)
        return join_answers([answers for answers, _ in readings], self._of_members.outputs)


def members(model: nn.Module) -> list[nn.Module]:
    """Return the networks that a teacher consists of: an ensemble's members, or itself."""
    return list(model.members) if isinstance(model, Ensemble) else [model]


def taps_of(model: nn.Module, taps: Mapping[str, Tap]) -> Mapping[str, Tap]:
    """Return the taps of a teacher: an ensemble's own, or else those that are given."""
    return model.taps if isinstance(model, Ensemble) else taps
