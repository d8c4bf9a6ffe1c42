"""INT8 of integer operators: what is written computes the float network but for rounding, and what is not is found."""

import numpy as np
import onnx
import pytest
from int8 import run
from onnx import TensorProto, numpy_helper
from onnx_graphs import graph, node, random, stored

from edgekd.compress import quantize
from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.oracles.integers import first_miswritten
from edgekd.compress.quantizers.dynamic import write as write_dynamic
from edgekd.compress.variants import CandidateSpec
from edgekd.config.recipe import QuantizeConfig
from edgekd.config.target import Calibration, Scheme, read_target
from edgekd.errors import ModelError, TargetError

CALIBRATION = Calibration(description="", ranges="minmax", samples=32)
SCHEME = Scheme(activations="uint8", symmetric_activations=False)
QUANTIZERS = ("dynamic", "weights8", "weights4")
OPERATORS = {"dynamic": "MatMulInteger", "weights8": "MatMulNBits", "weights4": "MatMulNBits"}
#: Least ratio of signal to error in dB: 4 bits of random weights are coarse.
CLOSE = {"dynamic": 30, "weights8": 32, "weights4": 12}


def encoder(seed=0):
    """Return a small transformer block with a mask, an odd width, a tied matrix and a bias: ids [n, 9] and mask."""
    tensors = stored(
        table=random(300, 40, seed=seed), wq=random(40, 40, seed=seed + 1), wk=random(40, 40, seed=seed + 2),
        wv=random(40, 40, seed=seed + 3), w1=random(40, 70, seed=seed + 4), b1=random(70), w2=random(5, 70, seed=seed),
        b2=random(5), low=np.float32(-1e4), one=np.float32(1), axes=np.array([1]), by=np.float32(0.3),
    )  # fmt: skip
    nodes = [
        node("Gather", ["table", "ids"], ["e"], name="lookup"),
        *(node("MatMul", ["e", f"w{part}"], [part], name=f"to_{part}") for part in "qkv"),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"], name="scores"),
        node("Sub", ["one", "mask"], ["hidden"]),
        node("Mul", ["hidden", "low"], ["masked"]),
        node("Unsqueeze", ["masked", "axes"], ["wide"]),
        node("Add", ["scores", "wide"], ["added"]),
        node("Softmax", ["added"], ["shares"], axis=-1),
        node("MatMul", ["shares", "v"], ["mixed"], name="mix"),
        node("MatMul", ["mixed", "w1"], ["h"], name="widen"),
        node("Add", ["h", "b1"], ["hb"]),
        node("Relu", ["hb"], ["hr"]),
        node("ReduceMean", ["hr"], ["pooled"], axes=[1], keepdims=0),
        node("Gemm", ["pooled", "w2", "b2"], ["y"], name="head", transB=1, alpha=0.5),
    ]
    return graph(nodes, {"ids": [9], "mask": [9]}, tensors, {"y": [5]}, types={"ids": TensorProto.INT64})


def recurrent():
    """Return an LSTM of both directions with a head, over x [n, 6, 8]."""
    tensors = stored(
        w=random(2, 4 * 24, 8),
        r=random(2, 4 * 24, 24),
        b=random(2, 8 * 24),
        head=random(48, 3),
        shape=np.array([0, 48]),
    )
    nodes = [
        node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        node("LSTM", ["steps", "w", "r", "b"], ["", "last"], name="lstm", hidden_size=24, direction="bidirectional"),
        node("Transpose", ["last"], ["rows"], perm=[1, 0, 2]),
        node("Reshape", ["rows", "shape"], ["flat"]),
        node("MatMul", ["flat", "head"], ["y"], name="head"),
    ]
    return graph(nodes, {"x": [6, 8]}, tensors)


def feeds_of(model, rows=32):
    random_numbers = np.random.default_rng(3)
    given = {
        "ids": random_numbers.integers(0, 300, (rows, 9)),
        "mask": (random_numbers.random((rows, 9)) < 0.8).astype(np.float32),
        "x": random_numbers.normal(size=(rows, 6, 8)).astype(np.float32),
    }
    return {value.name: given[value.name] for value in model.graph.input}


def candidate(model, folder, quantizer, scheme=SCHEME):
    """Write a candidate; return it, and its graph as a device gets it."""
    onnx.save(model, folder / "model.onnx")
    feeds = feeds_of(model)
    rows = np.arange(len(next(iter(feeds.values()))))
    np.savez(folder / "samples.npz", ids=rows, **{f"input.{name}": x for name, x in feeds.items()})
    spec = CandidateSpec("int8", quantizer)
    written = quantize.run(spec, folder / "model.onnx", folder / "samples.npz", scheme, CALIBRATION, folder)
    return written, onnx.load(folder / spec.name / "deploy.onnx")


def decibels(model, written, fused=False):
    """Return how far the outputs are above their error, row by row."""
    feeds = feeds_of(model)
    exact, found = (
        np.concatenate([run(m, {k: x[i : i + 1] for k, x in feeds.items()}, fused)["y"] for i in range(32)])
        for m in (model, written)
    )
    return 10 * np.log10(np.square(exact).sum() / np.square(found - exact).sum())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_transformer_is_close_to_float_as_written_and_as_fused(tmp_path, quantizer, fused):
    model = encoder()
    written, found = candidate(model, tmp_path, quantizer)
    kinds = [item.op_type for item in found.graph.node]
    assert kinds.count(OPERATORS[quantizer]) == 5, "three projections, a layer and the head"
    assert written.quantized_nodes == 5
    assert kinds.count("MatMul") == 2, "products of two activations stay float"
    assert decibels(model, found, fused) > CLOSE[quantizer]


def test_an_lstm_of_both_directions_computes_in_integers(tmp_path):
    written, found = candidate(recurrent(), tmp_path, "dynamic")
    kinds = [item.op_type for item in found.graph.node]
    assert "DynamicQuantizeLSTM" in kinds
    assert "LSTM" not in kinds
    assert written.quantized_nodes == written.weight_nodes == 2
    assert decibels(recurrent(), found, fused=True) > 30


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_the_scheme_decides_the_scales_and_the_range_of_weights(tmp_path, per_channel, reduce_range):
    scheme = Scheme(
        activations="uint8", symmetric_activations=False, per_channel=per_channel, reduce_range=reduce_range
    )
    for model in (encoder(), recurrent()):
        _, found = candidate(model, tmp_path, "dynamic", scheme)
        levels = {item.name: numpy_helper.to_array(item) for item in found.graph.initializer if item.data_type == 3}
        most = max(np.abs(x.astype(int)).max() for name, x in levels.items() if not name.startswith("table"))
        assert most == (64 if reduce_range else 127)
        if reduce_range:  # without, a processor that saturates computes something else, and says so nowhere
            assert decibels(model, found) > 24


def test_a_dynamic_range_is_that_of_one_sample(tmp_path):
    """In a batch each sample would be rounded in the range of all: an outlier would spoil the others."""
    _, found = candidate(encoder(), tmp_path, "dynamic")
    assert {value.type.tensor_type.shape.dim[0].dim_value for value in found.graph.input} == {1}
    _, blocks = candidate(encoder(), tmp_path, "weights8")
    assert not blocks.graph.input[0].type.tensor_type.shape.dim[0].dim_value


def test_layers_that_read_one_tensor_share_its_rounding(tmp_path):
    _, found = candidate(encoder(), tmp_path, "dynamic")
    rounded = [item.input[0] for item in found.graph.node if item.op_type == "DynamicQuantizeLinear"]
    assert len(rounded) == len(set(rounded)) == 3, "what is looked up, what attention mixes, and what the head reads"


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_matrix_that_two_layers_share_is_stored_once(tmp_path, quantizer):
    tensors = stored(w=random(24, 24), out=random(24, 3))
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="first"),
        node("Tanh", ["a"], ["t"]),
        node("MatMul", ["t", "w"], ["b"], name="second"),
        node("Gemm", ["b", "out"], ["y"], name="last"),
    ]
    onnx.save(graph(nodes, {"x": [24]}, tensors), tmp_path / "model.onnx")
    np.savez(
        tmp_path / "samples.npz",
        ids=np.arange(8),
        **{"input.x": np.random.default_rng(0).normal(size=(8, 24)).astype("f")},
    )
    spec = CandidateSpec("int8", quantizer)
    quantize.run(spec, tmp_path / "model.onnx", tmp_path / "samples.npz", SCHEME, CALIBRATION, tmp_path)
    found = onnx.load(tmp_path / spec.name / "deploy.onnx")
    assert sum(item.op_type == OPERATORS[quantizer] for item in found.graph.node) == 3
    assert sum("_levels" in item.name for item in found.graph.initializer) == 2


def uneven():
    """Return two layers of which the first reads channels that a normalisation makes a hundred times larger."""
    gain = np.where(np.arange(32) % 8 == 3, 100.0, 1.0)
    weight = random(32, 32) / gain[:, None]
    tensors = stored(gain=gain, shift=np.zeros(32), w=weight, e=random(32, 32), v=random(32, 32), out=random(32, 3))
    nodes = [
        node("MatMul", ["x", "e"], ["h"], name="embed"),
        node("LayerNormalization", ["h", "gain", "shift"], ["n"], name="norm"),
        node("MatMul", ["n", "w"], ["a"], name="first"),
        node("MatMul", ["n", "w"], ["b"], name="same weight"),
        node("Add", ["a", "b"], ["both"]),
        node("Tanh", ["both"], ["t"]),
        node("MatMul", ["t", "v"], ["u"], name="even"),
        node("MatMul", ["u", "out"], ["y"], name="last"),
    ]
    return graph(nodes, {"x": [32]}, tensors)


def test_channels_that_are_larger_than_others_are_brought_down_before_they_are_rounded(tmp_path, monkeypatch):
    model = uneven()
    onnx.save(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", ids=np.arange(32), **{"input.x": x})

    def error():
        spec = CandidateSpec("int8", "dynamic")
        quantize.run(spec, tmp_path / "model.onnx", tmp_path / "samples.npz", SCHEME, CALIBRATION, tmp_path)
        found = onnx.load(tmp_path / "int8-dynamic" / "deploy.onnx")
        rows = [np.square(run(found, {"x": row})["y"] - run(model, {"x": row})["y"]).sum() for row in x[:, None]]
        return found, sum(rows)

    found, smoothed = error()
    multiplied = [item.input[0] for item in found.graph.node if item.op_type == "Mul" and "factors" in item.input[1]]
    assert "n" in multiplied
    monkeypatch.setattr("edgekd.compress.quantizers.dynamic.find_factors", lambda *_: {})
    assert 3 * smoothed < error()[1]


def spoiled(model, change):
    """Return a dynamic graph after a change of the stored tensors whose names begin with ``wq``."""
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(model)
    for tensor in spoilt.graph.initializer:
        if tensor.name == "wq_levels":
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    return spoilt


@pytest.fixture
def dynamic(tmp_path):
    """The dynamic graph of the encoder, its float graph, and a few samples."""
    model = encoder()
    onnx.save(model, tmp_path / "prepared.onnx")
    head = [item for item in model.graph.node if item.name == "head"]
    del head[0].attribute[:]  # alpha, which is folded before
    head[0].attribute.append(onnx.helper.make_attribute("transB", 1))
    onnx.save(model, tmp_path / "prepared.onnx")
    feeds = feeds_of(model)
    np.savez(tmp_path / "samples.npz", ids=np.arange(32), **{f"input.{name}": x for name, x in feeds.items()})
    samples = CalibrationSamples(tmp_path / "samples.npz", CALIBRATION).one_by_one()
    written = onnx.load(write_dynamic(tmp_path / "prepared.onnx", samples, SCHEME, tmp_path, ()))
    return written, model, [{name: x[:1] for name, x in feeds.items()}]


def test_the_oracle_lets_a_right_graph_pass(dynamic):
    assert first_miswritten(*dynamic) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda levels: np.ascontiguousarray(levels.T), "steps off"),
        (lambda levels: np.roll(levels, 1, 0), "steps off"),
        (lambda levels: levels[:, ::-1].copy(), "steps off"),
        (lambda levels: levels[:-1].copy(), "its weight is [39, 40], not [40, 40]"),
    ],
)
def test_a_wrong_weight_is_found_by_its_layer(dynamic, change, said):
    written, floats, feeds = dynamic
    difference = first_miswritten(spoiled(written, change), floats, feeds)
    assert difference.node == "to_q"
    assert said in difference.reason


def test_a_bias_that_was_lost_is_found(dynamic):
    written, floats, feeds = dynamic
    for item in written.graph.node:
        if item.op_type == "Add" and "b2" in item.input:
            item.op_type, item.input[:] = "Identity", [item.input[0]]
    assert first_miswritten(written, floats, feeds).node == "head"


def test_a_layer_that_reads_infinite_values_stays_float(tmp_path):
    tensors = stored(w=random(6, 6), out=random(6, 3), low=np.float32(-np.inf), zero=np.float32(0))
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="first"),
        node("Greater", ["a", "zero"], ["seen"]),
        node("Where", ["seen", "a", "low"], ["open"]),
        node("Exp", ["open"], ["e"]),
        node("Log", ["e"], ["again"]),
        node("MatMul", ["again", "out"], ["odd"], name="odd"),
        node("Exp", ["odd"], ["grown"]),
        node("Clip", ["grown", "zero", "one"], ["bounded"]),
        node("MatMul", ["e", "out"], ["last"], name="last"),
        node("IsNaN", ["bounded"], ["strange"]),
        node("Where", ["strange", "zero", "bounded"], ["cleared"]),
        node("Add", ["last", "cleared"], ["y"]),
    ]
    model = graph(nodes, {"x": [6]}, [*tensors, *stored(one=np.float32(1))])
    onnx.save(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", ids=np.arange(16), **{"input.x": x})
    spec = CandidateSpec("int8", "dynamic")
    written = quantize.run(spec, tmp_path / "model.onnx", tmp_path / "samples.npz", SCHEME, CALIBRATION, tmp_path)
    found = run(onnx.load(tmp_path / "int8-dynamic" / "deploy.onnx"), {"x": x[:1]})["y"]
    assert [note for note in written.notes if "'odd' (MatMul) stays float" in note and "infinite" in note]
    assert written.quantized_nodes == 2
    assert np.allclose(found, run(model, {"x": x[:1]})["y"], atol=0.1)


def test_a_graph_without_stored_matrices_is_refused_as_such(tmp_path):
    nodes = [node("MatMul", ["x", "z"], ["y"])]
    model = graph(nodes, {"x": [4, 4], "z": [4, 3]}, [], {"y": [4, 3]})
    onnx.save(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(8, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", ids=np.arange(8), **{"input.x": x, "input.z": x[..., :3]})
    spec = CandidateSpec("int8", "dynamic")
    with pytest.raises(ModelError, match="int8-dynamic is for stored matrices"):
        quantize.run(spec, tmp_path / "model.onnx", tmp_path / "samples.npz", SCHEME, CALIBRATION, tmp_path)


def test_a_target_whose_library_lacks_the_operators_refuses_the_quantizer():
    asked = QuantizeConfig(quantizers=["qdq", "dynamic"])
    with pytest.raises(TargetError, match=r"'dynamic' writes operators of onnxruntime and .* runs engines in openvino"):
        quantize.candidate_specs(read_target("openvino-cpu"), asked)
    names = [spec.name for spec in quantize.candidate_specs(read_target("cpu"), asked)]
    assert names == ["int8", "int8-dynamic", "float32"]


def test_each_new_candidate_is_told_from_those_that_blame_and_repair_can_work_on():
    specs = quantize.candidate_specs(read_target("cpu"), QuantizeConfig())
    assert [spec.name for spec in specs if quantize.has_pairs(spec)] == ["int8"]
    assert [spec.name for spec in specs] == ["int8", "int8-dynamic", "int8-weights8", "int8-weights4", "float32"]


def image_net():
    """Return a convolution with a small head."""
    tensors = stored(k=random(16, 3, 3, 3), w=random(16, 3))
    nodes = [
        node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["c"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    return graph(nodes, {"x": [3, 32, 32]}, tensors)


def wide(rows):
    """Return large matrices that are used for some rows of a sample."""
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Tanh", ["a"], ["t"]), node("MatMul", ["t", "w2"], ["y"])]
    return graph(nodes, {"x": [rows, 640]}, stored(w=random(640, 640), w2=random(640, 640)), {"y": [rows, 640]})


@pytest.mark.parametrize(
    ("model", "tried"),
    [
        (image_net(), []),
        (wide(1), ["int8-dynamic", "int8-weights8", "int8-weights4"]),
        (wide(12), ["int8-dynamic", "int8-weights4"]),
        (wide(40), ["int8-dynamic"]),
    ],
    ids=["convolutions", "one row", "twelve rows", "forty rows"],
)
def test_a_candidate_is_tried_where_it_can_win(tmp_path, model, tried):
    onnx.save(model, tmp_path / "model.onnx")
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", ids=np.arange(4), **{"input.x": x})
    specs = quantize.candidate_specs(read_target("cpu"), QuantizeConfig())
    reasons = quantize.why_unsuitable(specs, tmp_path / "model.onnx", tmp_path / "samples.npz")
    assert [spec.name for spec in specs if spec.quantizer not in (None, "qdq") and spec.name not in reasons] == tried
    assert all(reason for reason in reasons.values())
