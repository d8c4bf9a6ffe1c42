"""Losses of logits: cross entropy, and losses that compare the student's predictions with the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from edgekd.stages.labels import UNLABELLED
from edgekd.training.distillation.loss import Loss, LossOptions

if TYPE_CHECKING:
    from torch import Tensor

Temperature = Annotated[
    Annotated[float, Meta(ge=0.01, le=1000)] | None,
    Meta(description="T, the softening of both sides' logits; by default that of KD."),
]


class DkdOptions(LossOptions, frozen=True):
    """Options of decoupled KD."""

    temperature: Temperature = None
    beta: Annotated[
        float,
        Meta(
            ge=0,
            le=1_000_000,
            description="Weight of the classes that are not the target; 8 is the paper's on CIFAR-100.",
        ),
    ] = 8.0


class DistOptions(LossOptions, frozen=True):
    """Options of DIST."""

    temperature: Temperature = None


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy over labelled samples, 0 where there is none; logits [B, C], labels [B]."""
    from torch.nn import functional

    if bool((labels == UNLABELLED).all()):
        return logits.sum() * 0
    return functional.cross_entropy(logits.float(), labels, ignore_index=UNLABELLED)


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 * KL(teacher || student)`` of softened logits [B, C], mean over samples (arXiv 1503.02531)."""
    from torch.nn import functional

    log_student = functional.log_softmax(student.float() / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher.float() / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def dkd_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, beta: float) -> Tensor:
    """Return decoupled KD (arXiv 2203.08679): ``T^2 (TCKD + beta * NCKD)``, mean over samples.

    TCKD is the KL divergence of the binary distributions (target, rest), NCKD that among the other classes.

    Args:
        student: Logits [B, C].
        teacher: Logits [B, C].
        labels: Target classes [B]; a sample without one has the teacher's first choice as its target.
        temperature: T.
        beta: Weight of NCKD; the paper's is 8 on CIFAR-100, with 1 for TCKD.
    """
    import torch
    from torch.nn import functional

    target = torch.where(labels == UNLABELLED, teacher.argmax(1), labels)
    chosen = functional.one_hot(target, student.shape[1]).bool()
    ours, theirs = (functional.log_softmax(side.float() / temperature, dim=1) for side in (student, teacher))
    binary = functional.kl_div(_binary(ours, chosen), _binary(theirs, chosen), reduction="batchmean", log_target=True)
    rest = [_others(side.float() / temperature, chosen) for side in (student, teacher)]
    others = functional.kl_div(rest[0], rest[1], reduction="batchmean", log_target=True)
    return (binary + beta * others) * temperature**2


def _binary(log_softmax: Tensor, chosen: Tensor) -> Tensor:
    """Return the log-probabilities of the target and of all others together: [B, C] -> [B, 2]."""
    import torch

    others = log_softmax.masked_fill(chosen, -torch.inf).logsumexp(1)
    return torch.stack([log_softmax[chosen], others], 1)


def _others(scaled: Tensor, chosen: Tensor) -> Tensor:
    """Return the log-probabilities among the classes that are not the target: [B, C] -> [B, C - 1]."""
    from torch.nn import functional

    return functional.log_softmax(scaled[~chosen].view(len(scaled), -1), dim=1)


def dist_loss(student: Tensor, teacher: Tensor, labels: Tensor | None = None, *, temperature: float) -> Tensor:  # noqa: ARG001  (every loss of logits is given labels)
    """Return DIST (arXiv 2205.10536): 1 - Pearson of the predictions, across classes and across samples, times T^2.

    The sum of the inter-class term (each sample's classes) and the intra-class term (each class over the samples), both
    with weight 1, the authors' default.

    Args:
        student: Logits [B, C].
        teacher: Logits [B, C].
        labels: Not used.
        temperature: T.
    """
    from torch.nn import functional

    ours, theirs = (functional.softmax(side.float() / temperature, dim=1) for side in (student, teacher))
    inter = 1 - _pearson(ours, theirs).mean()
    intra = 1 - _pearson(ours.T, theirs.T).mean()
    return (inter + intra) * temperature**2


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation of each row of one matrix with the same row of the other."""
    from torch.nn import functional

    return functional.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1)


LOSSES = (
    Loss(
        name="dkd",
        kind="logits",
        function=dkd_loss,
        options=DkdOptions,
        summary="decoupled KD: the target, and the other classes among themselves",
    ),
    Loss(
        name="dist",
        kind="logits",
        function=dist_loss,
        options=DistOptions,
        summary="correlations of the predictions, across classes and across samples",
    ),
)
