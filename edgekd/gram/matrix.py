"""Gram matrices of embeddings, written once for torch tensors and numpy arrays alike.

Our reading of P. Liu, "Multi-Modality Distillation via Learning the teacher's modality-level Gram Matrix"
(arXiv 2112.11447), whose full text was not at hand: for a sample with embeddings z_1..z_M, scaled to unit length and
stacked as Z, the modality Gram matrix is G = Z Z^T. It is M x M whatever the embeddings' width, so teacher and student
need no projector. The wider scopes take inner products across the batch too: `intra` within one modality (the
similarity-preserving Gram of Tung & Mori, arXiv 1907.09682), `cross` between two, `joint` over everything.

Negative cosines are information and are never clipped.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: A torch tensor or a numpy array; the functions below return the kind that they were given.
Array = Any

#: The softness of :func:`normalize` in training: the share of the mean squared length that bounds the gradient.
SOFTNESS = 1e-3

#: Embeddings whose squared length is below this are scaled by 1e12, not to unit length.
_SMALLEST_SQUARE = 1e-24


def namespace(array: Array) -> Any:
    """Return the module, numpy or torch, whose functions work on ``array``; torch is never imported for it."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else np


def normalize(z: Array, softness: float = 0.0) -> Array:
    """Scale the rows of ``z`` to unit length.

    Args:
        z: Embeddings [B, ..., D].
        softness: 0 for exact unit length, to measure with (a zero row remains zero). A positive value divides by
            ``sqrt(|z|^2 + softness * mean |z|^2)`` instead, the mean over B: the gradient of exact normalisation is
            unbounded for rows near zero, so training uses a little of it.

    Returns:
        [B, ..., D], of the same kind and dtype as ``z``.
    """
    square = (z * z).sum(-1, keepdims=True)
    if softness:
        square = square + softness * square.mean(0)
    # Clipped before the root, whose gradient at 0 is infinite: it would give NaN for a batch of zero rows.
    return z / namespace(z).sqrt(square.clip(_SMALLEST_SQUARE))


def stack(embeddings: Mapping[str, Array], softness: float = 0.0) -> Array:
    """Stack the modalities' embeddings [B, D] to [B, M, D], in the mapping's order, and normalise them.

    Raises:
        ValueError: The modalities differ in width, so there is no inner product between them.
    """
    return normalize(_stacked(embeddings), softness)


def _stacked(embeddings: Mapping[str, Array]) -> Array:
    widths = {name: z.shape[-1] for name, z in embeddings.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(
            "embeddings of one model must share a width for inner products between modalities, but are "
            + ", ".join(f"{name} {width}" for name, width in widths.items())
            + "; give the encoders one width"
        )
    arrays = list(embeddings.values())
    return namespace(arrays[0]).stack(arrays, 1)


def sample_gram(z: Array) -> Array:
    """Return each sample's M x M Gram: [B, M, D] -> [B, M, M]."""
    return z @ z.swapaxes(-1, -2)


def intra_gram(z: Array) -> Array:
    """Return each modality's B x B Gram: [B, M, D] -> [M, B, B]."""
    rows = z.swapaxes(0, 1)
    return rows @ rows.swapaxes(-1, -2)


def cross_gram(z: Array) -> Array:
    """Return the B x B inner products of each pair of modalities i < j: [B, M, D] -> [P, B, B]."""
    first, second = pair_indices(z.shape[1])
    rows = z.swapaxes(0, 1)
    return rows[first] @ rows[second].swapaxes(-1, -2)


def joint_gram(z: Array) -> Array:
    """Return the Gram over all samples and modalities, which contains the other three: [B, M, D] -> [B*M, B*M]."""
    flat = z.reshape(-1, z.shape[-1])
    return flat @ flat.T


def pair_indices(modalities: int) -> tuple[list[int], list[int]]:
    """Return the indices of the pairs i < j of M modalities, as two lists of length M(M-1)/2."""
    pairs = [(i, j) for i in range(modalities) for j in range(i + 1, modalities)]
    return [i for i, _ in pairs], [j for _, j in pairs]


def pair_names(modalities: Sequence[str]) -> list[str]:
    """Return ``["a-b", ...]`` for the pairs of :func:`pair_indices`."""
    first, second = pair_indices(len(modalities))
    return [f"{modalities[i]}-{modalities[j]}" for i, j in zip(first, second, strict=True)]


def pair_cosines(embeddings: Mapping[str, Array]) -> Array:
    """Return each sample's cosine between each pair of modalities: embeddings [B, D] each -> [B, P].

    The Gram is divided by the lengths on its diagonal: the same as normalising exactly first, but for rounding, and
    less work.
    """
    gram = sample_gram(_stacked(embeddings))
    every = list(range(gram.shape[-1]))
    lengths = namespace(gram).sqrt(gram[:, every, every].clip(_SMALLEST_SQUARE))
    first, second = pair_indices(len(every))
    return gram[:, first, second] / (lengths[:, first] * lengths[:, second])


def comparable(embeddings: Mapping[str, Array]) -> bool:
    """Return whether modalities have inner products with each other: there are two or more, of one width."""
    return len(embeddings) > 1 and len({z.shape[-1] for z in embeddings.values()}) == 1


def within_cosines(embeddings: Mapping[str, Array]) -> Array:
    """Return the cosines between samples within each modality, whatever their widths: [B, D] each -> [B, M, B]."""
    rows = [normalize(z) for z in embeddings.values()]
    return namespace(rows[0]).stack([z @ z.T for z in rows], 1)
