"""Losses of scores of classes: one class a sample, one at every position of a map, or one at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from edgekd.stages.labels import UNLABELLED
from edgekd.training.distillation.losses.logits import cross_entropy, kd_loss

if TYPE_CHECKING:
    from torch import Tensor

    from edgekd.training.distillation.kinds.facts import OutputFacts


def class_loss(output: Tensor, target: Tensor, facts: OutputFacts) -> Tensor:
    """Return the cross entropy, mean over all that is labelled, 0 where nothing is.

    Args:
        output: Scores [B, C], [B, C, ...] of maps or [B, T, C] of sequences.
        target: Classes [B], [B, ...] or [B, T]; UNLABELLED (-100) does not count.
        facts: What the output is.
    """
    rows = class_rows(output, facts)
    return cross_entropy(rows, target.reshape(len(rows)).long())


def class_distillation(student: Tensor, teacher: Tensor, facts: OutputFacts) -> Tensor:
    """Return ``T^2 * KL(teacher || student)`` of softened scores, mean over samples, positions or steps."""
    return kd_loss(class_rows(student, facts), class_rows(teacher, facts), facts.temperature)


def ctc_loss(output: Tensor, target: Tensor, facts: OutputFacts) -> Tensor:
    """Return the loss of connectionist temporal classification, mean over tokens and then over samples.

    Args:
        output: Scores [B, T, C].
        target: Tokens [B, L], filled up with UNLABELLED (-100) or the blank.
        facts: What the output is, with its blank.
    """
    blank = facts.kind.blank
    assert blank is not None
    log_p = class_rows(output, facts).log_softmax(1).view(output.shape).transpose(0, 1)
    there = (target != UNLABELLED) & (target != blank)
    lengths = there.sum(1)
    if not bool(there.any()):
        return output.sum() * 0
    steps = torch.full_like(lengths, output.shape[1])
    return functional.ctc_loss(log_p, target[there], steps, lengths, blank, zero_infinity=True)


def sequence_loss(output: Tensor, target: Tensor, facts: OutputFacts) -> Tensor:
    """Return the loss of a sequence: CTC's where it has a blank, else the cross entropy of its steps."""
    return (class_loss if facts.kind.blank is None else ctc_loss)(output, target, facts)


def class_rows(output: Tensor, facts: OutputFacts) -> Tensor:
    """Return logits with a row for each sample, position or step, in single precision [R, C]."""
    axis = facts.kind.class_axis
    assert axis is not None
    rows = output.float().movedim(axis, -1).reshape(-1, output.shape[axis])
    return rows.clamp_min(torch.finfo(rows.dtype).tiny).log() if facts.kind.probabilities else rows
