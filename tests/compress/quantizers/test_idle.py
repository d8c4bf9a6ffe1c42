"""Pairs that no integer kernel takes are left out, and every layer still computes in INT8."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx_graphs import graph, int8_layers, node, quantize, random, stored

TIME, WIDTH = 12, 32


def encoder():
    """Return one block of a transformer's encoder, with biases, residuals, a softmax and a GELU."""
    nodes = [
        node("MatMul", ["x", "wi"], ["a"], name="embed"),
        node("LayerNormalization", ["a", "ones"], ["n"], axis=-1, name="norm"),
        *(node("MatMul", ["n", f"w{k}"], [f"{k}0"], name=k) for k in "qkv"),
        *(node("Add", [f"{k}0", f"b{k}"], [k], name=f"bias {k}") for k in "qkv"),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"], name="scores"),
        node("Softmax", ["scores"], ["p"], axis=-1, name="softmax"),
        node("MatMul", ["p", "v"], ["mixed"], name="mix"),
        node("MatMul", ["mixed", "wo"], ["o"], name="out"),
        node("Add", ["o", "a"], ["r"], name="residual"),
        node("MatMul", ["r", "wu"], ["u0"], name="up"),
        node("Add", ["u0", "bu"], ["u"], name="bias u"),
        node("Div", ["u", "root"], ["ud"], name="gelu divide"),
        node("Erf", ["ud"], ["ue"], name="gelu erf"),
        node("Add", ["ue", "one"], ["u1"], name="gelu add"),
        node("Mul", ["u", "u1"], ["g"], name="gelu"),
        node("MatMul", ["g", "wd"], ["d"], name="down"),
        node("ReduceMean", ["d"], ["e"], axes=[1], keepdims=0, name="mean"),
        node("MatMul", ["e", "w"], ["y"], name="head"),
    ]
    square = {f"w{k}": random(WIDTH, WIDTH, seed=seed) for seed, k in enumerate("iqkvo")}
    biases = {f"b{k}": random(WIDTH, seed=seed) for seed, k in enumerate("qkv")}
    rest = {
        "wu": random(WIDTH, 2 * WIDTH),
        "wd": random(2 * WIDTH, WIDTH),
        "bu": random(2 * WIDTH),
        "w": random(WIDTH, 3),
    }
    scalars = {"ones": np.ones(WIDTH), "root": np.float32(np.sqrt(2)), "one": np.float32(1)}
    return graph(nodes, {"x": [TIME, WIDTH]}, stored(**square, **biases, **rest, **scalars))


def fused(model, folder):
    """Return how many nodes of each operator ONNX Runtime makes of a graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(item.op_type for item in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("quantizer", ["qdq", "nncf"])
def test_layers_give_floats_to_float_arithmetic(tmp_path, quantizer):
    model = encoder()
    qdq, notes, _ = quantize(model, tmp_path / "work", quantizer=quantizer)
    assert not notes
    assert {"embed", "q", "k", "v", "out", "up", "down", "head"} <= set(int8_layers(qdq))
    rounded = {item.input[0] for item in qdq.graph.node if item.op_type == "QuantizeLinear"}
    assert rounded.isdisjoint({"q0", "k0", "v0", "scores", "o", "u0", "d"}), "float arithmetic reads these alone"
    assert {"x", "n", "mixed", "r", "g", "e"} <= rounded, "layers read these"


def test_onnx_runtime_computes_every_layer_with_integers_and_no_pair_is_left_over(tmp_path):
    qdq, _, _ = quantize(encoder(), tmp_path / "work")
    counts = fused(qdq, tmp_path)
    assert counts["MatMul"] == 0
    assert counts["MatMulIntegerToFloat"] + counts["QLinearMatMul"] == 10
    assert counts["DequantizeLinear"] <= 2


def test_a_pair_behind_a_convolution_stays(tmp_path):
    nodes = [
        node("Conv", ["x", "k"], ["c"], name="first"),
        node("Sigmoid", ["c"], ["s"], name="gate"),
        node("Mul", ["c", "s"], ["m"], name="product"),
        node("GlobalAveragePool", ["m"], ["p"], name="pool"),
        node("Flatten", ["p"], ["f"], name="flat"),
        node("MatMul", ["f", "w"], ["y"], name="head"),
    ]
    model = graph(nodes, {"x": [4, 8, 8]}, stored(k=random(8, 4, 3, 3), w=random(8, 3)))
    qdq, _, _ = quantize(model, tmp_path / "work")
    assert "c" in {item.input[0] for item in qdq.graph.node if item.op_type == "QuantizeLinear"}
    assert fused(qdq, tmp_path)["QLinearConv"] == 1
