"""ConvTranspose in groups, of any dimensions, is rounded rightly by every quantizer."""

import numpy as np
import onnx
import pytest
from fusion import snr_db
from int8 import SYMMETRIC, USUAL, int8, run
from onnx import TensorProto, helper, numpy_helper

from edgekd.compress.qdq_map import find_sites

CHANNELS = 8
SHAPES = {
    "groups": ((5, 5), 8, {"group": 4, "strides": [2, 2]}),
    "depthwise": ((5, 5), 8, {"group": 8, "strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}),
    "dilated": ((5, 5), 4, {"group": 2, "dilations": [2, 2]}),
    "one dimension": ((9,), 16, {"group": 8, "strides": [3], "output_padding": [2]}),
    "three dimensions": ((3, 3, 3), 4, {"group": 2, "strides": [2, 2, 2]}),
    "one group": ((5, 5), 6, {"strides": [2, 2]}),
}


@pytest.fixture(params=SHAPES)
def files(request, tmp_path):
    """Return a graph of two ConvTranspose, one without a bias, its samples, and their values."""
    sizes, outputs, attributes = SHAPES[request.param]
    random, group = np.random.default_rng(0), attributes.get("group", 1)
    kernel = [3] * len(sizes)
    stored = {
        "w": random.normal(size=(CHANNELS, outputs // group, *kernel)),
        "b": random.normal(size=outputs),
        "w2": random.normal(size=(outputs, outputs // group, *kernel)),
        "head": random.normal(size=(outputs, 5)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("ConvTranspose", ["x", "w", "b"], ["up"], name="up", **attributes),
            helper.make_node("Relu", ["up"], ["r"]),
            helper.make_node("ConvTranspose", ["r", "w2"], ["up2"], name="up2", group=group),
            helper.make_node("ReduceMean", ["up2", "axes"], ["pooled"], keepdims=0),
            helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
        ],
        "decoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, *sizes])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in stored.items()]
        + [numpy_helper.from_array(np.arange(2, 2 + len(sizes)), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    x = random.normal(size=(64, CHANNELS, *sizes)).astype(np.float32)
    np.savez(tmp_path / "s.npz", **{"input.x": x})
    return tmp_path / "m.onnx", tmp_path / "s.npz", {"x": x}


@pytest.mark.parametrize(
    ("quantizer", "scheme"), [("qdq", USUAL), ("qdq", SYMMETRIC), ("nncf", USUAL)], ids=["usual", "symmetric", "nncf"]
)
def test_both_layers_are_int8_and_near_the_float_network(files, tmp_path, quantizer, scheme):
    model, samples, feeds = files
    qdq, floats = int8(model, samples, tmp_path / "work", scheme, quantizer)
    assert {"w", "w2"} <= find_sites(qdq, floats).keys()
    assert snr_db(run(floats, feeds)["logits"], run(qdq, feeds)["logits"]) > 20
