"""Outputs whose size or order data decide: the engine ends before them, and what comes behind is a file of its own."""

import graphs
import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import INT64, node, tensor
from onnx import TensorProto, numpy_helper

from edgekd import build, load
from edgekd.config.recipe import Recipe
from edgekd.errors import ModelError, TaskError
from edgekd.pipeline.onnx_import.sizes import data_sizes
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.session import run_behind

_ROWS = 40


def recipe(model, samples):
    table = {"path": str(model), "calibration": str(samples)}
    return msgspec.convert({"model": table, "profile": {"iterations": 40, "cold_starts": 2, "layers": False}}, Recipe)


def numbers(**values):
    return [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in values.items()]


def detector(path, batch=1):
    """A convolution, boxes and scores of ten places, and what NonMaxSuppression leaves of them."""
    nodes = [
        node("Conv", ["x", "k"], ["map"], pads=[1, 1, 1, 1]),
        node("Relu", ["map"], ["relu"]),
        node("Flatten", ["relu"], ["flat"]),
        node("Gemm", ["flat", "w_boxes"], ["boxes_flat"]),
        node("Reshape", ["boxes_flat", "boxes_shape"], ["boxes"]),
        node("Gemm", ["flat", "w_scores"], ["scores_flat"]),
        node("Reshape", ["scores_flat", "scores_shape"], ["logits"]),
        node("Sigmoid", ["logits"], ["scores"]),
        node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["selected"], name="nms"),
        node("Gather", ["selected", "two"], ["places"], axis=1),
        node("Squeeze", ["boxes", "first"], ["all_boxes"]),
        node("Gather", ["all_boxes", "places"], ["found"]),
        node("Squeeze", ["scores", "first_two"], ["all_scores"]),
        node("Gather", ["all_scores", "places"], ["sure"]),
    ]
    stored = [
        *graphs.weights(k=(4, 2, 3, 3), w_boxes=(144, 40), w_scores=(144, 10)),
        *graphs.integers(
            boxes_shape=[-1, 10, 4], scores_shape=[-1, 1, 10], most=[5], two=2, first=[0], first_two=[0, 1]
        ),
        *numbers(overlap=[0.5], least=[0.4]),
    ]
    outputs = [tensor("found", ["k", 4]), tensor("sure", ["k"])]
    return graphs.write(path, nodes, [tensor("x", [batch, 2, 6, 6])], outputs, stored)


def classifier(path, tail, outputs, stored=()):
    """A layer [n, 3] called ``a``, and some nodes behind it."""
    return graphs.write(
        path,
        [node("Gemm", ["x", "w"], ["a"]), *tail],
        [tensor("x", ["n", 8])],
        outputs,
        [*graphs.weights(w=(8, 3)), *numbers(zero=0), *stored],
    )


def non_zero(path):
    return classifier(
        path,
        [node("Greater", ["a", "zero"], ["is"]), node("NonZero", ["is"], ["places"])],
        [tensor("a", ["n", 3]), tensor("places", [2, "k"], INT64)],
    )


def compress(path):
    tail = [
        node("ReduceMax", ["a"], ["largest"], axes=[1], keepdims=0),
        node("Greater", ["largest", "zero"], ["is"]),
        node("Compress", ["a", "is"], ["y"], axis=0),
    ]
    return classifier(path, tail, [tensor("y", ["k", 3])])


def top_k(path):
    tail = [
        node("Greater", ["a", "zero"], ["is"]),
        node("Cast", ["is"], ["ones"], to=INT64),
        node("ReduceSum", ["ones"], ["sum"], keepdims=0),
        node("Max", ["sum", "one"], ["count"]),
        node("Reshape", ["count", "vector"], ["k"]),
        node("TopK", ["a", "k"], ["y", "which"]),
    ]
    outputs = [tensor("y", ["n", "k"]), tensor("which", ["n", "k"], INT64)]
    return classifier(path, tail, outputs, graphs.integers(one=1, vector=[1]))


IMAGES, VECTORS = (
    np.random.default_rng(0).normal(size=(_ROWS, *shape)).astype(np.float32) for shape in [(2, 6, 6), (8,)]
)
TAILS = {
    "NonMaxSuppression": (detector, IMAGES, {"boxes", "scores"}, ["found", "sure"]),
    "NonZero": (non_zero, VECTORS, {"a"}, ["places"]),
    "Compress": (compress, VECTORS, {"a", "largest"}, ["y"]),
    "TopK": (top_k, VECTORS, {"a"}, ["y", "which"]),
}


@pytest.mark.parametrize("name", TAILS)
def test_the_engine_ends_before_it_and_both_together_are_the_users_file(tmp_path, import_, name):
    write, x, given, outputs = TAILS[name]
    path = write(tmp_path / "m.onnx")
    imported = import_(path, {"x": x})
    assert set(imported.exported.facts.outputs) == given
    assert any(f"({name})" in note and "Bundle.postprocess() runs" in note for note in imported.notes)
    user = ort.InferenceSession(str(path))
    shapes = set()
    with open_engine(tmp_path / "out/float.onnx") as engine, open_engine(tmp_path / "out/postprocess.onnx") as rest:
        for row in range(_ROWS):
            feeds = {"x": x[row : row + 1]}
            found = run_behind(rest, {**feeds, **engine.run(feeds)})
            for output, expected in zip(outputs, user.run(outputs, feeds), strict=True):
                np.testing.assert_allclose(found[output], expected, rtol=1e-5, atol=1e-6)
                shapes.add((output, expected.shape))
    assert len(shapes) > len(outputs)  # sizes that differ are what this is about


def test_a_bundle_runs_what_comes_behind_its_engine(tmp_path):
    path = detector(tmp_path / "m.onnx")
    samples = graphs.save_samples(tmp_path / "samples.npz", x=IMAGES)
    build(recipe(path, samples), "cpu", output=tmp_path / "build", cache=tmp_path / "cache")
    user = ort.InferenceSession(str(path))
    with load(tmp_path / "build/cpu/bundle", allow_rejected=True) as bundle:
        assert {spec.name for spec in bundle.outputs} == {"boxes", "scores"}
        found = bundle.postprocess({"x": IMAGES[:8]})
    assert len(found) == 8
    same = 0
    for row, outputs in enumerate(found):
        boxes, scores = user.run(["found", "sure"], {"x": IMAGES[row : row + 1]})
        if outputs["found"].shape == boxes.shape:  # INT8 may lose a box that was close to the limits
            same += np.allclose(outputs["found"], boxes, atol=0.3 * np.abs(boxes).max()) and np.allclose(
                outputs["sure"], scores, atol=0.2
            )
    assert same >= 6


def test_a_bundle_without_anything_behind_its_engine_says_so(tmp_path):
    path = graphs.mlp(tmp_path / "m.onnx")
    samples = graphs.save_samples(
        tmp_path / "samples.npz", x=np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    )
    build(recipe(path, samples), "cpu", output=tmp_path / "build", cache=tmp_path / "cache")
    with (
        load(tmp_path / "build/cpu/bundle", allow_rejected=True) as bundle,
        pytest.raises(ModelError, match="nothing comes behind its engine; use run"),
    ):
        bundle.postprocess({"x": np.zeros((1, 4), np.float32)})


def test_outputs_that_are_named_are_enough_where_they_come_before(tmp_path, import_):
    path = detector(tmp_path / "m.onnx")
    imported = import_(path, {"x": IMAGES}, outputs={"scores": {"kind": "multilabel"}})
    assert set(imported.exported.facts.outputs) == {"scores"}
    assert not (tmp_path / "out/postprocess.onnx").exists()
    assert any("what comes behind, to found, sure, needs boxes, scores" in note for note in imported.notes)


@pytest.mark.parametrize("asked", [{"outputs": {"found": {}}}, {"taps": {"image": "places"}}])
def test_what_comes_behind_cannot_be_asked_for(tmp_path, import_, asked):
    with pytest.raises(
        TaskError, match=r"comes behind 'nms' \(NonMaxSuppression\), with which what cannot be compared"
    ):
        import_(detector(tmp_path / "m.onnx"), {"x": IMAGES}, **asked)


def test_a_graph_with_nothing_before_it_is_refused(tmp_path, import_):
    nodes = [node("NonMaxSuppression", ["boxes", "scores", "most"], ["y"])]
    inputs = [tensor("boxes", [1, 6, 4]), tensor("scores", [1, 1, 6])]
    path = graphs.write(tmp_path / "m.onnx", nodes, inputs, [tensor("y", ["k", 3], INT64)], graphs.integers(most=[3]))
    with pytest.raises(ModelError, match="no layer with weights comes before that"):
        import_(path, {"boxes": graphs.normal(6, 4), "scores": graphs.normal(1, 6)})


def test_a_size_that_data_could_decide_and_do_not_stays_in_the_engine(tmp_path, import_):
    """What a mask chooses is written back, and a slice of fixed length begins where data say."""
    tail = [
        node("Greater", ["a", "zero"], ["is"]),
        node("NonZero", ["is"], ["places"]),
        node("Transpose", ["places"], ["rows"], perm=[1, 0]),
        node("GatherND", ["a", "rows"], ["values"]),
        node("Mul", ["values", "half"], ["halves"]),
        node("ScatterND", ["a", "rows", "halves"], ["leaky"]),
        node("ArgMax", ["leaky"], ["at"], axis=1, keepdims=0),
        node("Min", ["at", "one"], ["begin"]),
        node("Add", ["begin", "two"], ["end"]),
        node("Slice", ["leaky", "begin", "end", "axis"], ["y"]),
    ]
    path = graphs.write(
        tmp_path / "m.onnx",
        [node("Gemm", ["x", "w"], ["a"]), *tail],
        [tensor("x", [1, 8])],
        [tensor("y", [1, 2])],
        [*graphs.weights(w=(8, 3)), *numbers(zero=0, half=0.5), *graphs.integers(one=[1], two=[2], axis=[1])],
    )
    imported = import_(path, {"x": VECTORS})
    assert list(imported.exported.facts.outputs) == ["y"]
    assert not (tmp_path / "out/postprocess.onnx").exists()


def test_sizes_of_inputs_decide_nothing(tmp_path):
    path = graphs.write(
        tmp_path / "m.onnx",
        [node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["o"]), node("Add", ["x", "o"], ["y"])],
        [tensor("x", ["n", 4])],
        [tensor("y", ["n", 4])],
    )
    assert data_sizes(onnx.load(path).graph).open == ()


def masked(path, infinity=-np.inf, nodes=()):
    """Scores of which an input says which are ruled out."""
    return graphs.write(
        path,
        [
            node("Gemm", ["x", "w"], ["a"]),
            node("Where", ["allowed", "a", "out"], ["kept"]),
            *nodes,
            node("Identity", ["kept"], ["y"]),
        ],
        [tensor("x", ["n", 8]), tensor("allowed", ["n", 3], TensorProto.BOOL)],
        [tensor("y", ["n", 3])],
        [*graphs.weights(w=(8, 3)), *numbers(out=infinity)],
    )


ALLOWED = np.random.default_rng(1).random((_ROWS, 3)) > 0.3


def test_scores_that_a_mask_rules_out_are_judged_before_it(tmp_path, import_):
    path = masked(tmp_path / "m.onnx")
    imported = import_(path, {"x": VECTORS, "allowed": ALLOWED}, kind="classes")
    assert list(imported.exported.facts.outputs) == ["a"]
    feeds = {"x": VECTORS[:1], "allowed": np.array([[True, False, True]])}
    with open_engine(tmp_path / "out/float.onnx") as engine, open_engine(tmp_path / "out/postprocess.onnx") as rest:
        found = run_behind(rest, {**feeds, **engine.run(feeds)})["y"]
    np.testing.assert_allclose(found, ort.InferenceSession(str(path)).run(["y"], feeds)[0], rtol=1e-5)
    assert found[0, 1] == -np.inf


def test_a_logarithm_of_nothing_is_no_error(tmp_path, import_):
    nodes = [node("Gemm", ["x", "w"], ["a"]), node("Relu", ["a"], ["positive"]), node("Log", ["positive"], ["y"])]
    path = graphs.write(
        tmp_path / "m.onnx", nodes, [tensor("x", ["n", 8])], [tensor("y", ["n", 3])], graphs.weights(w=(8, 3))
    )
    imported = import_(path, {"x": VECTORS})
    assert list(imported.exported.facts.outputs) == ["positive"]
    assert (tmp_path / "out/postprocess.onnx").exists()


def test_a_finite_mask_stays_in_the_engine(tmp_path, import_):
    imported = import_(masked(tmp_path / "m.onnx", infinity=-1e4), {"x": VECTORS, "allowed": ALLOWED})
    assert list(imported.exported.facts.outputs) == ["y"]


def test_a_mask_built_for_int8_ships(tmp_path):
    path = masked(tmp_path / "m.onnx")
    samples = graphs.save_samples(tmp_path / "samples.npz", x=VECTORS, allowed=ALLOWED)
    build(recipe(path, samples), "cpu", output=tmp_path / "build", cache=tmp_path / "cache")
    with load(tmp_path / "build/cpu/bundle", allow_rejected=True) as bundle:
        (found,) = bundle.postprocess({"x": VECTORS[:1], "allowed": ALLOWED[:1]})
    assert (np.isinf(found["y"][0]) == ~ALLOWED[0]).all()
