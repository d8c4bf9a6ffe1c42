"""Stored tensors that a quantizer leaves in float behind a QuantizeLinear: they are stored as what it makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.compress.graph import copy, drop_unread, initializers, open_at
from edgekd.files import need

if TYPE_CHECKING:
    from onnx import ModelProto


def quantize_stored(qdq: ModelProto) -> None:
    """Replace each QuantizeLinear of a stored tensor by the tensor that it gives, in place.

    Some quantizers write weights so, for engines that want to see the pair; the file is then as large as the float one.

    Args:
        qdq: The QDQ graph.
    """
    onnx = need("onnx", "build")
    stored = initializers(qdq.graph)
    nodes = [node for node in qdq.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in stored]
    if not nodes:
        return
    names = [node.output[0] for node in nodes]
    of_stored = copy(qdq)
    del of_stored.graph.input[:]
    values = open_at(of_stored, names).run(names, {})
    for node, value in zip(nodes, values, strict=True):
        qdq.graph.node.remove(node)
        qdq.graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
    drop_unread(qdq.graph)
