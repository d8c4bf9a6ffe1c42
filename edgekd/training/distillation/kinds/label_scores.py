"""Losses of scores of labels, any of which may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from edgekd.training.distillation.kinds.facts import OutputFacts


def label_loss(output: Tensor, target: Tensor, facts: OutputFacts) -> Tensor:
    """Return the binary cross entropy, mean over all labels that are known, 0 where none is.

    Args:
        output: Scores [B, L].
        target: 1 where a label holds, 0 where it does not [B, L]; NaN, or less than 0, where that is not known.
        facts: What the output is.
    """
    known = target >= 0  # not so of NaN
    if not bool(known.any()):
        return output.sum() * 0
    logits = label_logits(output, facts)
    return functional.binary_cross_entropy_with_logits(logits[known], target[known].to(logits.dtype))


def label_distillation(student: Tensor, teacher: Tensor, facts: OutputFacts) -> Tensor:
    """Return ``T^2 * KL(teacher || student)`` of each softened label, mean over labels and samples.

    It is the binary cross entropy with the teacher's probabilities, without their entropy, which is none of the
    student's.
    """
    ours, theirs = (label_logits(side, facts) / facts.temperature for side in (student, teacher))
    soft = theirs.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(theirs, soft)
    return (functional.binary_cross_entropy_with_logits(ours, soft) - entropy) * facts.temperature**2


def label_logits(output: Tensor, facts: OutputFacts) -> Tensor:
    """Return scores of labels as logits, in single precision."""
    x = output.float()
    return torch.logit(x, eps=1e-7) if facts.kind.probabilities else x
