"""Masks of attention and of padding: what is not finite on purpose stays float, and nothing else is called a mask."""

import msgspec
import numpy as np
import onnx
import pytest
from int8 import SYMMETRIC, USUAL, int8, run
from onnx import TensorProto, helper, numpy_helper

from edgekd.compress.activations.ranges import CalibrationSamples, find_ranges
from edgekd.compress.qdq_map import find_sites
from edgekd.compress.quantizers.masked import leave_float, survey
from edgekd.compress.quantizers.prepare import prepare
from edgekd.config.target import Calibration
from edgekd.errors import ModelError
from edgekd.stages.artifacts import PREPARED

TIME, WIDTH, CLASSES = 6, 8, 5
#: A scheme that rounds what masks go through, too.
EVERYTHING = msgspec.structs.replace(USUAL, operators=[*USUAL.operators, "Add", "Where", "Softmax", "Mul"])
CAUSAL = np.triu(np.ones((TIME, TIME), np.float32), 1)


def write(folder, *nodes, **constants):
    """Write a graph of x [N, TIME, WIDTH], with what is made as "mixed" of like shape averaged and classified."""
    random = np.random.default_rng(0)
    shapes = dict.fromkeys(("wq", "wk", "wv"), (WIDTH, WIDTH))
    stored = {name: random.normal(size=shape) / np.sqrt(WIDTH) for name, shape in shapes.items()}
    stored |= {"w": random.normal(size=(WIDTH, CLASSES)), "b": random.normal(size=CLASSES), **constants}
    tail = [
        helper.make_node("ReduceMean", ["mixed", "axes"], ["pooled"], keepdims=0),
        helper.make_node("Gemm", ["pooled", "w", "b"], ["logits"], name="head"),
    ]
    tensors = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in stored.items()]
    graph = helper.make_graph(
        [*nodes, *tail],
        "masked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", TIME, WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [*tensors, numpy_helper.from_array(np.array([1]), "axes")],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    x = random.normal(size=(64, TIME, WIDTH)).astype(np.float32)
    np.savez(folder / "samples.npz", **{"input.x": x})
    return path, folder / "samples.npz", {"x": x}


def attention(*masking):
    """Return the nodes of attention whose scores are masked on the way to "masked"."""
    make = helper.make_node
    return [
        *(make("MatMul", ["x", f"w{name}"], [name], name=name) for name in "qkv"),
        make("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        make("MatMul", ["q", "kt"], ["scores"], name="scores"),
        *masking,
        make("Softmax", ["masked"], ["p"], axis=-1, name="softmax"),
        make("MatMul", ["p", "v"], ["mixed"], name="mix"),
    ]


def adding(value):
    mask = np.where(CAUSAL, np.float32(value), np.float32(0))
    return attention(helper.make_node("Add", ["scores", "mask"], ["masked"], name="add")), {"mask": mask}


def choosing(value):
    node = helper.make_node("Where", ["hidden", "fill", "scores"], ["masked"], name="choose")
    cast = helper.make_node("Cast", ["causal"], ["hidden"], to=TensorProto.BOOL)
    return attention(cast, node), {"causal": CAUSAL, "fill": np.float32(value)}


def multiplying(value):
    """Return a mask that the graph makes, as transformers' models do."""
    nodes = (
        helper.make_node("Mul", ["causal", "huge"], ["mask"], name="make mask"),
        helper.make_node("Abs", ["x"], ["size"]),
        helper.make_node("ReduceMax", ["size"], ["largest"], keepdims=1),
        helper.make_node("Sign", ["largest"], ["one"]),
        helper.make_node("Mul", ["mask", "one"], ["moving"], name="move mask"),
        helper.make_node("Add", ["scores", "moving"], ["masked"], name="add"),
    )
    return attention(*nodes), {"causal": CAUSAL, "huge": np.float32(value)}


def prepared(model, feeds, folder):
    """Return the file of the graph in the form in which it is quantized."""
    prepare(model, [{name: x[:4] for name, x in feeds.items()}], EVERYTHING.operators, folder)
    return folder / PREPARED


def calibration(path, ranges="minmax"):
    return CalibrationSamples(path, Calibration(description="", ranges=ranges, samples=64))


def close(qdq, floats, feeds):
    found, exact = (run(graph, feeds)["logits"] for graph in (qdq, floats))
    return np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("quantizer", ["qdq", "nncf"])
@pytest.mark.parametrize(
    ("masking", "value"),
    [
        (adding, -np.inf), (adding, np.finfo(np.float32).min), (adding, -1e4),
        (choosing, -np.inf), (choosing, np.finfo(np.float32).min), (choosing, -1e9),
        (multiplying, np.finfo(np.float32).min), (multiplying, -1e4),
    ],
)  # fmt: skip
def test_a_masked_network_is_as_good_in_int8(tmp_path, masking, value, quantizer):
    nodes, constants = masking(value)
    model, samples, feeds = write(tmp_path, *nodes, **constants)
    qdq, floats = int8(model, samples, tmp_path / "work", EVERYTHING, quantizer)
    assert close(qdq, floats, feeds)
    sites = find_sites(qdq, floats)
    assert "masked" not in sites
    assert {"x", "v", "wq", "wk", "wv"} <= sites.keys(), "the rest is rounded"


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("scheme", [USUAL, SYMMETRIC], ids=["asymmetric", "symmetric"])
def test_a_masked_range_is_that_of_what_is_not_masked(tmp_path, ranges, scheme):
    nodes, constants = adding(-np.inf)
    model, samples, feeds = write(tmp_path, *nodes, **constants)
    found = find_ranges(prepared(model, feeds, tmp_path), calibration(samples, ranges), scheme)
    low, high = (float(np.ravel(value)[0]) for value in found["masked"].range_value)
    wanted = onnx.load(model)
    wanted.graph.output.append(helper.make_empty_tensor_value_info("scores"))
    scores = run(wanted, feeds)["scores"][:, CAUSAL == 0]
    assert max(-low, high) == pytest.approx(np.abs(scores).max(), rel=1e-5)
    assert all(np.isfinite(data.range_value).all() for _, data in found.items())


def test_the_note_names_what_is_masked(tmp_path):
    nodes, constants = adding(-np.inf)
    model, samples, feeds = write(tmp_path, *nodes, **constants)
    path = prepared(model, feeds, tmp_path)
    floats = onnx.load(path)
    _, notes = leave_float(floats, floats, survey(path, calibration(samples)))
    assert notes == (
        "infinite values in 'masked' are taken for a mask, since no output shows them; these tensors stay float",
    )


def test_a_bias_of_positions_beside_a_stored_mask_is_not_lost(tmp_path):
    bias = np.random.default_rng(2).normal(size=(TIME, TIME)).astype(np.float32)
    nodes, constants = adding(-np.inf)
    for mask in (-np.inf, -1e9):
        constants["mask"] = np.where(CAUSAL, np.float32(mask), bias)
        model, samples, feeds = write(tmp_path, *nodes, **constants)
        qdq, floats = int8(model, samples, tmp_path / "work", EVERYTHING)
        assert close(qdq, floats, feeds)
        assert "mask" not in find_sites(qdq, floats)


def test_without_a_mask_nothing_is_noted(tmp_path):
    nodes = attention(helper.make_node("Mul", ["scores", "large"], ["masked"]))
    model, samples, feeds = write(tmp_path, *nodes, large=1e5)
    assert survey(prepared(model, feeds, tmp_path), calibration(samples)) == {}, (
        "large values are no mask of small ones"
    )


def test_a_logarithm_of_zero_that_is_chosen_away_is_a_mask(tmp_path):
    make = helper.make_node
    nodes = (
        make("MatMul", ["x", "wq"], ["h"], name="first"),
        make("Relu", ["h"], ["r"]),
        make("Log", ["r"], ["log"], name="log"),
        make("Greater", ["r", "zero"], ["positive"]),
        make("Where", ["positive", "log", "zero"], ["chosen"]),
        make("MatMul", ["chosen", "wk"], ["mixed"], name="second"),
    )
    model, samples, feeds = write(tmp_path, *nodes, zero=0)
    assert survey(prepared(model, feeds, tmp_path), calibration(samples)).keys() == {"log"}
    qdq, _ = int8(model, samples, tmp_path / "work", EVERYTHING)
    assert np.isfinite(run(qdq, feeds)["logits"]).all()


def test_a_row_that_is_masked_throughout_may_be_nan_where_it_is_chosen_away(tmp_path):
    make = helper.make_node
    mask = np.zeros((TIME, TIME), np.float32)
    mask[2] = -np.inf
    masking = make("Add", ["scores", "mask"], ["masked"], name="add")
    nodes = attention(masking)
    nodes[-1:] = [
        make("IsNaN", ["p"], ["nothing"]),
        make("Where", ["nothing", "zero", "p"], ["safe"]),
        make("MatMul", ["safe", "v"], ["mixed"], name="mix"),
    ]
    model, samples, feeds = write(tmp_path, *nodes, mask=mask, zero=0)
    assert survey(prepared(model, feeds, tmp_path), calibration(samples)).keys() == {"mask", "masked", "p"}
    assert close(*int8(model, samples, tmp_path / "work"), feeds)


def test_nan_that_reaches_an_output_is_named_by_the_node_that_makes_it(tmp_path):
    nodes, constants = adding(-np.inf)
    constants["mask"] = np.full((TIME, TIME), -np.inf)
    model, samples, feeds = write(tmp_path, *nodes, **constants)
    with pytest.raises(ModelError, match=r"output 'logits' is not finite.*node 'softmax' \(Softmax\) makes NaN first"):
        survey(prepared(model, feeds, tmp_path), calibration(samples))


def test_an_overflow_that_reaches_an_output_is_named_by_the_node_that_makes_it(tmp_path):
    nodes = (
        helper.make_node("Mul", ["x", "large"], ["grown"], name="grow"),
        helper.make_node("Mul", ["grown", "large"], ["lost"], name="lose"),
        helper.make_node("MatMul", ["lost", "wq"], ["mixed"], name="mix"),
    )
    model, samples, feeds = write(tmp_path, *nodes, large=1e30)
    with pytest.raises(ModelError, match=r"not finite.*node 'lose' \(Mul\) makes infinity first; look for an overflow"):
        survey(prepared(model, feeds, tmp_path), calibration(samples))


def test_an_infinity_that_is_stored_and_reaches_an_output_is_named_by_the_node_that_reads_it(tmp_path):
    ruled_out = [0, -np.inf, *[0] * (WIDTH - 2)]
    model, samples, feeds = write(
        tmp_path, helper.make_node("Add", ["x", "mask"], ["mixed"], name="mask"), mask=ruled_out
    )
    stored = onnx.load(str(model))
    weight = next(tensor for tensor in stored.graph.initializer if tensor.name == "w")  # all infinite, and none NaN
    weight.CopyFrom(numpy_helper.from_array(np.ones((WIDTH, CLASSES), np.float32), "w"))
    onnx.save(stored, str(model))
    with pytest.raises(ModelError, match=r"output 'logits' is not finite.*node 'mask' \(Add\) makes infinity first"):
        survey(prepared(model, feeds, tmp_path), calibration(samples))


def test_nan_that_a_node_hides_is_no_mask(tmp_path):
    make = helper.make_node
    nodes = (
        make("Sqrt", ["x"], ["root"], name="root"),
        make("ArgMax", ["root"], ["index"], axis=-1, name="largest"),
        make("Cast", ["index"], ["number"], to=TensorProto.FLOAT),
        make("Add", ["x", "number"], ["mixed"]),
    )
    model, samples, feeds = write(tmp_path, *nodes)
    with pytest.raises(ModelError, match=r"node 'largest' \(ArgMax\) reads 'root', and hides.*node 'root' \(Sqrt\)"):
        survey(prepared(model, feeds, tmp_path), calibration(samples))


def store(model, **indices):
    """Store further integers in a graph's file."""
    whole = onnx.load(model)
    whole.graph.initializer.extend(numpy_helper.from_array(np.array(x), name) for name, x in indices.items())
    onnx.save(whole, model)


DROPPING = {
    "slice": helper.make_node("Slice", ["rows", "one", "end", "one"], ["mixed"], name="drop"),
    "crop": helper.make_node("Pad", ["rows", "crop"], ["mixed"], name="drop"),
    "gather": helper.make_node("Gather", ["rows", "kept"], ["mixed"], axis=1, name="drop"),
}


@pytest.mark.parametrize("quantizer", ["qdq", "nncf"])
@pytest.mark.parametrize("node", DROPPING.values(), ids=DROPPING)
def test_a_row_that_is_masked_throughout_may_be_nan_where_it_is_left_out(tmp_path, node, quantizer):
    mask = np.where(CAUSAL, np.float32(-np.inf), np.float32(0))
    mask[0] = -np.inf
    nodes = attention(helper.make_node("Add", ["scores", "mask"], ["masked"], name="add"))
    nodes[-1].output[0] = "rows"
    model, samples, feeds = write(tmp_path, *nodes, node, mask=mask)
    store(model, one=[1], end=[TIME], crop=[0, -1, 0, 0, 0, 0], kept=[1, 3, 5])
    qdq, floats = int8(model, samples, tmp_path / "work", EVERYTHING, quantizer)
    assert "rows" not in find_sites(qdq, floats)
    assert close(qdq, floats, feeds)


@pytest.mark.parametrize("quantizer", ["qdq", "nncf"])
def test_a_mask_stays_float_through_pad_concat_and_slice(tmp_path, quantizer):
    make = helper.make_node
    everything = msgspec.structs.replace(EVERYTHING, operators=[*EVERYTHING.operators, "Pad", "Slice"])
    nodes = attention(
        make("Cast", ["causal"], ["hidden"], to=TensorProto.BOOL),
        make("Where", ["hidden", "fill", "scores"], ["chosen"], name="choose"),
        make("Pad", ["chosen", "pads", "fill"], ["padded"], name="pad"),
        make("Concat", ["padded", "scores"], ["joined"], axis=2, name="join"),
        make("Slice", ["joined", "start", "end", "axis"], ["masked"], name="cut"),
    )
    constants = {"causal": CAUSAL, "fill": np.float32(-np.inf)}
    model, samples, feeds = write(tmp_path, *nodes, **constants)
    store(model, pads=[0, 0, 0, 0, 0, 2], start=[0], end=[TIME], axis=[2])
    qdq, floats = int8(model, samples, tmp_path / "work", everything, quantizer)
    assert not find_sites(qdq, floats).keys() & {"fill", "chosen", "padded", "joined", "masked"}
    assert close(qdq, floats, feeds)
