"""In which precision a graph that somebody wrote computes, and how many of its layers do so in integers."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from edgekd.compress.graph import WEIGHT_BEARING, all_nodes, initializers, producers, reads
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

#: Operators that multiply integers by stored integers, each a layer.
INTEGER_LAYERS = frozenset({
    "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QAttention",
    "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QLinearConvTranspose", "QConv",
})  # fmt: skip

#: Operators that multiply by weights stored in blocks of few bits, and compute in float.
_BLOCKS = frozenset({"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QMoE"})

#: The ``accuracy_level`` of MatMulNBits with which it rounds activations to INT8, block by block.
_ROUNDS_ACTIVATIONS = 4

#: Operators that round what is computed.
_ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})

#: Operators through which stored values go on their way to a layer without being computed with.
_MOVING = frozenset({"Transpose", "Reshape", "Identity", "Unsqueeze", "Squeeze"})

#: Largest number of bits of a weight that counts as quantized.
_BITS = 8


def is_quantized(operator: str) -> bool:
    """Whether only a quantized graph has an operator."""
    return operator in INTEGER_LAYERS | _BLOCKS or "Quantize" in operator or operator.startswith("QLinear")


def is_dynamic(graph: GraphProto) -> bool:
    """Whether a graph finds scales of activations while it runs, of all samples of a batch together."""
    return any("DynamicQuantize" in node.op_type for node in all_nodes(graph))


def precision_of(model: ModelProto) -> str:
    """Return the precision of a graph.

    Returns:
        "int8" where it computes in integers; "int8-weights", "int4-weights" or the like where only stored weights are
        integers; "float16" where weights are; else "float32".
    """
    nodes = list(all_nodes(model.graph))
    if any(node.op_type in INTEGER_LAYERS for node in nodes) or _rounds(model.graph):
        return "int8"
    bits = [_bits_of(node) for node in nodes if node.op_type in _BLOCKS]
    if bits:
        return f"int{min(bits)}-weights"
    stored = _counts_by_type(model.graph)
    types = need("onnx", "build").TensorProto
    small = {kind: size for kind, size in stored.items() if kind not in (types.FLOAT, types.DOUBLE)}
    largest = max(small, key=lambda kind: small[kind], default=types.FLOAT)
    if small.get(largest, 0) <= max(stored.get(types.FLOAT, 0), stored.get(types.DOUBLE, 0)):
        return "float32"
    return "float16" if largest in (types.FLOAT16, types.BFLOAT16) else f"int{_width(largest)}-weights"


def count_quantized(graph: ModelProto) -> tuple[int, int]:
    """Return the number of weight-bearing nodes that compute in integers, and that of all.

    A node does where what it multiplies by is stored in 8 bits or fewer, or is an activation that is rounded, and what
    it reads is rounded, too. Weights that are dequantized for float arithmetic, or rounded while the graph runs, do
    not count.
    """
    made, stored = producers(graph.graph), stored_tensors(graph.graph)
    computed = computed_tensors(graph.graph)
    done = total = 0
    for node in graph.graph.node:
        if node.op_type in INTEGER_LAYERS | _BLOCKS:
            done, total = done + _multiplies_integers(node), total + 1
        elif node.op_type in WEIGHT_BEARING:
            rounded = all(_is_rounded(name, made, stored, computed) for name in node.input[:2])
            done, total = done + rounded, total + 1
    return done, total


def _multiplies_integers(node: NodeProto) -> bool:
    """Whether a node multiplies integers; one whose weights are in blocks does so where it rounds activations, too."""
    levels = (attribute.i for attribute in node.attribute if attribute.name == "accuracy_level")
    return node.op_type in INTEGER_LAYERS or next(levels, 0) == _ROUNDS_ACTIVATIONS


def computed_tensors(graph: GraphProto) -> frozenset[str]:
    """Return the tensors that depend on a graph's inputs; all others are constants, stored or made of stored ones."""
    stored = initializers(graph)
    found = {value.name for value in graph.input if value.name not in stored}
    for node in graph.node:
        if not found.isdisjoint(reads(node)) or node.op_type.startswith("Random"):
            found.update(filter(None, node.output))
    return frozenset(found)


def _is_rounded(
    tensor: str, made: Mapping[str, NodeProto], stored: Mapping[str, TensorProto], computed: Collection[str]
) -> bool:
    """Whether a tensor is dequantized from 8 bits or fewer: stored ones, or those of an activation."""
    node = made.get(tensor)
    while node is not None and node.op_type in _MOVING and node.output[0] not in computed:
        node = made.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return False
    source = node.input[0]
    while source in made and made[source].op_type in _MOVING:
        source = made[source].input[0]
    if source in stored:
        return _width(stored[source].data_type) <= _BITS
    return source in computed  # else the weight is rounded each time that the graph runs


def _rounds(graph: GraphProto) -> bool:
    """Whether a graph rounds what it computes."""
    computed = computed_tensors(graph)
    return any(node.op_type in _ROUNDING and node.input[0] in computed for node in all_nodes(graph))


def _bits_of(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "bits"), 4)


def _counts_by_type(graph: GraphProto) -> dict[int, int]:
    """Return how many values are stored in each type, of tensors that may be weights."""
    sizes: dict[int, int] = {}
    types = need("onnx", "build").TensorProto
    for tensor in stored_tensors(graph).values():
        if tensor.data_type not in (types.INT64, types.INT32, types.BOOL, types.STRING):
            sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + prod(tensor.dims)
    return sizes


def stored_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    """Return what a graph stores by name: initializers, and the tensors of ``Constant`` nodes."""
    constants = {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.HasField("t")
    }
    return constants | initializers(graph)


def _width(data_type: int) -> int:
    """Return the bits of a number of one of ONNX's types."""
    helper = need("onnx", "build").helper
    name = str(helper.tensor_dtype_to_string(data_type)).rpartition(".")[2]
    digits = "".join(character for character in name.partition("E")[0] if character.isdigit())
    return int(digits) if digits else 32
