"""A small INT8 graph as TensorRT wants it, and its like as TensorRT refuses it."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

#: Two modalities, as the graph's inputs are declared.
INPUTS = {"accel": ["batch", 4], "image": ["batch", 2, 6, 6]}


def quantized(zero_point=0, dtype=np.int8, bias="float32", **edits):
    """Return Conv and Gemm in INT8 with a Concat between, per-channel weights and dynamic batch, as bytes.

    Args:
        zero_point: of the activations.
        dtype: of the quantized activations.
        bias: "float32", or "int32" as ONNX Runtime's quantizer writes by default.
        edits: passed to :func:`serialized`.
    """
    graph = _Graph(dtype, zero_point, bias)
    conv = graph.weighted("Conv", "conv", graph.activation("image"), (5, 2, 3, 3), kernel_shape=[3, 3])
    graph.node("Flatten", [graph.activation(graph.node("Relu", [conv], "conv.relu"))], "flat")
    accel = graph.weighted("Gemm", "accel.linear", graph.activation("accel"), (6, 4), transB=1)
    fused = graph.node("Concat", [graph.activation("flat"), graph.activation(accel)], "fused", axis=1)
    graph.weighted("Gemm", "logits", graph.activation(fused), (3, 86), transB=1)
    return serialized(graph.nodes, INPUTS, {"logits": ["batch", 3]}, graph.values, **edits)


def single(operator, shape=("batch", 4), opset=20, domain="", **attributes):
    """Return a graph of one node from ``x`` to ``y``, as bytes."""
    nodes = [make_node(operator, ["x"], ["y"], name="only", domain=domain, **attributes)]
    return serialized(nodes, {"x": list(shape)}, {"y": list(shape)}, {}, opset)


def serialized(nodes, inputs, outputs, values, opset=20):
    """Return a model of float inputs and outputs, as bytes; nothing checks it."""
    graph = helper.make_graph(
        nodes,
        "g",
        [make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    domains = {"": opset, **{node.domain: 1 for node in nodes if node.domain}}
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


class _Graph:
    def __init__(self, dtype, zero_point, bias):
        self.nodes, self.values = [], {}
        self._dtype, self._zero_point, self._bias = dtype, zero_point, bias
        self._random = np.random.default_rng(0)

    def node(self, operator, inputs, name, **attributes):
        self.nodes.append(make_node(operator, inputs, [name], name=f"{name}.{operator}", **attributes))
        return name

    def activation(self, tensor):
        scale = self._value(f"{tensor}.scale", np.float32(0.05))
        zero = self._value(f"{tensor}.zero", np.array(self._zero_point, self._dtype))
        self.node("QuantizeLinear", [tensor, scale, zero], f"{tensor}.q")
        return self.node("DequantizeLinear", [f"{tensor}.q", scale, zero], f"{tensor}.dq")

    def weighted(self, operator, name, tensor, shape, **attributes):
        channels = shape[0]
        weight = self._value(f"{name}.weight", self._random.integers(-127, 128, shape).astype(np.int8))
        scale = self._value(f"{name}.weight.scale", np.full(channels, 0.01, np.float32))
        zero = self._value(f"{name}.weight.zero", np.zeros(channels, np.int8))
        self.node("DequantizeLinear", [weight, scale, zero], f"{name}.weight.dq", axis=0)
        inputs = [tensor, f"{name}.weight.dq", self._bias_of(name, channels)]
        return self.node(operator, inputs, name, **attributes)

    def _bias_of(self, name, channels):
        if self._bias == "float32":
            return self._value(f"{name}.bias", self._random.normal(size=channels).astype(np.float32))
        bias = self._value(f"{name}.bias", self._random.integers(-900, 900, channels).astype(np.int32))
        scale = self._value(f"{name}.bias.scale", np.full(channels, 0.05 * 0.01, np.float32))
        zero = self._value(f"{name}.bias.zero", np.zeros(channels, np.int32))
        return self.node("DequantizeLinear", [bias, scale, zero], f"{name}.bias.dq", axis=0)

    def _value(self, name, value):
        self.values[name] = np.asarray(value)
        return name
