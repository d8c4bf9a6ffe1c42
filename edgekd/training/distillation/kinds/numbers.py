"""Losses of numbers, in units of how much the training targets vary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from edgekd.training.distillation.kinds.facts import OutputFacts


def number_loss(output: Tensor, target: Tensor, facts: OutputFacts) -> Tensor:
    """Return the squared error over the training variance of each element, mean over what is labelled, else 0.

    Args:
        output: Numbers [B, ...].
        target: What they should be [B, ...], NaN where that is not known; dimensions of 1 do not matter.
        facts: What the output is, with the variance.
    """
    expected = target.reshape(output.shape).float()
    known = ~expected.isnan()
    if not bool(known.any()):
        return output.sum() * 0
    return (_error(output, torch.where(known, expected, output.detach().float()), facts)[known]).mean()


def number_distillation(student: Tensor, teacher: Tensor, facts: OutputFacts) -> Tensor:
    """Return the squared difference over the training variance of each element, the mean."""
    return _error(student, teacher, facts).mean()


def _error(output: Tensor, other: Tensor, facts: OutputFacts) -> Tensor:
    squares = (output.float() - other.float()) ** 2
    if facts.variance is None:
        return squares
    variance = facts.variance.to(squares.device).reshape(output.shape[1:])
    return squares / variance.clamp_min(torch.finfo(torch.float32).tiny)
