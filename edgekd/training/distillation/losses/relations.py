"""Losses of the relations between the samples of a batch, in one modality's embeddings or between two modalities'.

They are alternatives to the Gram. All take embeddings of any width on either side, keep their precision, and return a
scalar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from edgekd.training.distillation.loss import Loss, LossOptions

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-12
#: A vector whose squared length is not above this has no direction.
_NOTHING = 1e-24


class AffinityOptions(LossOptions, frozen=True):
    """Options of affinities between modalities."""

    #: Cosines are in [-1, 1], so 1 would leave next to no differences.
    temperature: Annotated[
        float, Meta(ge=0.001, le=1000, description="Softening of the cosines between two modalities.")
    ] = 0.1


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return similarity-preserving KD (Tung & Mori, arXiv 1907.09682) of embeddings [B, D].

    ``|G_S - G_T|_F^2 / B^2`` with ``G = F F^T``, each row scaled to unit length *after* the product, as in the paper.
    The variant that scales *before* it, which some codebases have, is the Gram in scope `intra`.
    """
    ours, theirs = (_unit(side @ side.T) for side in (student, teacher))
    return (ours - theirs).square().mean()


def rkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return relational KD (arXiv 1904.05068) of embeddings [B, D]: distances + 2 * angles, the authors' weights."""
    return _distances(student, teacher) + 2 * _angles(student, teacher)


def _distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 of the pairwise distances, each side's as a multiple of its mean."""
    from torch.nn import functional

    scaled = []
    for side in (student, teacher):
        square = (side[:, None] - side[None]).square().sum(-1)
        # The root's gradient at 0 is infinite, and the diagonal is 0.
        distance = square.clamp_min(_TINY).sqrt() * (square > _TINY)
        scaled.append(distance / (distance.sum() / (distance > 0).sum().clamp_min(1)).clamp_min(_TINY))
    return functional.smooth_l1_loss(scaled[0], scaled[1])


def _angles(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 of the cosines of the angles that every three samples make."""
    from torch.nn import functional

    cosines = []
    for side in (student, teacher):
        edges = _unit(side[None] - side[:, None])
        cosines.append(edges @ edges.mT)
    return functional.smooth_l1_loss(cosines[0], cosines[1])


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return probabilistic knowledge transfer (arXiv 1803.10837) of embeddings [B, D].

    KL(teacher || student) of each sample's distribution over the samples: its cosines, moved to [0, 1], over their sum;
    the mean over all entries, as in the authors' code.
    """
    import torch

    ours, theirs = (_likelihoods(side) for side in (student, teacher))
    return (theirs * torch.log((theirs + 1e-7) / (ours + 1e-7))).mean()


def _likelihoods(z: Tensor) -> Tensor:
    unit = _unit(z)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def affinity_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], temperature: float = 0.1) -> Tensor:
    """Return CLIP-KD's contrastive relational distillation (arXiv 2307.12732) of two modalities' embeddings [B, D].

    KL(teacher || student) of each sample's distribution over the other modality's samples, softmax(cosines / T), mean
    of both directions. The two modalities of one side must share a width.
    """
    from torch.nn import functional

    ours, theirs = (_cosines(*side) / temperature for side in (student, teacher))
    both = [
        functional.kl_div(a.log_softmax(1), b.log_softmax(1), reduction="batchmean", log_target=True)
        for a, b in ((ours, theirs), (ours.T, theirs.T))
    ]
    return (both[0] + both[1]) / 2


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    return _unit(first) @ _unit(second).T


def _unit(rows: Tensor) -> Tensor:
    """Scale rows [..., D] to unit length. A row of zeros stays, without a gradient, which would be infinite."""
    square = rows.square().sum(-1, keepdim=True)
    return rows * square.clamp_min(_NOTHING).rsqrt() * (square > _NOTHING)


LOSSES = (
    Loss(
        name="sp",
        kind="embeddings",
        function=sp_loss,
        summary="similarities of samples, each row at unit length",
    ),
    Loss(
        name="rkd",
        kind="embeddings",
        function=rkd_loss,
        summary="distances and angles between samples",
    ),
    Loss(
        name="pkt",
        kind="embeddings",
        function=pkt_loss,
        summary="each sample's distribution over the others",
    ),
    Loss(
        name="affinity",
        kind="pairs",
        function=affinity_loss,
        options=AffinityOptions,
        summary="each sample's distribution over the samples of another modality",
        between=True,
        least_modalities=2,
    ),
)
