"""The distance of two Grams: one definition for the loss of training (torch) and for measuring (numpy).

The scopes are our reading of arXiv 2112.11447 and its neighbours; see :mod:`edgekd.gram.matrix`. All are blocks of one
BM x BM Gram over every sample and modality: `sample` is the entries that belong to one sample, `intra` the blocks of
one modality (arXiv 1907.09682), `cross` those of two (as the affinities of arXiv 2307.12732), `joint` all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from edgekd.errors import nearest
from edgekd.gram.matrix import (
    Array,
    cross_gram,
    intra_gram,
    joint_gram,
    namespace,
    normalize,
    pair_indices,
    pair_names,
    sample_gram,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Scope = Literal["sample", "intra", "cross", "joint"]

#: Below this difference "smooth_l1" is quadratic. Cosines of a trained student differ by a few hundredths to a few
#: tenths.
SMOOTH = 0.1

#: The smallest number that a norm is divided by.
_TINY = 1e-12

_GRAMS = {"sample": sample_gram, "intra": intra_gram, "cross": cross_gram, "joint": joint_gram}


@dataclass(frozen=True)
class GramKind:
    """Which Gram, and which distance between two of them.

    Attributes:
        scope: The entries that count; see the module.
        centered: Whether to subtract each modality's mean embedding over the samples first.
        normalize: "cosine" scales embeddings to unit length; "frobenius" scales each Gram (of a sample, a modality, a
            pair, or the joint one) to unit Frobenius norm, so that no scale and no single length counts, and centred
            `intra` with "mse" is then 2 (1 - CKA) / B^2; "none" takes inner products as they are.
        distance: of the entries "mse", "l1", or "smooth_l1" (quadratic below `SMOOTH`); "frobenius" is the norm of each
            Gram's difference, the mean over those Grams in which anything counts.
        pairs: In scopes between modalities the pairs ``"a-b"`` that count; empty for all. A modality that is in none
            of them does not count.
    """

    scope: Scope
    centered: bool = False
    normalize: Literal["cosine", "frobenius", "none"] = "cosine"
    distance: Literal["mse", "l1", "smooth_l1", "frobenius"] = "mse"
    pairs: tuple[str, ...] = ()


def gram_distance(
    ours: Mapping[str, Array],
    references: Sequence[Mapping[str, Array]],
    kind: GramKind,
    present: Array | None = None,
    weights: Array | None = None,
    softness: float = 0.0,
) -> Array:
    """Return the distance of a Gram from a reference's, or from the mean Gram of several references.

    With "cosine" the diagonal, where both sides are 1, does not count.

    Args:
        ours: For each modality embeddings [B, D].
        references: Of each reference, for each modality, embeddings [B, D'] of the same samples; D' may be another
            width. Modalities of one side may differ in width in scope `intra` alone.
        kind: Which Gram and which distance.
        present: 1 where a sample has a modality and 0 where not, [B, M], of the embeddings' kind and dtype, in the
            order of the modalities; entries that a sample lacks do not count, nor do they in a mean. None: all are
            there.
        weights: How much each pair of modalities counts in the scopes between them, [M, M], symmetric with 1 on the
            diagonal; in a distance alone, not in the norm that "frobenius" scales by. None: all alike.
        softness: As for :func:`edgekd.gram.matrix.normalize`: a little in training, 0 to measure.

    Returns:
        A scalar; 0 where nothing counts.

    Raises:
        ValueError: The modalities of one side differ in width, or there is no such pair of modalities.
    """
    names = list(ours)
    weights = _pair_weights(names, kind, ours[names[0]], weights)
    counts = _counts(kind.scope, ours[names[0]], len(names), present, weights)
    mine = _gram([ours[name] for name in names], names, kind, present, counts, softness)
    grams = [_gram([side[name] for name in names], names, kind, present, counts, softness) for side in references]
    difference = mine - sum(grams) / len(grams)
    return _distance(difference, kind, counts)


def _gram(
    embeddings: list[Array],
    names: list[str],
    kind: GramKind,
    present: Array | None,
    counts: Array | None,
    softness: float,
) -> Array:
    """Return the Grams of one side with a leading dimension: [B, M, M], [M, B, B], [P, B, B] or [1, BM, BM]."""
    rows = [_prepared(z, kind, None if present is None else present[:, m], softness) for m, z in enumerate(embeddings)]
    xp = namespace(rows[0])
    widths = [row.shape[-1] for row in rows]
    if len(set(widths)) == 1:
        gram = _GRAMS[kind.scope](xp.stack(rows, 1))
    elif kind.scope == "intra":
        gram = xp.stack([row @ row.T for row in rows])
    else:
        raise ValueError(
            "embeddings of one model must share a width for inner products between modalities, but are "
            + ", ".join(f"{name} {width}" for name, width in zip(names, widths, strict=True))
            + "; give the encoders one width"
        )
    gram = gram[None] if kind.scope == "joint" else gram
    if kind.normalize != "frobenius":
        return gram
    mask = None if counts is None else counts > 0
    return gram / _norms(gram, mask)[:, None, None]


def _prepared(z: Array, kind: GramKind, present: Array | None, softness: float) -> Array:
    """Centre and scale one modality's rows [B, D]; the row of an absent input becomes 0 and does not move the mean."""
    if present is not None:
        there = present[:, None]
        z = z * there
        if kind.centered:
            z = (z - z.sum(0) / there.sum().clip(1)) * there
        if softness:  # of the mean over the rows that are there, not over all
            softness = softness * len(z) / there.sum().clip(1)
    elif kind.centered:
        z = z - z.mean(0)
    return normalize(z, softness) if kind.normalize == "cosine" else z


def _pair_weights(names: list[str], kind: GramKind, like: Array, weights: Array | None) -> Array | None:
    """Return the weight of each pair [M, M], 0 for pairs that do not count; None where all count alike."""
    if kind.scope == "intra" or (not kind.pairs and weights is None):
        return None
    known = pair_names(names)
    for pair in kind.pairs:
        if pair not in known:
            raise ValueError(f"there is no pair '{pair}' of the modalities{nearest(pair, known)}")
    first, second = pair_indices(len(names))
    chosen = [[float(i == j) for j in range(len(names))] for i in range(len(names))]
    for name, i, j in zip(known, first, second, strict=True):
        chosen[i][j] = chosen[j][i] = float(not kind.pairs or name in kind.pairs)
    for i, row in enumerate(chosen):
        row[i] = float(not kind.pairs or sum(row) > 1)
    xp = namespace(like)
    matrix = xp.asarray(chosen, dtype=like.dtype, device=like.device)
    return matrix if weights is None else matrix * weights


def _counts(scope: Scope, like: Array, size: int, present: Array | None, weights: Array | None) -> Array | None:
    """Return how much each entry of the Grams counts, in a shape that broadcasts to theirs; None where all do alike."""
    if present is None and weights is None:
        return None
    xp = namespace(like)
    if present is None:
        present = xp.ones((len(like), size), dtype=like.dtype, device=like.device)
    if weights is None:
        weights = xp.ones((size, size), dtype=like.dtype, device=like.device)
    columns = present.T
    if scope == "sample":
        return present[:, :, None] * present[:, None, :] * weights
    if scope == "intra":
        return columns[:, :, None] * columns[:, None, :]
    if scope == "cross":
        first, second = pair_indices(size)
        return columns[first][:, :, None] * columns[second][:, None, :] * weights[first, second][:, None, None]
    flat = present.reshape(-1)
    return (flat[:, None] * flat[None, :] * xp.tile(weights, (len(like), len(like))))[None]


def _norms(gram: Array, counts: Array | None) -> Array:
    """Return the Frobenius norm [G] of each of G Grams, over the entries that count."""
    square = gram * gram if counts is None else gram * gram * counts
    return namespace(gram).sqrt(square.sum((1, 2)).clip(_TINY**2))


def _off_diagonal(kind: GramKind, counts: Array) -> Array:
    """Return the sum of the counts [G] of each of G Grams, without the diagonal where that does not count."""
    sums = counts.sum((1, 2))
    if kind.normalize != "cosine" or kind.scope == "cross":
        return sums
    every = list(range(counts.shape[-1]))
    return sums - counts[:, every, every].sum(-1)


def _distance(difference: Array, kind: GramKind, counts: Array | None) -> Array:
    if kind.distance == "frobenius":
        norms = _norms(difference, counts)
        if counts is None:
            return norms.sum() / max(len(norms), 1)
        there = _off_diagonal(kind, 1.0 * (counts > 0)) > 0
        return (norms * there).sum() / there.sum().clip(1)
    if kind.distance == "mse":
        entries = difference * difference
    else:
        entries = abs(difference)
        if kind.distance == "smooth_l1":
            entries = namespace(entries).where(entries < SMOOTH, entries * entries / (2 * SMOOTH), entries - SMOOTH / 2)
    if counts is None:
        diagonal = 0 if kind.normalize != "cosine" or kind.scope == "cross" else prod(entries.shape[:-1])
        return entries.sum() / max(prod(entries.shape) - diagonal, 1)
    return (entries * counts).sum() / _off_diagonal(kind, counts).sum().clip(_TINY)
