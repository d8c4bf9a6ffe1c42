"""The first layer of raw channels of unlike units stays float where one scale would round what it reads away."""

import numpy as np
import pytest
from onnx_graphs import graph, int8_layers, node, quantize, random, stored

from edgekd.compress.quantizers.units import unlike_layers

UNITS = np.array([1e5, 1, 1e-3, 10])
V, C = random(12, 3), random(3, seed=1)


def first_layer(kind):
    """Return the layer of x [n, 4, ...] as a node, its weight with a row for each channel, and x's other dimensions."""
    weight = random(4, 12)
    return {
        "Gemm": (node("Gemm", ["x", "w"], ["a"], name="first"), weight, ()),
        "transposed Gemm": (node("Gemm", ["x", "w"], ["a"], name="first", transB=1), weight, ()),
        "MatMul": (node("MatMul", ["x", "w"], ["a"], name="first"), weight, ()),
        "Conv": (node("Conv", ["x", "w"], ["a"], name="first"), weight, (1,)),
        "grouped Conv": (node("Conv", ["x", "w"], ["a"], name="first", group=2), weight, (1,)),
    }[kind]


def network(kind, gains):
    layer, weight, rest = first_layer(kind)
    weight = weight * np.asarray(gains)[:, None]
    if kind in ("transposed Gemm", "Conv"):
        weight = weight.T
    if kind == "grouped Conv":  # each half of the outputs reads half of the channels
        weight = np.concatenate([weight[:2, :6], weight[2:, 6:]], 1).T
    weight = weight[..., None] if rest else weight
    tail = [
        node("Relu", ["a"], ["r"]),
        node("Flatten", ["r"], ["f"]),
        node("Gemm", ["f", "v", "c"], ["y"], name="last"),
    ]
    return graph([layer, *tail], {"x": [4, *rest]}, stored(w=weight, v=V, c=C))


def rows(units, rest):
    return (np.random.default_rng(0).normal(size=(48, 4, *rest)) * units.reshape(4, *[1] * len(rest))).astype(
        np.float32
    )


@pytest.mark.parametrize("quantizer", ["qdq", "nncf"])
@pytest.mark.parametrize("kind", ["Gemm", "transposed Gemm", "MatMul", "Conv", "grouped Conv"])
def test_a_layer_that_needs_channels_of_unlike_units_stays_float_and_is_named(tmp_path, kind, quantizer):
    model, x = network(kind, 1 / UNITS), rows(UNITS, first_layer(kind)[2])
    qdq, notes, _ = quantize(model, tmp_path, quantizer=quantizer, x=x)
    assert int8_layers(qdq) == ["last"]
    (note,) = notes
    assert "'first'" in note
    assert "more than 100%" in note


@pytest.mark.parametrize("kind", ["Gemm", "MatMul", "Conv", "grouped Conv"])
@pytest.mark.parametrize(
    "units", [np.ones(4), np.array([1, 2, 4, 3]), 255 * np.ones(4)], ids=["alike", "near", "pixels"]
)
def test_channels_of_like_units_are_rounded(tmp_path, kind, units):
    qdq, notes, _ = quantize(network(kind, np.ones(4)), tmp_path, x=rows(np.array(units), first_layer(kind)[2]))
    assert int8_layers(qdq) == ["first", "last"]
    assert notes == ()


def test_small_channels_that_the_network_ignores_do_no_harm(tmp_path):
    qdq, notes, _ = quantize(network("Gemm", np.ones(4)), tmp_path, x=rows(UNITS, ()))
    assert int8_layers(qdq) == ["first", "last"]
    assert notes == ()


def test_an_offset_that_is_larger_than_what_varies_is_seen():
    x = rows(np.ones(4), ())
    x[:, 0] += 1000  # a pressure, say
    assert unlike_layers(network("Gemm", np.ones(4)), [{"x": x}]).keys() == {"first"}
    x[:, 0] -= 1000
    assert unlike_layers(network("Gemm", np.ones(4)), [{"x": x}]) == {}


def test_constant_channels_alone_name_nothing():
    assert unlike_layers(network("Gemm", np.ones(4)), [{"x": np.ones((48, 4), np.float32)}]) == {}
