"""Which measure compares outputs of which kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgekd.gram.measures.classes import ClassDivergence, PositionDivergence, TokenDivergence
from edgekd.gram.measures.embeddings import FloatIndexDivergence, OwnIndexDivergence
from edgekd.gram.measures.labels import LabelDivergence
from edgekd.gram.measures.numbers import NumberDivergence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.gram.measures.measure import Measure
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputKind
    from edgekd.gram.streaming import Keys


class OutputChunks(Protocol):
    """All outputs of one network."""

    def __call__(self) -> Iterator[tuple[Keys, Array]]:
        """Yield them from the first on: hashes of the samples' names [B], and outputs [B, ...]."""


def make_measure(kind: OutputKind, ours: OutputChunks, reference: OutputChunks) -> Measure:
    """Return what compares two networks' outputs, after what it has to know of all of them beforehand.

    Args:
        kind: What the output is.
        ours: The outputs to judge, which are read where they have an index of their own.
        reference: The reference's outputs.
    """
    if kind.name == "classes":
        return ClassDivergence(kind)
    if kind.name == "embedding":
        return OwnIndexDivergence(reference(), ours()) if kind.index == "own" else FloatIndexDivergence(reference())
    outputs = (rows for _, rows in reference())
    if kind.name == "multilabel":
        return LabelDivergence(kind, outputs)
    if kind.name in ("dense-classes", "sequence-classes"):
        return (PositionDivergence if kind.blank is None else TokenDivergence)(kind, outputs)
    return NumberDivergence(kind, outputs)
