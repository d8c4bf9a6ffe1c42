"""Losses of the Gram matrix of modalities, one for each scope; :mod:`edgekd.gram.distance` has the mathematics."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

from msgspec import Meta

from edgekd.training.distillation.loss import Loss, LossOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack

    from torch import Tensor

    from edgekd.gram.distance import Scope


Normalization = Literal["cosine", "frobenius", "none"]
Distance = Literal["mse", "smooth_l1", "frobenius"]


class GramOptions(LossOptions, frozen=True):
    """Options of every scope."""

    centered: Annotated[bool, Meta(description="Subtract each modality's mean over the batch first.")] = False
    normalize: Annotated[
        Normalization,
        Meta(description="'cosine' of unit embeddings, 'frobenius' scales each Gram to norm 1, 'none'."),
    ] = "cosine"
    distance: Annotated[Distance, Meta(description="How the entries of two Grams are compared.")] = "mse"


class _GramSettings(TypedDict, total=False):
    """The same as arguments."""

    centered: bool
    normalize: Normalization
    distance: Distance


def gram_loss(
    scope: Scope,
    student: Mapping[str, Tensor],
    teachers: Sequence[Mapping[str, Tensor]],
    present: Tensor | None,
    pairs: Sequence[str] = (),
    **options: Unpack[_GramSettings],
) -> Tensor:
    """Return the distance of the student's Gram from the mean of the teachers' Grams.

    Args:
        scope: Which entries the Gram has.
        student: For each modality the student's embeddings [B, D].
        teachers: The same of each teacher, whose width may be another.
        present: Mask [B, M] of the modalities that samples have, in order; None where all have all.
        pairs: Pairs "a-b" of modalities to compare; empty for all.
        options: As in :class:`GramOptions`.
    """
    from edgekd.gram.distance import GramKind, gram_distance
    from edgekd.gram.matrix import SOFTNESS

    kind = GramKind(scope, pairs=tuple(pairs), **options)
    distance: Tensor = gram_distance(student, teachers, kind, present, softness=SOFTNESS)
    return distance


LOSSES = (
    Loss(
        name="sample",
        kind="gram",
        function=partial(gram_loss, "sample"),
        options=GramOptions,
        summary="the Gram of a sample's modalities, [M, M] for each sample",
        between=True,
        least_modalities=2,
    ),
    Loss(
        name="intra",
        kind="gram",
        function=partial(gram_loss, "intra"),
        options=GramOptions,
        summary="the Gram of the batch within each modality, [B, B] for each modality",
    ),
    Loss(
        name="cross",
        kind="gram",
        function=partial(gram_loss, "cross"),
        options=GramOptions,
        summary="the Gram of the batch between every two modalities, [B, B] for each pair",
        between=True,
        least_modalities=2,
    ),
    Loss(
        name="joint",
        kind="gram",
        function=partial(gram_loss, "joint"),
        options=GramOptions,
        summary="the Gram of the batch in all modalities at once, [BM, BM]",
        between=True,
    ),
)
