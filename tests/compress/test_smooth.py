"""Outlier channels move into the weights: the float network stays, and INT8 comes nearer to it."""

from functools import partial

import numpy as np
import onnx
import pytest
from int8 import USUAL, run
from onnx_graphs import error, graph, node, random, samples, stored

from edgekd.compress.activations.nearest import write_nearest
from edgekd.compress.activations.smooth import smooth
from edgekd.compress.quantizers.prepare import open_samples
from edgekd.compress.quantizers.registry import find_quantizer
from edgekd.compress.quantizers.write import write_quantized
from edgekd.config.target import Calibration

TIME, WIDTH = 10, 32
OUTLIERS = np.where(np.arange(WIDTH) % 16 == 3, 200.0, 1.0)


def network(gains=OUTLIERS, tail="norm", transposed=False):
    """Return a network in which a normalisation gives channels of some gains to two layers.

    The weights of the large channels are small, as those of trained transformers are. With "residual", float arithmetic
    reads the normalised tensor too.
    """
    up, side = random(WIDTH, WIDTH, seed=1) / gains[:, None], random(WIDTH, WIDTH, seed=2) / gains[:, None]
    nodes = [
        node("MatMul", ["x", "wi"], ["a"], name="embed"),
        node("LayerNormalization", ["a", "gain", "shift"], ["n"], axis=-1, name="norm"),
        node("MatMul", ["n", "up"], ["u"], name="up"),
        node("Relu", ["u"], ["r"], name="relu"),
        node("MatMul", ["n", "side"], ["s"], name="side"),
        node("Add", ["r", "s"], ["h0"], name="sum"),
        node("Mul", ["n", "tiny"], ["t"], name="scaled") if tail == "residual" else node("Identity", ["h0"], ["t"]),
        node("Add", ["h0", "t"], ["h"], name="residual"),
        node("ReduceMean", ["h"], ["e"], axes=[1], keepdims=0, name="mean"),
        node("Gemm", ["e", "w", "b"], ["y"], transB=int(transposed), name="head"),
    ]
    head = random(WIDTH, 3)
    tensors = {"wi": random(WIDTH, WIDTH), "gain": gains, "shift": 0.1 * gains, "up": up, "side": side, "b": random(3)}
    return graph(
        nodes,
        {"x": [TIME, WIDTH]},
        stored(**tensors, w=head.T.copy() if transposed else head, tiny=np.float32(1e-3)),
    )


def written(model, folder, quantizer="qdq"):
    """Quantize a model as a build does; return the QDQ graph, its float graph, the notes and the samples."""
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    feeds = samples(model, folder)
    calibration = Calibration(description="", ranges="minmax", samples=48)
    chunks = open_samples(folder / "model.onnx", folder / "samples.npz", calibration)
    found = write_nearest(
        partial(write_quantized, find_quantizer(quantizer)), folder / "model.onnx", chunks, USUAL, folder
    )
    return onnx.load(found.path), onnx.load(found.path.parent / "prepared.onnx"), found.notes, feeds


@pytest.mark.parametrize("quantizer", ["qdq", "nncf"])
@pytest.mark.parametrize("tail", ["norm", "residual"])
def test_int8_with_outlier_channels_comes_nearer_to_the_float_network(tmp_path, monkeypatch, tail, quantizer):
    model = network(tail=tail)
    qdq, floats, notes, feeds = written(model, tmp_path / "smooth", quantizer)
    exact = run(model, feeds)["y"]
    assert error(exact, run(floats, feeds)["y"]) < 1e-4, "the float network stays what it was"
    assert any("outlier channels of 1 activations are smoothed" in note for note in notes)
    monkeypatch.setattr("edgekd.compress.activations.nearest.smooth", lambda floats, samples: (floats, ()))
    plain, _, _, _ = written(model, tmp_path / "plain", quantizer)
    assert error(exact, run(qdq, feeds)["y"]) < 0.5 * error(exact, run(plain, feeds)["y"])


def test_a_normalisation_for_layers_alone_is_folded_and_another_one_gets_a_factor(tmp_path):
    folded, smoothed = smooth(network(), [samples(network(), tmp_path)])
    assert smoothed == ("n",)
    assert "Mul" not in {item.op_type for item in folded.graph.node}
    kept, smoothed = smooth(network(tail="residual"), [samples(network(), tmp_path)])
    assert smoothed == ("n",)
    assert [item.input[0] for item in kept.graph.node if item.op_type == "Mul"].count("n") == 2


@pytest.mark.parametrize("tail", ["norm", "residual"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_smoothed_graph_computes_the_same(tmp_path, tail, transposed):
    model = network(tail=tail, transposed=transposed)
    feeds = samples(model, tmp_path)
    smoothed, _ = smooth(model, [feeds])
    assert error(run(model, feeds)["y"], run(smoothed, feeds)["y"]) < 1e-5


CONVOLUTIONS = {
    "dense": {"second": (16, 8, 3, 3), "group": 1},
    "grouped": {"second": (16, 4, 3, 3), "group": 2},
    "depthwise": {"second": (8, 1, 3, 3), "group": 8},
}


def convolutions(second, group, limit="Relu", gain=100.0):
    """Return two convolutions with a limit between, whose first one gives channels of unlike magnitudes."""
    gains = np.where(np.arange(8) % 4 == 1, gain, 1.0)
    weight = random(*second, seed=3)
    by_channel = gains.reshape(group, 1, -1, 1, 1)
    weight = (weight.reshape(group, second[0] // group, *second[1:]) / by_channel).reshape(second)
    bounds = ["low", "high"] if limit == "Clip" else []
    nodes = [
        node("Conv", ["x", "k", "kb"], ["c"], name="first"),
        node(limit, ["c", *bounds], ["r"], name="limit"),
        node("Conv", ["r", "k2"], ["d"], name="second", group=group),
        node("GlobalAveragePool", ["d"], ["p"], name="pool"),
        node("Flatten", ["p"], ["f"], name="flat"),
        node("MatMul", ["f", "w"], ["y"], name="head"),
    ]
    first = random(8, 4, 3, 3) * gains.reshape(-1, 1, 1, 1)
    tensors = stored(k=first, kb=0.1 * gains, k2=weight, w=random(second[0], 3), low=np.float32(0), high=np.float32(6))
    return graph(nodes, {"x": [4, 10, 10]}, tensors)


@pytest.mark.parametrize("shapes", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("limit", ["Relu", "LeakyRelu", "Identity"])
def test_a_convolution_takes_up_the_outlier_channels_of_the_next(tmp_path, shapes, limit):
    model = convolutions(**shapes, limit=limit)
    feeds = samples(model, tmp_path)
    smoothed, names = smooth(model, [feeds])
    assert names == ("r",)
    assert len(smoothed.graph.node) == len(model.graph.node), "nothing is inserted before a convolution"
    assert error(run(model, feeds)["y"], run(smoothed, feeds)["y"]) < 1e-5


def test_int8_of_convolutions_with_outlier_channels_comes_nearer_to_the_float_network(tmp_path, monkeypatch):
    model = convolutions(**CONVOLUTIONS["depthwise"])
    qdq, _, notes, feeds = written(model, tmp_path / "smooth")
    exact = run(model, feeds)["y"]
    assert any("are smoothed" in note for note in notes)
    monkeypatch.setattr("edgekd.compress.activations.nearest.smooth", lambda floats, samples: (floats, ()))
    plain, _, _, _ = written(model, tmp_path / "plain")
    assert error(exact, run(qdq, feeds)["y"]) < 0.5 * error(exact, run(plain, feeds)["y"])


def test_a_limit_that_is_not_homogeneous_stays(tmp_path):
    model = convolutions(**CONVOLUTIONS["dense"], limit="Clip")
    model.graph.initializer[0].CopyFrom(stored(k=random(8, 4, 3, 3) * np.geomspace(1e-3, 1, 8).reshape(-1, 1, 1, 1))[0])
    assert smooth(model, [samples(model, tmp_path)])[1] == ()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_linear_layer_with_a_bias_takes_up_the_outlier_channels_of_the_next(tmp_path, transposed):
    gains = OUTLIERS
    up, down = random(WIDTH, WIDTH, seed=1) * gains, random(WIDTH, WIDTH, seed=2) / gains[:, None]
    nodes = [
        node("MatMul", ["x", "wi"], ["a"], name="embed"),
        node("Gemm", ["a", "up", "shift"], ["u"], transB=int(transposed), name="up"),
        node("Add", ["u", "more"], ["v"], name="add"),
        node("Relu", ["v"], ["r"], name="relu"),
        node("Gemm", ["r", "down", "b"], ["h"], transB=int(transposed), name="down"),
        node("MatMul", ["h", "w"], ["y"], name="head"),
    ]
    turned = {"up": up.T, "down": down.T} if transposed else {"up": up, "down": down}
    rest = {"wi": random(WIDTH, WIDTH), "shift": 0.1 * gains, "more": gains, "b": random(WIDTH), "w": random(WIDTH, 3)}
    model = graph(nodes, {"x": [WIDTH]}, stored(**{name: x.copy() for name, x in turned.items()}, **rest))
    feeds = samples(model, tmp_path)
    smoothed, names = smooth(model, [feeds])
    assert names == ("r",)
    assert "Mul" not in {item.op_type for item in smoothed.graph.node}
    assert error(run(model, feeds)["y"], run(smoothed, feeds)["y"]) < 1e-5


def test_without_outliers_nothing_is_smoothed(tmp_path):
    model = network(np.ones(WIDTH))
    assert smooth(model, [samples(model, tmp_path)])[1] == ()
    assert written(model, tmp_path / "work")[2] == ()


def test_a_channel_that_is_always_zero_is_no_division_by_zero(tmp_path):
    gains = OUTLIERS.copy()
    model = network(gains)
    for tensor in model.graph.initializer:
        if tensor.name in ("gain", "shift"):
            x = onnx.numpy_helper.to_array(tensor).copy()
            x[0] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(x, tensor.name))
    feeds = samples(model, tmp_path)
    smoothed, names = smooth(model, [feeds])
    assert names == ("n",)
    assert error(run(model, feeds)["y"], run(smoothed, feeds)["y"]) < 1e-5


def test_a_smoothing_that_changes_the_network_is_left_out_and_told(tmp_path, monkeypatch):
    def wrong(floats, samples):
        other, names = smooth(floats, samples)
        for item in other.graph.node:
            if item.name == "up":
                item.input[0] = "a"
        return other, names

    monkeypatch.setattr("edgekd.compress.activations.nearest.smooth", wrong)
    _, floats, notes, feeds = written(network(), tmp_path / "work")
    assert error(run(network(), feeds)["y"], run(floats, feeds)["y"]) < 1e-5
    assert any("outlier channels are not smoothed, since that changes" in note for note in notes)
