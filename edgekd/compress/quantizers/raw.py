"""Which nodes compute on raw inputs: everything before the first layer with weights, where units are still unlike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.compress.graph import initializers, reads
from edgekd.files import need

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

#: Operators that mix or look up channels by stored weights, and those that bring each channel into the same range.
_LAYERS = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention", "Gather", "DeformConv",
})  # fmt: skip
_STANDARDIZING = frozenset({"BatchNormalization", "InstanceNormalization"})
#: Operators whose result tells nothing of the values, or no more than an order or a truth.
_VALUELESS = frozenset({
    "Shape", "Size", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN",
    "IsInf", "ArgMax", "ArgMin", "NonZero",
})  # fmt: skip
#: Operators whose result lies in one small range, whatever the units of what they read.
_BOUNDED = frozenset({"Sign", "Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Sin", "Cos"})


def raw_nodes(graph: GraphProto) -> frozenset[str]:
    """Return the names of the nodes that must stay float, since they compute on raw inputs.

    A tensor is raw from the graph's inputs up to the first layer with stored weights, or the first normalisation or
    function that brings each channel into the same range by itself. One scale for channels of different units would
    destroy the smaller; a layer with weights is the first that may round what it reads. The normalisation itself reads
    raw values, and stays float, and so does the addition of a mask that is an input; a layer without stored weights,
    such as a product of two inputs, is arithmetic like any other.

    Args:
        graph: A float graph in topological order, its nodes named.
    """
    return frozenset(_follow(graph)[0])


def raw_tensors(graph: GraphProto) -> frozenset[str]:
    """Return the names of the raw tensors of a float graph; see :func:`raw_nodes`."""
    return frozenset(_follow(graph)[1])


def _follow(graph: GraphProto) -> tuple[set[str], set[str]]:
    """Return the nodes that compute on raw inputs, and the raw tensors."""
    stored = initializers(graph)
    types = need("onnx", "build").TensorProto
    floats = types.FLOAT, types.FLOAT16, types.DOUBLE
    weights = {name for name, tensor in stored.items() if len(tensor.dims) > 1 and tensor.data_type in floats}
    raw = {value.name for value in graph.input if value.name not in stored}
    found = set()
    for node in graph.node:
        if raw.isdisjoint(reads(node)) or _is_layer(node, weights):
            continue
        found.add(node.name)
        if node.op_type not in _STANDARDIZING | _VALUELESS | _BOUNDED:
            raw.update(filter(None, node.output))
    return found, raw


def _is_layer(node: NodeProto, weights: set[str]) -> bool:
    """Whether a node multiplies with stored weights, or looks them up."""
    read = node.input[:1] if node.op_type == "Gather" else node.input
    return node.op_type in _LAYERS and not weights.isdisjoint(read)
