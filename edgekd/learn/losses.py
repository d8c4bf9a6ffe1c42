"""Distillation losses, as plain functions of logits and embeddings.

The Gram loss is the mean squared difference of teacher's and student's Gram entries; see :mod:`edgekd.gram.matrix` for
the scopes and what is our reading of the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from edgekd.gram.matrix import cross_gram, intra_gram, joint_gram, sample_gram, stack
from edgekd.learn.score import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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


def gram_losses(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], scopes: Iterable[Scope]
) -> dict[Scope, Tensor]:
    """Return for each scope the mean squared difference of the two sides' cosine Grams, in fp32 whatever autocast says.

    The mean is over the entries off the diagonal: on it both sides are 1, but for `SOFTNESS`, and add next to nothing.

    Args:
        student: for each modality [B, D]; teacher and student may differ in D.
        teacher: for each modality [B, D'], no gradient is sent there.
        scopes: `sample` (B of M x M), `intra` (M of B x B), `cross` (each pair's B x B), `joint` (BM x BM).

    Raises:
        ValueError: the modalities of one side differ in width.
    """
    with torch.autocast(next(iter(student.values())).device.type, enabled=False):
        ours = stack({name: z.float() for name, z in student.items()}, SOFTNESS)
        with torch.no_grad():
            theirs = stack({name: z.float() for name, z in teacher.items()}, SOFTNESS)
        return {scope: _difference(_GRAMS[scope](ours), _GRAMS[scope](theirs), scope) for scope in scopes}


_GRAMS = {"sample": sample_gram, "intra": intra_gram, "cross": cross_gram, "joint": joint_gram}


def _difference(ours: Tensor, theirs: Tensor, scope: Scope) -> Tensor:
    loss = functional.mse_loss(ours, theirs)
    if scope == "cross":  # no diagonal: these are inner products of two modalities
        return loss
    size = ours.shape[-1]
    return loss * (size / (size - 1))
