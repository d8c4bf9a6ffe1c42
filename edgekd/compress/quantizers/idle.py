"""Q/DQ pairs that no integer kernel takes: they cost time, and round for nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from edgekd.compress.graph import LIMITS, WEIGHT_BEARING, producers
from edgekd.compress.qdq_map import find_sites
from edgekd.compress.switchboard import restore_float

if TYPE_CHECKING:
    from collections.abc import Collection

    from onnx import ModelProto, NodeProto

#: Operators whose integer kernels give floats as well, so that a pair behind them serves only those that read it.
_GIVES_FLOATS = frozenset({"MatMul", "Gemm"})
#: Operators that only move or limit values, in the type that they are given.
_MOVING = frozenset({
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Gather", "MaxPool",
    *LIMITS,
})  # fmt: skip


def drop_idle(qdq: ModelProto, floats: ModelProto, operators: Collection[str], kept: Collection[str]) -> ModelProto:
    """Return a QDQ graph without the pairs that no integer kernel takes.

    Quantizers round what a layer gives as well as what it reads. Integer kernels of MatMul and Gemm give floats too.
    Where these go on into float arithmetic only (a bias, a softmax, a GELU, a residual), a pair between the two is one
    more rounding and two more operations. A pair stays where a layer reads it, directly or through other quantized
    nodes; and behind a Conv or any other quantized node, whose integer kernels give integers only.

    Args:
        qdq: The QDQ graph, which is not changed.
        floats: The float graph that was quantized, its nodes named.
        operators: The operators that are quantized.
        kept: Names of the nodes that stay float.

    Raises:
        ModelError: The two graphs do not belong together.
    """
    sites = find_sites(qdq, floats)
    pairs = _Pairs(floats, operators, kept, {name for name, site in sites.items() if site.kind == "activation"})
    idle: list[str] = []
    while found := [name for name in sorted(pairs.rounded) if pairs.is_idle(name)]:
        pairs.rounded.difference_update(found)
        idle += found
    return restore_float(qdq, floats, idle) if idle else qdq


class _Pairs:
    """The rounded activations of a float graph.

    Attributes:
        rounded: Their names.
    """

    def __init__(
        self, floats: ModelProto, operators: Collection[str], kept: Collection[str], rounded: set[str]
    ) -> None:
        self.rounded = rounded
        self._operators, self._kept = operators, kept
        self._made = producers(floats.graph)
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in floats.graph.node:
            for name in node.input:
                self._readers[name].append(node)

    def is_idle(self, tensor: str) -> bool:
        """Return whether neither the node that makes a tensor nor any that reads it computes with the pair."""
        return not self._needs_pair(tensor) and not self._is_read(tensor, set())

    def _needs_pair(self, tensor: str) -> bool:
        """Return whether the node that a tensor comes from computes with integers only if it gives integers."""
        node = self._made.get(tensor)
        while node is not None and node.op_type in _MOVING:
            node = self._made.get(node.input[0])
        if node is None or node.op_type in _GIVES_FLOATS or not self._is_to_be_quantized(node):
            return False
        return any(self._is_rounded(name) for name in node.input)

    def _is_rounded(self, tensor: str) -> bool:
        """Return whether a tensor is rounded, or moved from one that is."""
        node = self._made.get(tensor)
        while tensor not in self.rounded and node is not None and node.op_type in _MOVING:
            tensor = node.input[0]
            node = self._made.get(tensor)
        return tensor in self.rounded

    def _is_to_be_quantized(self, node: NodeProto) -> bool:
        return node.op_type in self._operators and node.name not in self._kept

    def _is_read(self, tensor: str, seen: set[str]) -> bool:
        """Return whether a layer reads a rounded tensor, moved or through other quantized nodes."""
        seen.add(tensor)
        for node in self._readers[tensor]:
            if node.op_type in WEIGHT_BEARING and self._is_to_be_quantized(node):
                return True
            moved = node.op_type in _MOVING
            ahead = [name for name in node.output if name not in seen and (moved or name in self.rounded)]
            if (moved or self._is_to_be_quantized(node)) and any(self._is_read(name, seen) for name in ahead):
                return True
        return False
