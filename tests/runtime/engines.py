"""A real late-fusion engine, small enough to make in a test."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from onnx.helper import make_node, make_tensor_value_info

CLASSES = ["left", "right", "up"]
EMBEDDINGS = ("embedding.accel", "embedding.image")
INPUTS = [
    {"name": "accel", "dtype": "float32", "shape": ["batch", 4], "preprocessing": "m/s^2, divided by 9.81"},
    {"name": "image", "dtype": "float32", "shape": ["batch", 1, 2, 3], "preprocessing": "0..255 divided by 255"},
]


def save_engine(path, outputs=("logits", *EMBEDDINGS), batch="batch", turn=0.0, bias=0.0):
    """Write the engine; ``turn`` rotates one modality against the other, ``bias`` favours the first class."""
    random = np.random.default_rng(7)
    rotation = np.eye(5)
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    weights = {
        "accel.weight": random.normal(size=(4, 5)),
        "image.weight": random.normal(size=(6, 5)) @ rotation,
        "head.weight": random.normal(size=(10, 3)),
        "head.bias": np.array([bias, 0, 0]),
    }
    nodes = [
        make_node("MatMul", ["accel", "accel.weight"], ["embedding.accel"]),
        make_node("Flatten", ["image"], ["flat"]),
        make_node("MatMul", ["flat", "image.weight"], ["embedding.image"]),
        make_node("Concat", list(EMBEDDINGS), ["fused"], axis=1),
        make_node("Gemm", ["fused", "head.weight", "head.bias"], ["logits"]),
    ]
    widths = {"logits": 3, "embedding.accel": 5, "embedding.image": 5}
    graph = helper.make_graph(
        nodes,
        "fusion",
        [_tensor("accel", [batch, 4]), _tensor("image", [batch, 1, 2, 3])],
        [_tensor(name, [batch, widths[name]]) for name in outputs],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return save_graph(path, graph)


def save_graph(path, graph):
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def samples(rows, seed=0):
    random = np.random.default_rng(seed)
    return {
        "accel": random.normal(size=(rows, 4)).astype(np.float32),
        "image": random.normal(size=(rows, 1, 2, 3)).astype(np.float32),
    }


def save_samples(path, rows, **extra):
    np.savez(path, **{f"input.{name}": x for name, x in samples(rows).items()}, **extra)
    return path


def _tensor(name, shape):
    return make_tensor_value_info(name, TensorProto.FLOAT, shape)
