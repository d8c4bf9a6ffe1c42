"""Small float graphs of the kinds of layers that optimizers rewrite, each with logits [N, 5] of an input x."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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


def _biased(w, x):
    return w.add("Add", w.linear(x, 8, 8), w.constant(w.random.normal(size=8)))


def _concat(w, x):
    return w.add("Concat", w.conv(x, 4, 2), w.add("Mul", w.conv(x, 4, 2), w.constant(3)), axis=1)


def _norm(w, x):
    return w.linear(w.add("LayerNormalization", w.linear(x, 8, 8), w.constant(np.ones(8)), axis=-1), 8, 8)


def _mean(w, x):
    return w.add("ReduceMean", w.linear(x, 8, 8), w.constant([1], np.int64), keepdims=0)


#: For each kind the shape of a sample, and a function that adds the kind's nodes behind a tensor of that shape.
_BODIES = {
    "conv": (IMAGE, lambda w, x: w.add("Relu", w.conv(x, 4, 4))),
    "depthwise conv": (IMAGE, lambda w, x: w.add("Relu", w.conv(x, 4, 4, groups=4))),
    "conv, large bias": (IMAGE, lambda w, x: w.add("Relu", w.conv(w.add("Mul", x, w.constant(0.01)), 4, 4, bias=10))),
    "conv transpose": (IMAGE, lambda w, x: w.add("Relu", w.conv(x, 4, 4, kind="ConvTranspose"))),
    "grouped conv transpose": (
        IMAGE,
        lambda w, x: w.add("Relu", w.conv(x, 4, 4, groups=2, kind="ConvTranspose")),
    ),
    "add": (IMAGE, lambda w, x: w.add("Relu", w.add("Add", w.conv(x, 4, 4), x))),
    "concat": (IMAGE, _concat),
    "gemm": (SEQUENCE, lambda w, x: w.linear(x, 8, 8)),
    "matmul": (SEQUENCE, lambda w, x: w.add("Relu", _biased(w, x))),
    "layer norm": (SEQUENCE, _norm),
    "attention": (SEQUENCE, _attention),
    "gelu": (SEQUENCE, lambda w, x: w.linear(w.add("Gelu", w.linear(x, 8, 8), approximate="tanh"), 8, 8)),
    "mean over time": (SEQUENCE, _mean),
}
KINDS = tuple(_BODIES)


def make(kind):
    """Return the graph, and a function from a number of samples to the feeds."""
    writer, (shape, body) = _Writer(), _BODIES[kind]
    y = body(writer, writer.add("Mul", "x", writer.constant(0.5)))  # raw inputs have arithmetic of their own
    width = SEQUENCE[1] if kind == "mean over time" else int(np.prod(shape))
    features = writer.add("Flatten", y)
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
