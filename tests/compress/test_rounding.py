import numpy as np
import onnx
import pytest
from chain import deep, inputs
from fusion import MODALITIES, make_inputs, snr_db, split_samples
from int8 import CALIBRATION, SYMMETRIC, USUAL, int8, run
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.graph import save
from edgekd.compress.layers import find_layers
from edgekd.compress.rounding import LayerMoments, choose_levels, reconstruct
from edgekd.config.target import Calibration


def correlated(count, inputs, seed):
    """Return samples [count, inputs] whose inputs mostly move together, around means that are not 0."""
    random = np.random.default_rng(seed)
    return (
        random.normal(size=(count, 4)) @ random.normal(size=(4, inputs)) + 0.3 * random.normal(size=(count, inputs)) + 2
    )


def moments_of(z, x):
    parts = np.array_split(np.arange(z.shape[1]), 3)
    found = LayerMoments.around(z[:, parts[0]])
    for part in parts:
        found.add(z[:, part], x[:, part])
    return found


@pytest.fixture(scope="module")
def problem():
    """Weights of two groups, what they read rounded and what they should compute."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(2, 24, 5))
    scales = np.abs(weights).max(1, keepdims=True) / 7  # coarse, so that much is at stake
    x = np.stack([correlated(400, 24, 1), correlated(400, 24, 2)])
    z = np.round(x / 0.2) * 0.2
    return weights, scales, x, z


def output_error(weights, levels, scales, x, z, *, centred):
    error = x @ weights - z @ (levels * scales)
    return float(np.square(error - error.mean(1, keepdims=True) * centred).mean())


@pytest.mark.parametrize("centred", [True, False])
def test_the_output_is_nearer_than_with_the_nearest_levels(problem, centred):
    weights, scales, x, z = problem
    nearest = np.clip(np.round(weights / scales), -7, 7)
    levels = choose_levels(weights, scales, moments_of(z, x), 7, centred)
    assert (levels == np.round(levels)).all()
    assert np.abs(levels).max() <= 7
    ours, plain = (output_error(weights, q, scales, x, z, centred=centred) for q in (levels, nearest))
    assert ours < 0.5 * plain


def test_no_single_level_could_be_better(problem):
    weights, scales, x, z = problem
    moments = moments_of(z, x)
    levels = choose_levels(weights, scales, moments, 7, centred=True)
    variances = z.var(1).mean(1)

    def objective(q):
        pull = variances * np.square(weights - q * scales).sum((1, 2))
        return output_error(weights, q, scales, x, z, centred=True) * weights.shape[2] * 2 + pull.sum()

    best = objective(levels)
    for index in np.ndindex(levels.shape):
        for step in (-1, 1):
            other = levels.copy()
            other[index] += step
            assert abs(other[index]) > 7 or objective(other) >= best - 1e-9


def test_blocks_of_inputs_give_what_one_level_after_another_gives():
    """The descent as :func:`reconstruct` states it, each level set to its optimum given all others at that time."""
    random = np.random.default_rng(3)
    weights = random.normal(size=(1, 80, 6))  # more inputs than a block has
    scales = np.abs(weights).max(1, keepdims=True) / 7
    x = correlated(600, 80, 1)[None]
    z = np.round(x / 0.2) * 0.2
    (second,), (cross,) = ((z - z.mean(1)).swapaxes(1, 2) @ (part - part.mean(1)) / 600 for part in (z, x))
    pull, exact = np.diagonal(second).mean(), weights[0] / scales[0]
    second, levels = second + pull * np.eye(80), np.clip(np.round(exact), -7, 7)
    for _ in range(20):
        for k in range(80):
            gradient = cross[k] @ exact + pull * exact[k] - second[k] @ levels
            levels[k] = np.clip(np.round(levels[k] + gradient / second[k, k]), -7, 7)
    found = choose_levels(weights, scales, moments_of(z, x), 7, centred=True)[0]
    assert (found != np.clip(np.round(exact), -7, 7)).mean() > 0.02
    assert (found == levels).mean() > 0.99  # but for ties, which single precision decides otherwise


def test_an_input_that_never_moves_keeps_its_nearest_level():
    random = np.random.default_rng(0)
    weights = random.normal(size=(1, 3, 4))
    scales = np.full((1, 1, 4), 0.1)
    z = np.zeros((1, 50, 3))
    assert (choose_levels(weights, scales, moments_of(z, z), 64, True) == np.round(weights / 0.1)).all()


def graph_of(nodes, stored, shape):
    value = make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])
    rank = ["batch", *(f"free{axis}" for axis in range(len(shape)))]
    outputs = [make_tensor_value_info(name, TensorProto.FLOAT, rank) for name in ("logits", "embedding.image")]
    tensors = [numpy_helper.from_array(x.astype(np.float32), name) for name, x in stored.items()]
    graph = helper.make_graph(
        [*nodes, make_node("Identity", ["logits"], ["embedding.image"])], "g", [value], outputs, tensors
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def quantized(tmp_path):
    """Quantize a small graph of one input; return the QDQ graph, the float one, and the samples."""

    def quantized(nodes, stored, shape, count=64):
        save(graph_of(nodes, stored, shape), tmp_path / "model.onnx")
        x = np.random.default_rng(5).normal(size=(count, *shape)).astype(np.float32)
        np.savez(tmp_path / "samples.npz", **{"input.image": x})
        qdq, floats = int8(tmp_path / "model.onnx", tmp_path / "samples.npz", tmp_path / "work")
        return qdq, floats, x

    return quantized


@pytest.mark.parametrize(
    ("kernel", "shape", "options"),
    [
        ((6, 4, 3), (4, 9), {}),
        ((6, 4, 3), (4, 20), {"strides": [2], "pads": [2, 1], "dilations": [3]}),
        ((6, 4, 3, 2), (4, 8, 7), {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
        ((6, 2, 3, 3), (4, 8, 7), {"group": 2, "pads": [1, 1, 1, 1]}),
        ((4, 1, 3, 3), (4, 8, 7), {"group": 4, "dilations": [2, 1]}),
    ],
    ids=["1d", "strided and dilated", "2d", "grouped", "depthwise"],
)
def test_patches_times_weights_are_the_convolution(quantized, kernel, shape, options):
    random = np.random.default_rng(0)
    stored = {"w": random.normal(size=kernel), "b": random.normal(size=kernel[0])}
    conv = make_node("Conv", ["image", "w", "b"], ["logits"], name="conv", kernel_shape=kernel[2:], **options)
    qdq, floats, x = quantized([conv], stored, shape)
    (layer,) = find_layers(qdq, floats)
    expected = run(floats, {"image": x[:3]})["logits"]
    found = layer.patches(x[:3], 10**6) @ layer.weights  # [G, samples * places, O / G], places in any order
    per_sample = np.moveaxis(found, 2, 1).reshape(kernel[0], 3, -1).swapaxes(0, 1) + layer.bias[:, None]
    np.testing.assert_allclose(np.sort(per_sample), np.sort(expected.reshape(3, kernel[0], -1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.stored(layer.weights), stored["w"], rtol=1e-6)
    assert layer.patches(x[:3], 4).shape == (*layer.weights.shape[:1], 12, layer.weights.shape[1])


def test_layers_of_a_kind_that_cannot_be_chosen_anew_stay_as_they_are(quantized):
    random = np.random.default_rng(0)
    stored = {
        "w": random.normal(size=(4, 4, 3, 3)),
        "t": random.normal(size=(4, 4, 1, 1)),
        "s": random.normal(size=(4, 4, 1, 1)),
    }
    nodes = [
        make_node("Conv", ["image", "w"], ["a"], name="padded", kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
        make_node("ConvTranspose", ["a", "t"], ["b"], name="transposed", kernel_shape=[1, 1]),
        make_node("Conv", ["b", "s"], ["c"], name="shared 1", kernel_shape=[1, 1]),
        make_node("Conv", ["c", "s"], ["logits"], name="shared 2", kernel_shape=[1, 1]),
    ]
    qdq, floats, x = quantized(nodes, stored, (4, 6, 6))
    assert find_layers(qdq, floats) == []
    before = qdq.SerializeToString()
    reconstruct(qdq, floats, [{"image": x}], 64)
    assert qdq.SerializeToString() == before


def test_a_product_without_bias_counts_the_mean_too(quantized):
    random = np.random.default_rng(0)
    nodes = [make_node("MatMul", ["image", "w"], ["logits"], name="product")]
    qdq, floats, x = quantized(nodes, {"w": random.normal(size=(12, 5))}, (7, 12))
    x += 3
    exact = run(floats, {"image": x})["logits"]
    before = snr_db(exact, run(qdq, {"image": x})["logits"])
    reconstruct(qdq, floats, [{"image": x}], 64)
    assert snr_db(exact, run(qdq, {"image": x})["logits"]) > before


@pytest.fixture(scope="module", params=["qdq", "tensorrt", "nncf"])
def rounded(request, model, tmp_path_factory):
    """The fusion network with nearest levels, reconstructed, and in float; samples to calibrate with, and others."""
    work = tmp_path_factory.mktemp("work")
    others = split_samples(work / "samples.npz", 200, 500)
    scheme = SYMMETRIC if request.param == "tensorrt" else USUAL
    qdq, floats = int8(model, work / "samples.npz", work, scheme, "nncf" if request.param == "nncf" else "qdq")
    nearest = onnx.ModelProto()
    nearest.CopyFrom(qdq)
    reconstruct(qdq, floats, CalibrationSamples(work / "samples.npz", CALIBRATION), 64)
    return nearest, qdq, floats, work / "samples.npz", others


def test_the_network_is_nearer_to_float_on_other_samples(rounded):
    nearest, ours, floats, _, others = rounded
    exact, before, after = (run(model, others) for model in (floats, nearest, ours))
    for name in exact:
        assert snr_db(exact[name], after[name]) > snr_db(exact[name], before[name]), name


def test_only_levels_and_biases_change(rounded):
    nearest, ours, *_ = rounded
    assert [node.SerializeToString() for node in nearest.graph.node] == [n.SerializeToString() for n in ours.graph.node]
    for old, new in zip(nearest.graph.initializer, ours.graph.initializer, strict=True):
        before, after = numpy_helper.to_array(old), numpy_helper.to_array(new)
        assert (old.name, before.dtype, before.shape) == (new.name, after.dtype, after.shape)
        if not np.array_equal(before, after):
            assert before.dtype == np.int32 or "weight" in old.name or "bias" in old.name, old.name
        if after.dtype == np.int8 and after.ndim > 1:
            assert np.abs(after.astype(int)).max() <= 64


def test_a_bias_takes_up_the_mean_error(rounded):
    nearest, ours, floats, samples, _ = rounded
    (feeds,) = CalibrationSamples(samples, Calibration(description="", ranges="minmax", samples=200, chunk=200))
    exact, before, after = (run(model, feeds) for model in (floats, nearest, ours))
    for name in (f"embedding.{modality}" for modality in MODALITIES):
        means = [np.abs((found[name] - exact[name]).mean(0)).max() for found in (before, after)]
        assert means[1] < 0.3 * means[0], name


def test_the_chunks_do_not_matter(model, samples, tmp_path):
    found = []
    for chunk in (7, 200):
        qdq, floats = int8(model, samples, tmp_path)
        how = Calibration(description="", ranges="minmax", samples=200, chunk=chunk)
        reconstruct(qdq, floats, CalibrationSamples(samples, how), 64)
        found.append(run(qdq, make_inputs(64, seed=2))["logits"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize("depth", [12, 48])
def test_a_deep_network_is_nearer_too(tmp_path, depth):
    """Each layer makes good what those before it left, and not what others already did."""
    qdq, floats = deep(tmp_path, depth)
    feeds = {"image": inputs(400, seed=2)}
    exact = run(floats, feeds)["logits"]
    nearest = snr_db(exact, run(qdq, feeds)["logits"])
    reconstruct(qdq, floats, CalibrationSamples(tmp_path / "samples.npz", CALIBRATION), 127)
    assert snr_db(exact, run(qdq, feeds)["logits"]) > nearest + 1
