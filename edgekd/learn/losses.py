"""Distillation losses, as plain functions of logits and embeddings.

The Gram loss is the mean squared difference of teacher's and student's Gram entries; see :mod:`edgekd.gram.matrix` for
the scopes and what is our reading of the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from edgekd.errors import TaskError
from edgekd.gram.matrix import cross_gram, intra_gram, joint_gram, normalize, sample_gram, stack
from edgekd.learn.task import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.recipe import Scope

#: Share of the mean squared length that keeps the gradient of normalisation bounded; see `gram.matrix.normalize`.
SOFTNESS = 1e-3


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy over labelled samples, 0 where there is none; logits [B, C], labels [B]."""
    if bool((labels == UNLABELLED).all()):
        return logits.sum() * 0
    return functional.cross_entropy(logits.float(), labels, ignore_index=UNLABELLED)


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 * KL(teacher || student)`` of softened logits [B, C], mean over samples (arXiv 1503.02531)."""
    log_student = functional.log_softmax(student.float() / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher.float() / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def gram_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], scope: Scope) -> Tensor:
    """Return the mean squared difference of the two sides' cosine Grams, in fp32 whatever autocast says.

    Diagonals are 1 on both sides and are left out of the mean, so that a scope's scale does not depend on the batch.

    Args:
        student: for each modality [B, D]; teacher and student may differ in D.
        teacher: for each modality [B, D'], no gradient is sent there.
        scope: `sample` (B of M x M), `intra` (M of B x B), `cross` (each pair's B x B), `joint` (BM x BM).

    Raises:
        TaskError: a scope other than `intra` compares modalities of different width.
    """
    with torch.autocast(next(iter(student.values())).device.type, enabled=False):
        student = {name: z.float() for name, z in student.items()}
        teacher = {name: z.detach().float() for name, z in teacher.items()}
        if scope == "intra":
            losses = [
                _off_diagonal(intra_gram(_soft(student[name])), intra_gram(_soft(teacher[name]))) for name in student
            ]
            return torch.stack(losses).mean()
        try:
            ours, theirs = stack(student, SOFTNESS), stack(teacher, SOFTNESS)
        except ValueError as error:
            raise TaskError(f"Gram scope '{scope}': {error}") from error
        if scope == "cross":
            return functional.mse_loss(cross_gram(ours), cross_gram(theirs))
        gram = sample_gram if scope == "sample" else joint_gram
        return _off_diagonal(gram(ours), gram(theirs))


def _soft(z: Tensor) -> Tensor:
    result: Tensor = normalize(z, SOFTNESS)
    return result


def _off_diagonal(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of symmetric matrices [..., n, n] over their off-diagonal entries."""
    n = ours.shape[-1]
    square = (ours - theirs).square()
    total = square.sum() - square.diagonal(dim1=-2, dim2=-1).sum()
    return total / (square.numel() // n * (n - 1))
