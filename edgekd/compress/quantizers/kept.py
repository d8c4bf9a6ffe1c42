"""Nodes of a QDQ graph that are kept float, though what they read is quantized for others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.compress.graph import LIMITS, drop_unread, initializers, producers

if TYPE_CHECKING:
    from collections.abc import Collection

    from onnx import GraphProto, ModelProto, NodeProto


def with_limits(graph: GraphProto, names: Collection[str]) -> set[str]:
    """Return the names of nodes that are to be kept float, and of the Relu and Clip nodes that they read.

    Args:
        graph: The float graph, its nodes named.
        names: Names of the nodes.
    """
    made = producers(graph)
    kept = set(names)
    for node in reversed(graph.node):
        if node.name in kept:
            before = (made[name] for name in node.input if name in made)
            kept.update(limit.name for limit in before if limit.op_type in LIMITS)
    return kept


def read_float(qdq: ModelProto, floats: ModelProto, names: Collection[str]) -> None:
    """Let nodes read float tensors instead of what others asked to have quantized, in place.

    A quantizer rounds a tensor once for all that read it; and a node whose inputs are dequantized may be computed in
    INT8, whatever it is.

    Args:
        qdq: The QDQ graph.
        floats: The float graph that was quantized.
        names: Names of the nodes, which both graphs have.
    """
    original = {node.name: node for node in floats.graph.node}
    made, exact = producers(qdq.graph), initializers(floats.graph)
    for node in qdq.graph.node:
        if node.name not in names or node.name not in original:
            continue
        for index, name in enumerate(node.input):
            node.input[index] = _source(name, made, original[node.name].input[index])
    known = {*initializers(qdq.graph), *made}
    read = {name for node in qdq.graph.node if node.name in names for name in node.input}
    qdq.graph.initializer.extend(exact[name] for name in sorted(read & exact.keys() - known))
    drop_unread(qdq.graph)


def _source(name: str, made: dict[str, NodeProto], original: str) -> str:
    """Return the float tensor that a tensor was dequantized from; ``original`` where it is a stored one."""
    dequantize = made.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return name
    quantize = made.get(dequantize.input[0])
    return quantize.input[0] if quantize is not None else original
