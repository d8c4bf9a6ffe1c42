"""A candidate for what ships, as it was written. Importing this module imports nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """The two graphs of a candidate, which lie in the folder of its name.

    Attributes:
        name: Name of its :class:`CandidateSpec`.
        precision: Precision of its :class:`CandidateSpec`.
        quantized_nodes: Number of weight-bearing nodes that compute in INT8.
        weight_nodes: Number of weight-bearing nodes.
        sizes: Bytes of each file, by the file's name.
        notes: Sentences for the user on how it was written.
    """

    name: str
    precision: str
    quantized_nodes: int
    weight_nodes: int
    sizes: dict[str, int]
    notes: tuple[str, ...] = ()
