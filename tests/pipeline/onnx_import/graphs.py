"""Small ONNX graphs as users bring them, each odd in one way, and samples for them."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from onnx.helper import make_node as node

FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64
ROWS = 12


def tensor(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def weights(seed=0, **shapes):
    random = np.random.default_rng(seed)
    return [numpy_helper.from_array(random.normal(size=shape).astype(np.float32), n) for n, shape in shapes.items()]


def integers(**values):
    return [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in values.items()]


def write(path, nodes, inputs, outputs, initializers=(), opset=17, domains=(), functions=()):
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    save(helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8), path)
    return path


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(ROWS, *shape)).astype(dtype)


def save_samples(path, **arrays):
    np.savez(path, **arrays)
    return path


def mlp(path, opset=17):
    """One float input and one layer: the plainest model there is."""
    return write(
        path,
        [node("Gemm", ["x", "w", "b"], ["y"])],
        [tensor("x", ["n", 4])],
        [tensor("y", ["n", 3])],
        weights(w=(4, 3), b=(3,)),
        opset,
    )


def two_towers(path):
    """A convolution over an image, a layer over a vector, joined behind them: [n, 8, 6, 6] and [n, 5, 4]."""
    nodes = [
        node("Conv", ["image", "k"], ["map"]),
        node("Relu", ["map"], ["map_relu"]),
        node("GlobalAveragePool", ["map_relu"], ["pooled"]),
        node("Flatten", ["pooled"], ["image_features"]),
        node("MatMul", ["motion", "m"], ["motion_tokens"]),
        node("ReduceMean", ["motion_tokens"], ["motion_features"], axes=[1], keepdims=0),
        node("Concat", ["image_features", "motion_features"], ["joined"], axis=1),
        node("Gemm", ["joined", "h"], ["scores"]),
        node("Softmax", ["scores"], ["probabilities"]),
    ]
    inputs = [tensor("image", ["n", 1, 8, 8]), tensor("motion", ["n", 5, 4])]
    outputs = [tensor("probabilities", ["n", 3]), tensor("scores", ["n", 3])]
    return write(path, nodes, inputs, outputs, weights(k=(8, 1, 3, 3), m=(4, 8), h=(16, 3)))


TOWERS = {"image": normal(1, 8, 8), "motion": normal(5, 4, seed=1)}


def scalar(path):
    """A batch, and a rank-0 gain for all of it."""
    return write(
        path,
        [node("Mul", ["x", "gain"], ["scaled"]), node("Gemm", ["scaled", "w"], ["y"])],
        [tensor("x", ["n", 4]), tensor("gain", [])],
        [tensor("y", ["n", 3])],
        weights(w=(4, 3)),
    )


def double(path):
    """Double in, double out."""
    return write(
        path,
        [
            node("Cast", ["x"], ["single"], to=FLOAT),
            node("Gemm", ["single", "w"], ["scores"]),
            node("Cast", ["scores"], ["y"], to=DOUBLE),
        ],
        [tensor("x", ["n", 4], DOUBLE)],
        [tensor("y", ["n", 3], DOUBLE)],
        weights(w=(4, 3)),
    )


def tokens(path):
    """Token numbers through an embedding table, and their mean through a layer."""
    return write(
        path,
        [
            node("Gather", ["table", "tokens"], ["words"]),
            node("ReduceMean", ["words"], ["sentence"], axes=[1], keepdims=0),
            node("Gemm", ["sentence", "w"], ["y"]),
        ],
        [tensor("tokens", ["n", "t"], INT64)],
        [tensor("y", ["n", 3])],
        weights(table=(50, 8), w=(8, 3)),
    )


def branch(path, constant, opset=17):
    """An ``If`` that a constant decides, or the largest value of the batch; its branches read outer tensors."""
    condition = (
        [node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))]
        if constant
        else [
            node("ReduceMax", ["x"], ["largest"], keepdims=0),
            node("Constant", [], ["zero"], value=numpy_helper.from_array(np.float32(0))),
            node("Greater", ["largest", "zero"], ["yes"]),
        ]
    )
    then, other = (
        helper.make_graph(
            [node("Gemm", ["hidden", name], [f"{name}_out"])], name, [], [tensor(f"{name}_out", ["n", 3])]
        )
        for name in ("w1", "w2")
    )
    nodes = [
        node("Gemm", ["x", "w"], ["hidden"]),
        *condition,
        node("If", ["yes"], ["y"], then_branch=then, else_branch=other),
    ]
    return write(
        path, nodes, [tensor("x", ["n", 4])], [tensor("y", ["n", 3])], weights(w=(4, 6), w1=(6, 3), w2=(6, 3)), opset
    )


def in_constants(path, opset):
    """Convolution and normalisation with their weights in ``Constant`` nodes, as Paddle writes them."""
    random = np.random.default_rng(3)
    values = {
        "k": random.normal(size=(6, 2, 3, 3)),
        "scale": random.uniform(0.5, 2, 6),
        "bias": random.normal(size=6),
        "mean": random.normal(size=6),
        "var": random.uniform(0.5, 2, 6),
    }
    constants = [
        node("Constant", [], [name], value=numpy_helper.from_array(value.astype(np.float32)))
        for name, value in values.items()
    ]
    nodes = [
        *constants,
        node("Conv", ["x", "k"], ["c"]),
        node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["normal"]),
        node("Relu", ["normal"], ["relu"]),
        node("GlobalAveragePool", ["relu"], ["pooled"]),
        node("Flatten", ["pooled"], ["y"]),
    ]
    # One name for sizes that differ, as some exporters give.
    return write(path, nodes, [tensor("x", ["?", 2, "?", "?"])], [tensor("y", ["?", 6])], opset=opset)


def recurrent(path):
    """A cell whose state goes in and out as [layers, batch, width]: the batch is not first."""
    nodes = [
        node("Squeeze", ["state", "axis"], ["before"]),
        node("MatMul", ["x", "w"], ["new"]),
        node("MatMul", ["before", "u"], ["kept"]),
        node("Add", ["new", "kept"], ["sum"]),
        node("Tanh", ["sum"], ["after"]),
        node("Unsqueeze", ["after", "axis"], ["state_out"]),
        node("Gemm", ["after", "v"], ["y"]),
    ]
    return write(
        path,
        nodes,
        [tensor("x", ["n", 4]), tensor("state", [1, "n", 5])],
        [tensor("y", ["n", 3]), tensor("state_out", [1, "n", 5])],
        [*weights(w=(4, 5), u=(5, 5), v=(5, 3)), *integers(axis=[0])],
    )


def fixed_batch(path):
    """A Reshape to constants that is right for a batch of one alone, though the input says otherwise."""
    return write(
        path,
        [node("Reshape", ["x", "shape"], ["flat"]), node("Gemm", ["flat", "w"], ["y"])],
        [tensor("x", ["n", 2, 2])],
        [tensor("y", ["n", 3])],
        [*weights(w=(4, 3)), *integers(shape=[1, 4])],
    )
