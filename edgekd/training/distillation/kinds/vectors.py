"""Losses of embeddings that are compared by their direction, as for retrieval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from edgekd.stages.labels import UNLABELLED

if TYPE_CHECKING:
    from torch import Tensor

    from edgekd.training.distillation.kinds.facts import OutputFacts

#: Softening of the cosines, as in the paper's code.
_TEMPERATURE = 0.1


def contrastive_loss(output: Tensor, target: Tensor, facts: OutputFacts) -> Tensor:  # noqa: ARG001  (as all losses)
    """Return the supervised contrastive loss (Khosla et al., arXiv 2004.11362), 0 where no two samples are alike.

    Of each sample with others of its label, the mean over those of the negative logarithm of the share that the other
    has among all samples; the mean over such samples.

    Args:
        output: Embeddings [B, D].
        target: Labels [B]; UNLABELLED (-100) is like no other.
        facts: What the output is.
    """
    z = functional.normalize(output.float().flatten(1), dim=1)
    labels = target.reshape(len(z))
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    alike = (labels[:, None] == labels[None]) & (labels != UNLABELLED)[:, None] & ~itself
    anchors = alike.any(1)
    if not bool(anchors.any()):
        return output.sum() * 0
    log_share = (z @ z.T / _TEMPERATURE).masked_fill(itself, -torch.inf).log_softmax(1).masked_fill(itself, 0)
    return -((log_share * alike).sum(1)[anchors] / alike.sum(1)[anchors]).mean()


def direction_loss(student: Tensor, teacher: Tensor, facts: OutputFacts) -> Tensor:  # noqa: ARG001  (as all losses)
    """Return 1 - cosine to the teacher's embedding; where widths differ, the squared error of the samples' cosines."""
    ours, theirs = (functional.normalize(side.float().flatten(1), dim=1) for side in (student, teacher))
    if ours.shape == theirs.shape:
        return 1 - (ours * theirs).sum(1).mean()
    return (ours @ ours.T - theirs @ theirs.T).square().mean()
