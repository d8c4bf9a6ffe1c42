"""Activations in uint8 where a target wants them so: the same numbers as in int8, 128 further on.

OpenVINO computes a convolution behind a ``Concat`` of int8 wrong on processors without VNNI, by 10 % of the output's
RMS and more, and that of the very same numbers in uint8 right; ONNX Runtime's kernels for x86 are made for uint8 too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import all_nodes, initializers
from edgekd.files import need

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

#: The distance between the two types' numbers.
_OFFSET = 128


def make_unsigned(graph: GraphProto) -> None:
    """Let every activation that is quantized to int8 be quantized to uint8, with its zero point moved, in place.

    The scale stays, and so does each level's value: ``(q - z) * s`` with both q and z larger by 128. Stored tensors
    stay what they are.
    """
    numpy_helper = need("onnx", "build").numpy_helper
    stored = initializers(graph)
    moved = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored and _zero(node) in stored:
            zero = numpy_helper.to_array(stored[_zero(node)])
            if zero.dtype == np.int8:
                moved[node.output[0]] = (zero.astype(np.int16) + _OFFSET).astype(np.uint8)
    read_as_it_is = {
        name
        for node in all_nodes(graph)
        for index, name in enumerate(node.input)
        if name in moved and not (node.op_type == "DequantizeLinear" and index == 0)
    }.union(value.name for value in graph.output)
    for node in graph.node:
        name = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0] if node.input else ""
        if name not in moved or name in read_as_it_is or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero_name = f"{name}_unsigned_zero_point"
        if zero_name not in stored:
            stored[zero_name] = numpy_helper.from_array(moved[name], zero_name)
            graph.initializer.append(stored[zero_name])
        node.input[2] = zero_name


def _zero(node: NodeProto) -> str:
    return str(node.input[2]) if len(node.input) > 2 else ""
