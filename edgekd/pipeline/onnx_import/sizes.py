"""Which tensors of a graph have a size that the values of its inputs decide, such as what NonMaxSuppression leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.compress.graph import reads
from edgekd.pipeline.onnx_import.graph import SIZES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import GraphProto, NodeProto

#: The operator that chooses among boxes. What it leaves differs from sample to sample in number and in order.
SUPPRESSION = "NonMaxSuppression"

#: For each operator the inputs whose values decide how large its outputs are; of all others the sizes of inputs do.
_DECIDED_BY: Mapping[str, tuple[int, ...]] = {
    SUPPRESSION: (0, 1, 2, 3, 4),
    "NonZero": (0,),
    "Unique": (0,),
    "Compress": (1,),
    "TopK": (1,),
    "Slice": (1, 2, 3, 4),
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "Pad": (1, 3),
    "Resize": (2, 3),
    "Upsample": (1,),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "OneHot": (1,),
    "Split": (1,),
    "SequenceAt": (1,),
    "SplitToSequence": (1,),
    "If": (0,),
}

#: Operators that write into their first input, whose size the result has.
_WRITE_INTO = frozenset({"Scatter", "ScatterElements", "ScatterND"})


@dataclass(frozen=True)
class Sizes:
    """What the values of a graph's inputs decide.

    Attributes:
        data: Tensors whose values the inputs decide.
        open: Tensors whose sizes they may decide, in the order in which they are computed.
    """

    data: frozenset[str]
    open: tuple[str, ...]


def data_sizes(graph: GraphProto) -> Sizes:
    """Return which sizes may depend on data, of a graph whose nodes are sorted.

    A tensor is listed as well where the sizes come out the same for all inputs, as of a slice of fixed length at a
    place that data decide.
    """
    data = {value.name for value in graph.input}
    sized: dict[str, None] = {}
    for node in graph.node:
        read = reads(node)
        is_sized = _decides(node, data) or any(name in sized for name in _carriers(node, read))
        if node.op_type in SIZES:
            data.update(node.output if is_sized else ())
            continue
        data.update(node.output if not data.isdisjoint(read) else ())
        sized.update(dict.fromkeys(filter(None, node.output)) if is_sized else {})
    return Sizes(frozenset(data), tuple(sized))


def _decides(node: NodeProto, data: set[str]) -> bool:
    if node.op_type == "Loop":
        return not data.isdisjoint(reads(node))
    return any(node.input[index] in data for index in _DECIDED_BY.get(node.op_type, ()) if index < len(node.input))


def _carriers(node: NodeProto, read: list[str]) -> list[str]:
    return read[:1] if node.op_type in _WRITE_INTO else read
