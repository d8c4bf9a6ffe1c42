"""Small float graphs of the kinds of layers that optimizers rewrite, each with logits [N, 5] of an input x."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS = (
    "conv", "depthwise conv", "conv, large bias", "gemm", "matmul", "conv transpose", "grouped conv transpose", "add",
    "concat", "layer norm", "attention", "gelu", "mean over time",
)  # fmt: skip
IMAGE, SEQUENCE = (4, 8, 8), (6, 8)


class _Writer:
    def __init__(self):
        self.random = np.random.default_rng(0)
        self.nodes, self.stored = [], []

    def constant(self, array, dtype=np.float32):
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def weight(self, *shape, inputs):
        return self.constant(self.random.normal(size=shape) / np.sqrt(inputs))

    def add(self, kind, *inputs, **attributes):
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}.{len(self.nodes)}", **attributes))
        return name

    def conv(self, x, inputs, outputs, groups=1, bias=0.1, kind="Conv", **attributes):
        shape = (inputs, outputs // groups, 3, 3) if kind == "ConvTranspose" else (outputs, inputs // groups, 3, 3)
        weight = self.weight(*shape, inputs=9 * inputs // groups)
        shift = self.constant(bias * self.random.normal(size=outputs))
        return self.add(kind, x, weight, shift, group=groups, pads=[1] * 4, **attributes)

    def linear(self, x, inputs, outputs):
        return self.add("MatMul", x, self.weight(inputs, outputs, inputs=inputs))


def _attention(w, x):
    q, k, v = (w.linear(x, 8, 8) for _ in range(3))
    scores = w.add("MatMul", q, w.add("Transpose", k, perm=[0, 2, 1]))
    return w.add("MatMul", w.add("Softmax", scores, axis=-1), v)


def _body(w, kind, x):
    """Return a tensor like x, computed in the way that the kind says."""
    if kind == "depthwise conv":
        return w.add("Relu", w.conv(x, 4, 4, groups=4))
    if kind == "conv, large bias":
        return w.add("Relu", w.conv(w.add("Mul", x, w.constant(0.01)), 4, 4, bias=10))
    if kind == "conv transpose":
        return w.add("Relu", w.conv(x, 4, 4, kind="ConvTranspose"))
    if kind == "grouped conv transpose":
        return w.add("Relu", w.conv(x, 4, 4, groups=2, kind="ConvTranspose"))
    if kind == "add":
        return w.add("Relu", w.add("Add", w.conv(x, 4, 4), x))
    if kind == "concat":
        halves = [w.conv(x, 4, 2), w.add("Mul", w.conv(x, 4, 2), w.constant(3))]
        return w.add("Concat", *halves, axis=1)
    if kind == "conv":
        return w.add("Relu", w.conv(x, 4, 4))
    if kind == "matmul":
        return w.add("Relu", w.add("Add", w.linear(x, 8, 8), w.constant(w.random.normal(size=8))))
    if kind == "layer norm":
        return w.linear(w.add("LayerNormalization", w.linear(x, 8, 8), w.constant(np.ones(8)), axis=-1), 8, 8)
    if kind == "attention":
        return _attention(w, x)
    if kind == "gelu":
        return w.linear(w.add("Gelu", w.linear(x, 8, 8), approximate="tanh"), 8, 8)
    return w.linear(x, 8, 8)


def make(kind):
    """Return the graph, and a function from a number of samples to the feeds."""
    writer = _Writer()
    sequence = kind in ("matmul", "layer norm", "attention", "gelu", "mean over time", "gemm")
    shape = SEQUENCE if sequence else IMAGE
    x = writer.add("Mul", "x", writer.constant(0.5))  # raw inputs have arithmetic of their own
    y = _body(writer, kind, x)
    if kind == "mean over time":
        axes = writer.constant([1], np.int64)
        features, width = writer.add("ReduceMean", y, axes, keepdims=0), SEQUENCE[1]
    else:
        features, width = writer.add("Flatten", y), int(np.prod(shape))
    bias = writer.constant(writer.random.normal(size=5))
    writer.nodes.append(
        helper.make_node("Gemm", [features, writer.weight(width, 5, inputs=width), bias], ["logits"], name="head")
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        writer.nodes,
        "kind",
        [value("x", TensorProto.FLOAT, ["n", *shape])],
        [value("logits", TensorProto.FLOAT, ["n", 5])],
        writer.stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)

    def feeds(count, seed=1):
        return {"x": np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)}

    return model, feeds
