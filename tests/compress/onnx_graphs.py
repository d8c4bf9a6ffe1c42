"""Small float graphs, node by node, with their samples."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.quantizers.registry import find_quantizer
from edgekd.compress.quantizers.write import write_quantized
from edgekd.config.target import Calibration, Scheme

USUAL = Scheme(activations="uint8", symmetric_activations=False)
SYMMETRIC = Scheme(activations="int8", symmetric_activations=True, bias="float", reduce_range=False)
ROWS = 48

node = make_node


def random(*shape, seed=0):
    """Return weights whose layers keep the size of what they read."""
    return np.random.default_rng([seed, *shape]).normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1)


def stored(**arrays):
    """Return stored tensors, in float32 but for integers, booleans and half precision."""
    values = {name: np.asarray(array) for name, array in arrays.items()}
    single = {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in values.items()}
    return [numpy_helper.from_array(x, name) for name, x in single.items()]


def graph(nodes, inputs, tensors, outputs=None, opset=17, types=None):
    """Return a model of rows ``n``, whose output by default is y [n, 3]."""
    types = types or {}

    def values(shapes):
        return [make_tensor_value_info(k, types.get(k, TensorProto.FLOAT), ["n", *s]) for k, s in shapes.items()]

    made = helper.make_graph(nodes, "g", values(inputs), values(outputs or {"y": [3]}), tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def samples(model, folder, **given):
    """Write samples of the model's inputs, normal but for those that are given, and return them."""
    feeds = dict(given)
    for seed, value in enumerate(model.graph.input):
        shape = [dim.dim_value or ROWS for dim in value.type.tensor_type.shape.dim]
        normal = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        feeds.setdefault(value.name, normal)
    rows = len(next(iter(feeds.values())))
    np.savez(folder / "samples.npz", ids=np.arange(rows), **{f"input.{name}": x for name, x in feeds.items()})
    return feeds


def quantize(model, folder, scheme=USUAL, quantizer="qdq", **given):
    """Quantize a model; return the QDQ graph, the notes, and the samples."""
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    feeds = samples(model, folder, **given)
    calibration = Calibration(description="", ranges="minmax", samples=len(next(iter(feeds.values()))))
    used = find_quantizer(quantizer) if isinstance(quantizer, str) else quantizer
    chunks = CalibrationSamples(folder / "samples.npz", calibration)
    written = write_quantized(used, folder / "model.onnx", chunks, scheme, folder)
    return onnx.load(written.path), written.notes, feeds


def int8_layers(qdq):
    """Return the names of the layers that read dequantized weights."""
    made = {name: item.op_type for item in qdq.graph.node for name in item.output}
    layers = [item for item in qdq.graph.node if item.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    return [item.name for item in layers if made.get(item.input[1]) == "DequantizeLinear"]


def readers(qdq, tensor):
    """Return the operators that read a tensor."""
    return {item.op_type for item in qdq.graph.node if tensor in item.input}


def error(exact, found):
    """Return the largest |difference| as a share of the largest magnitude."""
    return float(np.abs(np.asarray(found, float) - exact).max() / max(np.abs(exact).max(), 1e-12))
