"""One form of a float graph that every quantizer reads right: plain Gemm, each weight read in one way, own names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import WEIGHT_BEARING, captured, drop_unread, initializers, inner_graphs, producers, rename
from edgekd.compress.quantizers.names import Names
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Collection

    from onnx import GraphProto, NodeProto

    from edgekd.runtime.session import Array


def make_canonical(graph: GraphProto, operators: Collection[str]) -> dict[str, str]:
    """Rewrite a float graph, in place, so that what it computes does not depend on how a quantizer reads it.

    Nodes get names of their own, and no tensor has a name that a quantizer would give. The factors alpha and beta of a
    Gemm, which ONNX Runtime's quantizer forgets, are folded into its stored weights and bias, and the bias is brought
    into the shape [N]. A weight that is read in several ways (transposed or not, by float arithmetic, as a graph
    output) is stored once for each, since it needs a scale along another axis, or none. Stored weights that are cast,
    as ONNX Runtime does with float16, are stored in float32. What graphs inside nodes read, which quantizers overlook,
    is a tensor of its own. Empty inputs at the end of a node are left out.

    Args:
        graph: The float graph, its constants folded.
        operators: The operators that are to be quantized.

    Returns:
        For each node that cannot be brought into this form its name, and why; such a node must stay float.
    """
    drop_unread(graph)
    names = Names(graph)
    names.name_nodes()
    names.vacate()
    for node in graph.node:
        while node.input and not node.input[-1]:
            node.input.pop()
    _copy_inner_reads(graph, names)
    _simplify_casts(graph)
    rewriter = _Rewriter(graph, names)
    strange = {node.name: reason for node in graph.node if (reason := rewriter.plain(node))}
    rewriter.separate(operators)
    drop_unread(graph)
    return strange


def _copy_inner_reads(graph: GraphProto, names: Names) -> None:
    """Let graphs inside nodes read copies of the tensors that the outer graph computes."""
    make = need("onnx", "build").helper.make_node
    computed = {*producers(graph), *(value.name for value in graph.input)}
    nodes: list[NodeProto] = []
    for node in graph.node:
        read = [(part, computed.intersection(captured(part))) for part in inner_graphs(node)]
        for name in sorted(set[str]().union(*(found for _, found in read))):
            copied = names.tensor(f"{name}_inside")
            nodes.append(make("Identity", [name], [copied], name=copied))
            for part in (part for part, found in read if name in found):
                rename(part, name, copied)
        nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)


def _simplify_casts(graph: GraphProto) -> None:
    """Store in float32 what is stored in half or double precision and cast; make casts of float32 to itself plain."""
    onnx = need("onnx", "build")
    single = onnx.TensorProto.FLOAT
    stored, outputs = initializers(graph), {value.name for value in graph.output}
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    kept: list[NodeProto] = []
    for node in graph.node:
        to_single = node.op_type == "Cast" and any(item.name == "to" and item.i == single for item in node.attribute)
        source = stored.get(node.input[0]) if to_single else None
        if source is not None and node.output[0] not in outputs:
            value = onnx.numpy_helper.to_array(source).astype(np.float32)
            graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
            continue
        if to_single and types.get(node.input[0]) == single:
            node.op_type = "Identity"
            del node.attribute[:]
        kept.append(node)
    graph.ClearField("node")
    graph.node.extend(kept)


class _Rewriter:
    """Rewrites the stored tensors that a graph's layers read, in place."""

    def __init__(self, graph: GraphProto, names: Names) -> None:
        self._graph, self._names = graph, names
        self._onnx = need("onnx", "build")
        self._stored = initializers(graph)

    def plain(self, node: NodeProto) -> str | None:
        """Make a layer plain; return why that cannot be, or None."""
        stored = [self._stored[name] for name in node.input if name in self._stored]
        if node.op_type in WEIGHT_BEARING and any(
            tensor.data_type == self._onnx.TensorProto.DOUBLE for tensor in stored
        ):
            return "its weights are of double precision"
        if node.op_type == "MatMul" and any(len(tensor.dims) == 1 for tensor in stored):
            return "its weight is a vector"
        if node.op_type != "Gemm":
            return None
        attributes = {item.name: self._onnx.helper.get_attribute_value(item) for item in node.attribute}
        alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
        if beta == 0:
            del node.input[2:]
        return self._fold_alpha(node, alpha) or self._fold_beta(node, beta, attributes.get("transB", 0))

    def _fold_alpha(self, node: NodeProto, alpha: float) -> str | None:
        index = next((index for index in (1, 0) if node.input[index] in self._stored), None)
        if alpha == 1:
            return None
        if index is None:
            return "its factor alpha cannot be folded, since no weight of it is stored"
        self._replace(node, index, self._value(node.input[index]) * alpha)
        _drop(node, "alpha")
        return None

    def _fold_beta(self, node: NodeProto, beta: float, transposed: int) -> str | None:
        if len(node.input) < 3:
            _drop(node, "beta")
            return None
        name = node.input[2]
        if name not in self._stored:
            return None if beta == 1 else "its factor beta cannot be folded, since its bias is computed"
        bias = self._value(name)
        if bias.size not in (1, *bias.shape[-1:]):
            return f"its bias has the shape {list(bias.shape)}, a row for each sample"
        weight = self._dims(node.input[1]) if node.input[1] in self._stored else None
        width = bias.size if weight is None else weight[0 if transposed else 1]
        if beta != 1 or bias.shape != (width,):
            self._replace(node, 2, np.broadcast_to(bias.ravel() * beta, width))
        _drop(node, "beta")
        return None

    def separate(self, operators: Collection[str]) -> None:
        """Give each way in which a stored tensor is read a tensor of its own."""
        outputs = {value.name for value in self._graph.output}
        inner = {name for node in self._graph.node for graph in inner_graphs(node) for name in captured(graph)}
        names: dict[tuple[str, str], str] = {(name, ""): name for name in outputs | inner}
        taken = {name for name, _ in names}
        for node in self._graph.node:
            for index, name in enumerate(node.input):
                if name not in self._stored:
                    continue
                way = _way(node, index, operators)
                if (name, way) not in names:
                    names[name, way] = self._store(name, self._value(name)) if name in taken else name
                    taken.add(name)
                node.input[index] = names[name, way]

    def _replace(self, node: NodeProto, index: int, value: Array) -> None:
        node.input[index] = self._store(node.input[index], value.astype(self._value(node.input[index]).dtype))

    def _store(self, name: str, value: Array) -> str:
        """Store a further tensor, and return its name."""
        stored = self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), self._names.tensor(f"{name}_own"))
        self._graph.initializer.append(stored)
        self._stored[stored.name] = self._graph.initializer[-1]
        return str(stored.name)

    def _dims(self, name: str) -> list[int]:
        return list(self._stored[name].dims)

    def _value(self, name: str) -> Array:
        value: Array = self._onnx.numpy_helper.to_array(self._stored[name])
        return value


def _way(node: NodeProto, index: int, operators: Collection[str]) -> str:
    """Return in which way a node reads a stored tensor; tensors that are read in one way may share their scales."""
    if node.op_type not in operators:
        return ""
    if node.op_type not in WEIGHT_BEARING:
        return "activation"
    if index == 2:
        return f"bias of {node.name}"  # whose scale is that of the input times that of the weights
    by_row = node.op_type == "Conv" or any(item.name == "transB" and item.i for item in node.attribute)
    return f"input {index}, a scale for each {'row' if by_row else 'column'}"


def _drop(node: NodeProto, attribute: str) -> None:
    kept = [item for item in node.attribute if item.name != attribute]
    del node.attribute[:]
    node.attribute.extend(kept)
