"""FP16 for what is not INT8, written into the graph, from which TensorRT 11 and TensorRT-RTX take every type.

``onnxruntime.transformers.float16`` does nearly this, but it rounds every graph input to FP16 first, even for nodes
that it is told to leave alone, and raw sensor values do not survive that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import copy
from edgekd.errors import ModelError
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import GraphProto, ModelProto, NodeProto
    from onnx.defs import OpSchema

    from edgekd.runtime.session import Array

#: Nodes after which FP16 is enough again: those with weights, and the step to INT8.
_LAST = ("Conv", "ConvTranspose", "Gemm", "MatMul", "QuantizeLinear")
_SCALED = ("QuantizeLinear", "DequantizeLinear")
_LIMITS = np.finfo(np.float16)
#: Of INT8, whose extreme times its scale must still be a finite FP16 number.
_LEVELS = 128


def to_half(model: ModelProto) -> ModelProto:
    """Return a graph that computes in FP16 where float32 is not needed, with the same inputs and outputs.

    The following stay float32: the graph's inputs and outputs; everything from an input, or from a constant that FP16
    cannot hold, up to and including the next node with weights or to INT8, since such values may be too large or too
    close for FP16; Concat of quantized tensors; operators that ONNX does not define for FP16. Scales of the other Q/DQ
    nodes become FP16, and thereby dequantized tensors.

    Args:
        model: The float or QDQ graph, which is not changed.

    Raises:
        ModelError: The graph has control flow, whose branches read tensors by name, or ONNX cannot type it.
    """
    onnx = need("onnx", "build")
    half = copy(model)
    try:
        _Writer(half).write()
        onnx.checker.check_model(half, full_check=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise ModelError(f"the graph cannot be written in FP16: {str(error).strip().splitlines()[0]}") from error
    return half


class _Writer:
    """Rewrites one graph in place, node by node in its topological order."""

    def __init__(self, model: ModelProto) -> None:
        self._onnx = onnx = need("onnx", "build")
        self._model = model
        self._float, self._half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
        #: Element type of each tensor written so far.
        self._types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        self._types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        #: Element types that the graph declares, for tensors whose operator ONNX does not define.
        self._declared = {
            value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)
        }
        self._constants = dict(_float_constants(model.graph))
        self._cast: dict[tuple[str, int], str] = {}
        self._nodes: list[NodeProto] = []

    def write(self) -> None:
        graph = self._model.graph
        exact = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
        outputs = {value.name for value in graph.output}
        moved = _moved(graph)
        for node in graph.node:
            is_exact = not exact.isdisjoint(node.input) or not self._fits(node)
            if is_exact and node.op_type not in _LAST:
                exact.update(node.output)
            stays = is_exact or node.output[0] in moved
            self._retype(node, self._float if stays else self._half)
            self._append(node, outputs)
        graph.ClearField("node")
        graph.node.extend(self._nodes)
        graph.ClearField("value_info")  # types of before
        read = {name for node in self._nodes for name in node.input} | outputs
        stored = [tensor for tensor in graph.initializer if tensor.name in read]
        graph.ClearField("initializer")
        graph.initializer.extend(stored)

    def _fits(self, node: NodeProto) -> bool:
        """Whether FP16 holds the node's constants.

        Of weights only the magnitude counts. A scale, or an epsilon, loses its meaning when it is subnormal.
        """
        for name in node.input:
            value = self._constants.get(name)
            if value is None or not value.size:
                continue
            magnitudes = np.abs(value[value != 0])
            largest = magnitudes.max(initial=0) * (_LEVELS if node.op_type in _SCALED else 1)
            single = node.op_type in _SCALED or value.size == 1
            if largest > _LIMITS.max or (single and magnitudes.min(initial=np.inf) < _LIMITS.smallest_normal):
                return False
        return True

    def _retype(self, node: NodeProto, wanted: int) -> None:
        """Cast the node's float inputs to the ``wanted`` type, or to float32 where its operator takes no other."""
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ModelError(f"node '{node.name}' ({node.op_type}) is control flow, which cannot be written in FP16")
        schema = self._schema(node)
        for index, name in enumerate(node.input):
            if self._types.get(name) not in (self._float, self._half):
                continue
            parameter = schema and schema.inputs[min(index, len(schema.inputs) - 1)]
            takes_half = parameter and "tensor(float16)" in parameter.types
            node.input[index] = self._as(name, wanted if takes_half else self._float)

    def _schema(self, node: NodeProto) -> OpSchema | None:
        """Return the operator's definition, or None when ONNX has none."""
        version = next((item.version for item in self._model.opset_import if item.domain == node.domain), 0)
        if not version or not self._onnx.defs.has(node.op_type, version, node.domain):
            return None
        schema: OpSchema = self._onnx.defs.get_schema(node.op_type, version, node.domain)
        return schema

    def _as(self, name: str, wanted: int) -> str:
        """Return the name of the tensor in that type. A constant is stored once more; another tensor is cast once."""
        if self._types[name] == wanted:
            return name
        if (name, wanted) not in self._cast:
            cast = f"{name}_{'half' if wanted == self._half else 'float'}"
            if name in self._constants and wanted == self._half:
                value = self._constants[name].astype(np.float16)
                self._model.graph.initializer.append(self._onnx.numpy_helper.from_array(value, cast))
            else:
                self._nodes.append(self._onnx.helper.make_node("Cast", [name], [cast], name=f"{cast}_cast", to=wanted))
            self._types[cast] = wanted
            self._cast[name, wanted] = cast
        return self._cast[name, wanted]

    def _append(self, node: NodeProto, graph_outputs: set[str]) -> None:
        """Add the node, record the types of its outputs, and cast graph outputs back to float32."""
        self._types |= self._output_types(node)
        self._nodes.append(node)
        for index, name in enumerate(node.output):
            if name in graph_outputs and self._types[name] == self._half:
                half = f"{name}_half"
                node.output[index] = half
                self._types |= {half: self._half, name: self._float}
                self._cast[name, self._half] = half
                cast = self._onnx.helper.make_node("Cast", [half], [name], name=f"{name}_cast", to=self._float)
                self._nodes.append(cast)

    def _output_types(self, node: NodeProto) -> dict[str, int]:
        schema = self._schema(node)
        if schema is None:  # such a node stays in float32, and its outputs keep their types
            return {name: self._declared.get(name, self._float) for name in node.output}
        types = {name: self._onnx.helper.make_tensor_type_proto(self._types[name], None) for name in node.input if name}
        inferred = self._onnx.shape_inference.infer_node_outputs(
            schema, node, types, opset_imports=list(self._model.opset_import), ir_version=self._model.ir_version
        )
        return {name: value.tensor_type.elem_type for name, value in inferred.items()}


def _moved(graph: GraphProto) -> set[str]:
    """Return the outputs of every Concat of quantized tensors and of the Q/DQ nodes around it.

    ONNX Runtime (seen in 1.32) makes a QLinearConcat of them, which knows no FP16 scales, and then refuses the graph.
    Nothing is computed there, so float32 scales cost nothing.
    """
    producer = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    moved: set[str] = set()
    for concat in (node for node in graph.node if node.op_type == "Concat"):
        before = [producer[name] for name in concat.input if name in producer]
        around = [node for node in (*before, *readers.get(concat.output[0], [])) if node.op_type in _SCALED]
        if around:
            moved.update(node.output[0] for node in (concat, *around))
    return moved


def _float_constants(graph: GraphProto) -> Iterator[tuple[str, Array]]:
    """Yield the name and the value of every float32 constant, whether stored or made by a Constant node."""
    onnx = need("onnx", "build")
    made = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    stored = [(tensor.name, tensor) for tensor in graph.initializer]
    for name, tensor in [*stored, *((node.output[0], node.attribute[0].t) for node in made)]:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield name, onnx.numpy_helper.to_array(tensor)
