"""int8 activations become uint8 where a target wants them: the same numbers, which OpenVINO then computes right."""

import int8
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node as node

from edgekd.compress.quantizers.unsigned import make_unsigned
from edgekd.runtime.backends.registry import Runtime

FLOAT = TensorProto.FLOAT
CHANNELS, STEPS, HIDDEN = 32, 8, 6


def tensor(name, shape):
    return helper.make_tensor_value_info(name, FLOAT, shape)


def stored(**arrays):
    return [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def recurrent(kind=np.int8, zero=-41):
    """A network as NNCF writes that of a voice activity detector: Concat of int8, a convolution, and an LSTM."""
    random = np.random.default_rng(0)
    nodes = []
    for name in ("a", "b"):
        nodes += [
            node("Abs", [f"x_{name}"], [f"abs_{name}"]),
            node("QuantizeLinear", [f"abs_{name}", "scale", "zero"], [f"q_{name}"]),
            node("DequantizeLinear", [f"q_{name}", "scale", "zero"], [f"d_{name}"]),
        ]
    nodes += [
        node("Concat", ["d_a", "d_b"], ["joined"], axis=1),
        node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w"], axis=0),
        node("Conv", ["joined", "w"], ["y"], kernel_shape=[1]),
        node("Transpose", ["y"], ["rows"], perm=[2, 0, 1]),
        node("LSTM", ["rows", "lw", "lr", "", "", "h", "c"], ["", "hn", "cn"], hidden_size=HIDDEN),
    ]
    weights = {
        "scale": np.float32(0.06), "zero": np.array(zero, kind),
        "w_q": np.clip(random.normal(0, 20, (16, CHANNELS, 1)), -63, 63).astype(np.int8),
        "w_scale": np.full(16, 0.01, np.float32), "w_zero": np.zeros(16, np.int8),
        "lw": random.normal(0, 0.1, (1, 4 * HIDDEN, 16)).astype(np.float32),
        "lr": random.normal(0, 0.3, (1, 4 * HIDDEN, HIDDEN)).astype(np.float32),
    }  # fmt: skip
    inputs = [tensor(f"x_{name}", [1, CHANNELS // 2, STEPS]) for name in ("a", "b")]
    inputs += [tensor(name, [1, 1, HIDDEN]) for name in ("h", "c")]
    outputs = [tensor("y", [1, 16, STEPS]), tensor("hn", [1, 1, HIDDEN]), tensor("cn", [1, 1, HIDDEN])]
    graph = helper.make_graph(nodes, "vad", inputs, outputs, stored(**weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds():
    random = np.random.default_rng(1)
    shapes = {
        "x_a": (1, CHANNELS // 2, STEPS),
        "x_b": (1, CHANNELS // 2, STEPS),
        "h": (1, 1, HIDDEN),
        "c": (1, 1, HIDDEN),
    }
    return {name: random.normal(0, 3, shape).astype(np.float32) for name, shape in shapes.items()}


def rms(x):
    return float(np.sqrt(np.square(x).mean()))


@pytest.mark.parametrize("zero", [-128, -41, 0, 127])
def test_every_level_keeps_its_value(zero):
    model = recurrent(zero=zero)
    before = int8.run(model, feeds())
    make_unsigned(model.graph)
    onnx.checker.check_model(model)
    assert int8.same(int8.run(model, feeds()), before)
    types = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in model.graph.initializer}
    quantizers = [one for one in model.graph.node if one.op_type == "QuantizeLinear"]
    assert {types[one.input[2]] for one in quantizers} == {np.dtype(np.uint8)}
    assert types["w_q"] == types["w_zero"] == np.int8


def test_what_is_uint8_already_and_what_others_read_as_it_is_stays():
    model = recurrent(np.uint8, 87)
    before = model.SerializeToString()
    make_unsigned(model.graph)
    assert model.SerializeToString() == before
    model = recurrent()
    model.graph.output.append(helper.make_tensor_value_info("q_a", TensorProto.INT8, None))
    make_unsigned(model.graph)
    left = {one.output[0]: one.input[2] for one in model.graph.node if one.op_type == "QuantizeLinear"}
    assert (left["q_a"], left["q_b"]) == ("zero", "q_b_unsigned_zero_point")


def test_openvino_computes_what_the_graph_says(tmp_path):
    model = recurrent()
    exact = int8.run(model, feeds())
    make_unsigned(model.graph)
    onnx.save(model, tmp_path / "m.onnx")
    with Runtime("openvino", {"device": "CPU", "precision": "f32"}).open(tmp_path / "m.onnx") as session:
        found = session.run(feeds())
    for name, expected in exact.items():
        assert rms(found[name] - expected) < 1e-3 * rms(expected), name
