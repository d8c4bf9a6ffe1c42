"""A chain of layers as deep as one likes: errors of each reach all that follow."""

import numpy as np
from int8 import int8
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.compress.graph import save

WIDTH = 16


def inputs(count, seed):
    """Return inputs that mostly move together, [count, WIDTH]."""
    shared = np.random.default_rng(9).normal(size=(4, WIDTH))
    return (np.random.default_rng(seed).normal(size=(count, 4)) @ shared).astype(np.float32)


def deep(folder, depth):
    """Return QDQ graph and float graph of ``depth`` Gemm nodes with Relu between them; samples lie in the folder."""
    random = np.random.default_rng(0)
    nodes, stored, last = [], [], "image"
    for layer in range(depth):
        weights = random.normal(size=(WIDTH, WIDTH)) * np.sqrt(2 / WIDTH)
        for name, values in ((f"w{layer}", weights), (f"b{layer}", random.normal(size=WIDTH) * 0.1)):
            stored.append(numpy_helper.from_array(values.astype(np.float32), name))
        result = "logits" if layer == depth - 1 else f"sum{layer}"
        nodes.append(make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [result], name=f"layer{layer}"))
        last = result
        if layer < depth - 1:
            last = f"relu{layer}"
            nodes.append(make_node("Relu", [result], [last]))
    nodes.append(make_node("Identity", ["logits"], ["embedding.image"]))
    value, *outputs = (
        make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH])
        for name in ("image", "logits", "embedding.image")
    )
    graph = helper.make_graph(nodes, "chain", [value], outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    save(model, folder / "model.onnx")
    np.savez(folder / "samples.npz", **{"input.image": inputs(200, 1), "ids": np.arange(200)})
    return int8(folder / "model.onnx", folder / "samples.npz", folder / "work")
