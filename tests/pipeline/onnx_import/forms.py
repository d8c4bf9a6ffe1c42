"""One small network of convolutions in the precisions in which people have networks, by the tools that they use."""

import graphs
import numpy as np
import onnx
from graphs import node, tensor
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16

from edgekd.compress.graph import sort_nodes

#: Weights of the network, each of one layer.
WEIGHTS = ("k1", "k2", "m1", "m2")


def network(path):
    """Two convolutions and two matrices: image [n, 1, 12, 12] to scores [n, 5]."""
    nodes = [
        node("Conv", ["image", "k1", "c1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "k2", "c2"], ["c"], name="second", strides=[2, 2]),
        node("Relu", ["c"], ["d"]),
        node("Flatten", ["d"], ["e"]),
        node("MatMul", ["e", "m1"], ["f"], name="third"),
        node("Relu", ["f"], ["g"]),
        node("MatMul", ["g", "m2"], ["h"], name="last"),
        node("Softmax", ["h"], ["scores"]),
    ]
    stored = graphs.weights(k1=(8, 1, 3, 3), k2=(16, 8, 3, 3), m1=(400, 64), m2=(64, 5), c1=(8,), c2=(16,))
    scaled = [
        numpy_helper.from_array(
            numpy_helper.to_array(item) / np.sqrt(np.prod(item.dims[1:]) or 1).astype("f"), item.name
        )
        for item in stored
    ]
    return graphs.write(path, nodes, [tensor("image", ["n", 1, 12, 12])], [tensor("scores", ["n", 5])], scaled)


def samples(rows=160, dtype=np.float32):
    return {"image": np.random.default_rng(3).normal(size=(rows, 1, 12, 12)).astype(dtype)}


class _Reader(CalibrationDataReader):
    def __init__(self):
        self._rows = iter(samples()["image"][:32])

    def get_next(self):
        row = next(self._rows, None)
        return None if row is None else {"image": row[None]}


def qdq(source, path):
    quantize_static(source, path, _Reader(), quant_format=QuantFormat.QDQ, per_channel=True)


def qoperator(source, path):
    quantize_static(source, path, _Reader(), quant_format=QuantFormat.QOperator)


def dynamic(source, path):
    quantize_dynamic(source, path)


def nbits(source, path):
    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=4, block_size=32, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))


def half(source, path):
    onnx.save(convert_float_to_float16(onnx.load(source)), path)


def half_inside(source, path):
    model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    sort_nodes(model.graph)  # which the converter does not
    onnx.save(model, path)


def half_stored(source, path):
    """Weights in float16, each behind a Cast, and arithmetic in float32."""
    _stored(source, path, lambda name, w: ({name: w.astype(np.float16)}, [_cast(name)]))


def cast_and_mul(source, path):
    """Weights in INT8, each behind Cast and Mul."""

    def store(name, w):
        scale, levels = _levels(w)
        nodes = [_cast(name, f"{name}_whole"), node("Mul", [f"{name}_whole", f"{name}_scale"], [name])]
        return {name: levels, f"{name}_scale": scale}, nodes

    _stored(source, path, store)


def dequantized(source, path):
    """Weights in INT8, each behind DequantizeLinear."""

    def store(name, w):
        scale, levels = _levels(w)
        nodes = [node("DequantizeLinear", [f"{name}_stored", f"{name}_scale"], [name])]
        return {name: levels, f"{name}_scale": scale}, nodes

    _stored(source, path, store)


def fake_quantized(source, path):
    """Weights in float, each behind QuantizeLinear and DequantizeLinear, as after training with fake quantization."""

    def store(name, w):
        scale, _ = _levels(w)
        rounded = [f"{name}_rounded", f"{name}_scale", "zero"]
        nodes = [
            node("QuantizeLinear", [f"{name}_stored", f"{name}_scale", "zero"], [f"{name}_rounded"]),
            node("DequantizeLinear", rounded, [name]),
        ]
        return {name: w, f"{name}_scale": scale, "zero": np.int8(0)}, nodes

    _stored(source, path, store)


def _levels(w):
    scale = np.float32(np.abs(w).max() / 127)
    return scale, np.round(w / scale).astype(np.int8)


def _cast(name, output=None):
    return node("Cast", [f"{name}_stored"], [output or name], to=TensorProto.FLOAT)


def _stored(source, path, store):
    """Write the network with other tensors in place of its weights, and nodes that make these of them."""
    model = onnx.load(source)
    by_name = {item.name: item for item in model.graph.initializer}
    made = []
    for name in WEIGHTS:
        tensors, nodes = store(name, numpy_helper.to_array(by_name[name]))
        made += nodes
        model.graph.initializer.remove(by_name[name])
        present = {item.name for item in model.graph.initializer}
        for key, array in tensors.items():
            stored = f"{key}_stored" if key == name else key
            if stored not in present:
                model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), stored))
    nodes = [*made, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    onnx.save(model, path)


#: Those that edgekd quantizes again, since all of their arithmetic is in floats.
FLOATS = {
    "half": half,
    "half_inside": half_inside,
    "half_stored": half_stored,
    "cast_and_mul": cast_and_mul,
    "dequantized": dequantized,
    "fake_quantized": fake_quantized,
}

#: Those that it takes only as they are.
QUANTIZED = {"qdq": qdq, "qoperator": qoperator, "dynamic": dynamic, "nbits": nbits}

FORMS = {**FLOATS, **QUANTIZED}
