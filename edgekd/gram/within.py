"""The Gram within each modality, for models without inner products between modalities: one alone, or unequal widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.matrix import normalize
from edgekd.gram.npz import EMBEDDING_PREFIX, Array
from edgekd.gram.streaming import Subsample, hash_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Embeddings = Mapping[str, Array]

#: Number of samples that every other sample is compared with.
_ANCHORS = 64


@dataclass(frozen=True)
class Anchors:
    """Samples that every sample is compared with, within each modality.

    Attributes:
        keys: The hashes of the anchors' names [A].
        embeddings: The model's embeddings of the anchors, for each modality [A, D], of unit length.
        reference: The reference's embeddings of the anchors, likewise.
    """

    keys: Array
    embeddings: Embeddings
    reference: Embeddings

    def others(self, keys: Array) -> Array:
        """Return for samples with these hashes ``keys`` [B] which anchors are other samples: [B, A]."""
        different: Array = keys[:, None] != self.keys[None]
        return different


def anchor_cosines(embeddings: Embeddings, anchors: Embeddings) -> Array:
    """Return the cosines [B, M, A] of samples [B, D] to anchors [A, D], within each modality."""
    return np.stack([normalize(z) @ anchors[name].T for name, z in embeddings.items()], 1)


def choose_anchors(
    chunks: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]], modalities: Sequence[str]
) -> Anchors:
    """Choose the anchors by a hash of the samples' names.

    Args:
        chunks: Every embedding of both models, as :func:`edgekd.gram.probe.side_by_side` yields them.
        modalities: Names of the modalities.
    """
    chosen = Subsample(_ANCHORS)
    keys = [EMBEDDING_PREFIX + name for name in modalities]
    for ours, theirs in chunks:
        chosen.add(hash_names(ours["ids"]), [side[key] for side in (ours, theirs) for key in keys])
    unit = [normalize(z.astype(np.float64)) for z in chosen.rows]
    count = len(modalities)
    return Anchors(
        chosen.keys,
        dict(zip(modalities, unit[:count], strict=True)),
        dict(zip(modalities, unit[count:], strict=True)),
    )
