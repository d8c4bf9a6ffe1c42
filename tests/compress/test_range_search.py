import numpy as np
import onnx
import pytest
from fusion import MODALITIES, snr_db, split_samples
from int8 import CALIBRATION, USUAL, int8, run
from onnx import numpy_helper

from edgekd.compress.activations.range_search import shrink_ranges
from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.graph import initializers, producers
from edgekd.compress.switchboard import Switchboard
from edgekd.gram.drift import sample_drifts
from edgekd.gram.npz import embeddings_of


def copy(model):
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def widened(qdq, tensors, factor):
    """Return the graph with ranges as if an outlier had been among the samples, biases still at the old scales."""
    wide = copy(qdq)
    stored = initializers(wide.graph)
    for node in wide.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in tensors:
            scale = numpy_helper.to_array(stored[node.input[1]])
            stored[node.input[1]].CopyFrom(
                numpy_helper.from_array(np.asarray(scale * factor, scale.dtype), node.input[1])
            )
    return wide


def scales_of(model):
    stored = initializers(model.graph)
    return {
        node.input[0]: tuple(numpy_helper.to_array(stored[name]) for name in node.input[1:])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def errors(model, floats, inputs):
    exact, found = run(floats, inputs), run(model, inputs)
    return sample_drifts(embeddings_of(found), embeddings_of(exact)).mean(), -snr_db(exact["logits"], found["logits"])


@pytest.fixture(scope="module", params=["qdq", "nncf"])
def graphs(request, model, tmp_path_factory):
    """The QDQ graph and the float one, samples to calibrate with, and others."""
    work = tmp_path_factory.mktemp("work")
    others = split_samples(work / "samples.npz", 200, 500)
    return *int8(model, work / "samples.npz", work, USUAL, request.param), work / "samples.npz", others


def shrink(qdq, floats, samples):
    shrunk = copy(qdq)
    shrink_ranges(shrunk, floats, CalibrationSamples(samples, CALIBRATION))
    return shrunk


def test_ranges_that_are_too_wide_shrink_again(graphs):
    qdq, floats, samples, others = graphs
    encoders = [name for name in scales_of(qdq) if not name.startswith("embedding")]
    wide = widened(qdq, encoders, 3)
    shrunk = shrink(wide, floats, samples)
    before, after = scales_of(wide), scales_of(shrunk)
    assert sum(after[name][0] < 0.8 * before[name][0] for name in encoders) > len(encoders) / 2
    (wide_drift, wide_noise), (drift, noise) = (errors(model, floats, others) for model in (wide, shrunk))
    assert drift < 0.7 * wide_drift
    assert noise < wide_noise - 3


def test_what_lies_behind_the_embeddings_is_judged_by_the_logits(graphs):
    qdq, floats, samples, others = graphs
    drift = errors(qdq, floats, others)[0]
    behind = [name for name in scales_of(qdq) if errors(widened(qdq, [name], 4), floats, others)[0] == drift]
    assert behind, "the head reads a rounded tensor"
    wide = widened(qdq, behind, 4)
    shrunk = shrink(wide, floats, samples)
    assert any(scales_of(shrunk)[name][0] < 0.7 * scales_of(wide)[name][0] for name in behind)
    assert errors(shrunk, floats, others)[1] < errors(wide, floats, others)[1]


def test_zero_points_stay_and_biases_have_the_scales_of_their_products(graphs):
    qdq, floats, samples, _ = graphs
    wide = widened(qdq, list(scales_of(qdq)), 2.0)
    for node in wide.graph.node:  # as a quantizer that saw such ranges writes them
        _requantize_bias(wide, node)
    shrunk = shrink(wide, floats, samples)
    before, after = scales_of(wide), scales_of(shrunk)
    assert all(np.array_equal(before[name][1], after[name][1]) for name in before)
    assert any(after[name][0] < before[name][0] for name in before)
    made, stored = producers(shrunk.graph), initializers(shrunk.graph)
    for node in shrunk.graph.node:
        bias = made.get(node.input[2]) if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 else None
        if bias is None:
            continue
        x, w, b = (numpy_helper.to_array(stored[made[name].input[1]]) for name in node.input)
        np.testing.assert_allclose(b, x * w, rtol=1e-5)
        exact = numpy_helper.to_array(initializers(floats.graph)[node.input[2]])
        found = numpy_helper.to_array(stored[bias.input[0]]) * b
        np.testing.assert_allclose(found, exact, atol=3 * float(b.max()))


def _requantize_bias(model, node):
    made, stored = producers(model.graph), initializers(model.graph)
    bias = made.get(node.input[2]) if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 else None
    if bias is None:
        return
    x, w, b = (numpy_helper.to_array(stored[made[name].input[1]]) for name in node.input)
    values = numpy_helper.to_array(stored[bias.input[0]]) * b.astype(float)
    scale = np.asarray(x * w, np.float32)
    stored[bias.input[1]].CopyFrom(numpy_helper.from_array(scale, bias.input[1]))
    stored[bias.input[0]].CopyFrom(numpy_helper.from_array(np.round(values / scale).astype(np.int32), bias.input[0]))


def test_nothing_but_scales_and_biases_changes(graphs):
    qdq, floats, samples, _ = graphs
    shrunk = shrink(qdq, floats, samples)
    assert [n.SerializeToString() for n in shrunk.graph.node] == [n.SerializeToString() for n in qdq.graph.node]
    for old, new in zip(qdq.graph.initializer, shrunk.graph.initializer, strict=True):
        if old.SerializeToString() != new.SerializeToString():
            assert old.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT32), old.name


def test_with_float_weights_the_sum_of_both_errors_never_grows(graphs):
    qdq, floats, samples, _ = graphs
    with np.load(samples) as arrays:
        inputs = {name: arrays[f"input.{name}"] for name in MODALITIES}
    exact = run(floats, inputs)

    def of_activations(model):
        board = Switchboard(model, floats)
        found = board.run(inputs, [item.tensor for item in board.tensors if item.kind != "activation"])
        drift = sample_drifts(embeddings_of(found), embeddings_of(exact)).mean()
        return np.array([drift, np.sqrt(np.square(found["logits"] - exact["logits"]).mean())])

    assert (of_activations(shrink(qdq, floats, samples)) / of_activations(qdq)).sum() <= 2 + 1e-4
