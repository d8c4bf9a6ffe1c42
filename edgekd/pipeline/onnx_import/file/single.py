"""Models in float16: the same network in float32, behind inputs and outputs of their own types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.compress.graph import all_nodes, initializers, inner_graphs, producers, rename
from edgekd.files import need
from edgekd.pipeline.onnx_import.graph import Extension

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto

#: Attributes that are a type of ONNX.
_TYPES = frozenset({"to", "dtype", "output_dtype"})


def make_single(model: ModelProto) -> list[str]:
    """Compute in float32 what a model computes in float16, in place; its inputs and outputs keep their types.

    Every float16 number is one of float32, so weights and inputs stay what they are, and results are those that are
    rounded less. Casts between the two, which then change nothing, are gone: stored weights are initializers again.

    Returns:
        A sentence for the user; none where nothing is in float16.
    """
    graph = model.graph
    half = need("onnx", "build").TensorProto.FLOAT16
    if not has_half(graph):
        return []
    inputs = [value for value in graph.input if value.type.tensor_type.elem_type == half]
    outputs = [value for value in graph.output if value.type.tensor_type.elem_type == half]
    for inner in _graphs(graph):
        _widen(inner)
    _drop_casts(model)
    _cast_ends(model, inputs, outputs)
    return [
        "the model is in float16: what is compared, and quantized, is the same network in float32, behind inputs and "
        "outputs of the model's own types; --as-is keeps the file as it is"
    ]


def has_half(graph: GraphProto) -> bool:
    """Whether a graph stores tensors in float16, or computes any."""
    half = need("onnx", "build").TensorProto.FLOAT16
    return any(tensor.data_type == half for inner in _graphs(graph) for tensor in _tensors(inner)) or any(
        attribute.name in _TYPES and attribute.i == half for node in all_nodes(graph) for attribute in node.attribute
    )


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _graphs(inner)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield the tensors that a graph stores, in nodes too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _widen(graph: GraphProto) -> None:
    """Turn the float16 of one graph into float32, in place."""
    onnx = need("onnx", "build")
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for tensor in list(_tensors(graph)):
        if tensor.data_type == half:
            array = onnx.numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    attributes: Iterator[AttributeProto] = (attribute for node in graph.node for attribute in node.attribute)
    for attribute in attributes:
        if attribute.name in _TYPES and attribute.i == half:
            attribute.i = single
    graph.ClearField("value_info")
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single


def _drop_casts(model: ModelProto) -> None:
    """Remove casts to float32 of what is float32 already, as far as ONNX can infer that, in place."""
    onnx = need("onnx", "build")
    graph, single = model.graph, onnx.TensorProto.FLOAT
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == single}
    typed = (*graph.input, *inferred.value_info, *graph.output)
    floats |= {value.name for value in typed if value.type.tensor_type.elem_type == single}
    kept = {output.name for output in graph.output}
    for node in [node for node in graph.node if node.op_type == "Cast"]:
        to_single = any(item.name == "to" and item.i == single for item in node.attribute)
        if to_single and node.input[0] in floats and node.output[0] not in kept:
            graph.node.remove(node)
            rename(graph, node.output[0], node.input[0])


def _cast_ends(model: ModelProto, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> None:
    """Give inputs and outputs their float16 back, with a Cast behind and before them, in place."""
    types = need("onnx", "build").TensorProto
    graph, extension = model.graph, Extension(model)
    stored, made = initializers(graph), producers(graph)
    for value in inputs:
        if value.name not in stored:  # else it is a weight that is listed, as IR versions before 4 ask for
            inner = extension.unique(f"{value.name}_single")
            rename(graph, value.name, inner)
            extension.node("Cast", [value.name], inner, first=True, to=types.FLOAT)
            value.type.tensor_type.elem_type = types.FLOAT16
    for value in outputs:
        if value.name in made:
            inner = extension.unique(f"{value.name}_single")
            rename(graph, value.name, inner)
            extension.node("Cast", [inner], value.name, to=types.FLOAT16)
            value.type.tensor_type.elem_type = types.FLOAT16
