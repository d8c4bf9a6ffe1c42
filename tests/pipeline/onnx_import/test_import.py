"""Whole imports, up to the INT8 engine: each odd graph gives what its user's file gives, and can be quantized."""

import graphs
import numpy as np
import onnx
import pytest
from graphs import TOWERS, node, normal, tensor
from onnx import helper
from user import run_user

from edgekd.compress import quantize
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import load_calibration
from edgekd.devices.targets import load_target
from edgekd.errors import ModelError, TaskError
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.feeds import read_feeds
from edgekd.runtime.session import read_arrays, run_rows
from edgekd.stages.artifacts import DEPLOY, PROBE_GRAPH

X = {"x": normal(4)}


def run_all(engine, samples):
    with open_engine(engine) as session:
        return run_rows(session, read_feeds(samples, session.inputs), 256)


def outputs(folder):
    return run_all(folder / "float.onnx", folder / "test.npz")


def rows(folder, *keys, name="test.npz"):
    arrays = read_arrays(folder / name, ["ids", *keys])
    return [arrays["ids"].astype(int), *(arrays[key] for key in keys)]


def test_two_towers(tmp_path, import_):
    path = graphs.two_towers(tmp_path / "m.onnx")
    imported = import_(path, {**TOWERS, "labels": np.arange(12) % 3})
    assert {name: (tap.tensor, tap.pooling, tap.width) for name, tap in imported.modalities.items()} == {
        "image": ("image_features", "as it is", 8),
        "motion": ("motion_features", "as it is", 8),
    }
    assert imported.exported.parity["float"] < 1e-6
    assert imported.exported.sizes == {"float": (tmp_path / "out/float.onnx").stat().st_size}
    facts = imported.exported.facts
    assert (facts.metric, facts.higher_is_better) == ("accuracy", True)
    assert facts.classes == {"probabilities": ["0", "1", "2"]}
    assert {name: kind.name for name, kind in facts.outputs.items()} == {
        "probabilities": "classes",
        "scores": "regression",
    }
    assert [(item["name"], item["dtype"], item["shape"]) for item in facts.inputs] == [
        ("image", "float32", ["batch", 1, 8, 8]),
        ("motion", "float32", ["batch", 5, 4]),
    ]
    told = " ".join(imported.notes)
    assert "image at 'image_features', motion at 'motion_features'" in told
    assert "6 are to calibrate with and 6 other ones to test" in told

    found = outputs(tmp_path / "out")
    ids, labels = rows(tmp_path / "out", "labels")
    np.testing.assert_array_equal(labels, ids % 3)
    feeds = {name: x[ids] for name, x in TOWERS.items()}
    for name, users in (
        ("probabilities", "probabilities"),
        ("scores", "scores"),
        ("embedding.image", "image_features"),
    ):
        np.testing.assert_allclose(found[name], tapped(path, users, feeds), rtol=1e-5, atol=1e-6)


def tapped(path, name, feeds):
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    copy = path.with_name("tapped.onnx")
    onnx.save(model, copy)
    return run_user(copy, name, feeds)


def test_named_taps_and_output(tmp_path, import_):
    path = graphs.two_towers(tmp_path / "m.onnx")
    taps = {"picture": "map_relu", "watch": "motion_tokens", "fused": "joined"}
    imported = import_(path, TOWERS, taps=taps, outputs={"scores": {}})
    assert any("gives scores: without probabilities" in note for note in imported.notes)
    assert {name: (tap.pooling, tap.width) for name, tap in imported.modalities.items()} == {
        "picture": ("mean over positions", 8),
        "watch": ("mean over tokens", 8),
        "fused": ("as it is", 16),
    }
    found = outputs(tmp_path / "out")
    (ids,) = rows(tmp_path / "out")
    feeds = {name: x[ids] for name, x in TOWERS.items()}
    np.testing.assert_allclose(found["scores"], run_user(path, "scores", feeds), rtol=1e-5)
    expected = tapped(path, "map_relu", feeds).mean((2, 3))
    np.testing.assert_allclose(found["embedding.picture"], expected, rtol=1e-5, atol=1e-6)


def test_one_tensor_under_several_names(tmp_path, import_):
    path = graphs.mlp(tmp_path / "m.onnx")
    import_(path, X, taps={"a": "y", "b": "y", "raw": "x"})
    found = outputs(tmp_path / "out")
    ids, x = rows(tmp_path / "out", "input.x")
    for name in ("y", "embedding.a", "embedding.b"):
        np.testing.assert_allclose(found[name], run_user(path, "y", {"x": X["x"][ids]}), rtol=1e-5)
    np.testing.assert_array_equal(found["embedding.raw"], x)


def test_names_that_edgekd_takes_are_vacated(tmp_path, import_):
    nodes = [node("Gemm", ["x", "w"], ["embedding.y"]), node("Relu", ["embedding.y"], ["y"])]
    path = graphs.write(
        tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4])], [tensor("y", ["n", 3])], graphs.weights(w=(4, 3))
    )
    import_(path, X, taps={"y": "y"})
    found = outputs(tmp_path / "out")
    (ids,) = rows(tmp_path / "out")
    for name in ("y", "embedding.y"):
        np.testing.assert_allclose(found[name], run_user(path, "y", {"x": X["x"][ids]}), rtol=1e-5)


def test_an_input_has_a_name_that_edgekd_takes(tmp_path, import_):
    path = graphs.write(
        tmp_path / "m.onnx",
        [node("Relu", ["embedding.y"], ["y"])],
        [tensor("embedding.y", ["n", 4])],
        [tensor("y", ["n", 4])],
    )
    with pytest.raises(ModelError, match=r"input 'embedding\.y' has a name that edgekd gives an output"):
        import_(path, {"embedding.y": normal(4)}, taps={"y": "y"})


def test_an_output_has_a_name_that_edgekd_takes(tmp_path, import_):
    path = graphs.write(
        tmp_path / "m.onnx", [node("Relu", ["x"], ["ids"])], [tensor("x", ["n", 4])], [tensor("ids", ["n", 4])]
    )
    with pytest.raises(TaskError, match="output 'ids' has a name that edgekd has a use for"):
        import_(path, X)


def test_given_test_samples_are_not_split(tmp_path, import_):
    imported = import_(graphs.mlp(tmp_path / "m.onnx"), X, test={"x": normal(4, seed=1)[:5]})
    assert not any("test samples" in note for note in imported.notes)
    np.testing.assert_array_equal(rows(tmp_path / "out", "input.x")[1], normal(4, seed=1)[:5])
    np.testing.assert_array_equal(rows(tmp_path / "out", "input.x", name="calibration.npz")[1], X["x"])


def test_test_samples_that_are_calibration_samples_too_are_counted(tmp_path, import_):
    """Inputs alone tell: the files' own names of samples may differ."""
    test = {"x": np.concatenate([X["x"][:3], normal(4, seed=1)[:2]]), "ids": np.arange(5) + 100}
    imported = import_(graphs.mlp(tmp_path / "m.onnx"), X, test=test)
    assert any(note.startswith("3 of the 5 test samples are calibration samples too") for note in imported.notes)


def test_the_same_input_gives_the_same_files(tmp_path, import_):
    path = graphs.two_towers(tmp_path / "m.onnx")
    written = []
    for _ in range(2):
        import_(path, TOWERS)
        written.append([(tmp_path / "out" / name).read_bytes() for name in ("float.onnx", "test.npz")])
    assert written[0] == written[1]


ODD = {
    "scalar": (graphs.scalar, {"x": normal(4), "gain": normal(seed=1)}, 1),
    "double": (graphs.double, {"x": normal(4, dtype=np.float64)}, "batch"),
    "tokens": (graphs.tokens, {"tokens": np.arange(12 * 7).reshape(12, 7) % 50}, "batch"),
    "if": (lambda path: graphs.branch(path, constant=False), X, 1),
    "folded-if": (lambda path: graphs.branch(path, constant=True), X, "batch"),
    "constants": (lambda path: graphs.in_constants(path, 11), {"x": normal(2, 8, 6)}, "batch"),
    "state": (graphs.recurrent, {"x": normal(4), "state": normal(1, 1, 5, seed=1)}, 1),
    "fixed-batch": (graphs.fixed_batch, {"x": normal(2, 2)}, 1),
}


def user_rows(path, arrays, ids, batched):
    """What the user's own file gives, a sample at a time, fed as it wants to be."""
    results = []
    for row in ids:
        feeds = {name: x[row : row + 1] if name in batched else np.asarray(x[row]) for name, x in arrays.items()}
        results.append(run_user(path, "y", feeds))
    return np.concatenate(results)


@pytest.mark.parametrize("name", ODD)
def test_odd_graphs_give_what_the_users_file_gives_and_can_be_quantized(tmp_path, import_, name):
    make, arrays, batch = ODD[name]
    path = make(tmp_path / "m.onnx")
    imported = import_(path, arrays)
    folder = tmp_path / "out"
    assert [item["shape"][0] for item in imported.exported.facts.inputs] == [batch] * len(arrays)
    (ids,) = rows(folder)
    single = {"scalar": {"gain"}, "state": {"state"}}.get(name, set())
    expected = user_rows(path, arrays, ids, set(arrays) - single)
    np.testing.assert_allclose(outputs(folder)["y"], expected, rtol=1e-5, atol=1e-6)

    target, calibration = load_target("cpu"), load_calibration("minmax")
    samples = folder / "test.npz"  # to calibrate with as well: whether ranges hold for others is not the question here
    for way in (CandidateSpec("float32", None), CandidateSpec("int8", "qdq")):
        done = quantize.run(way, folder / "float.onnx", samples, target.scheme, calibration, folder)
        for variant in (PROBE_GRAPH, DEPLOY):
            found = run_all(folder / way.name / variant, samples)["y"]
            error = np.abs(found - expected).max() / np.abs(expected).max()
            assert error < (1e-5 if way.precision == "float32" else 0.05)
    assert done.quantized_nodes > 0


def test_rows_that_mix_run_one_at_a_time(tmp_path, import_):
    nodes = [node("Gemm", ["x", "w"], ["s"]), node("Softmax", ["s"], ["y"], axis=0)]
    path = graphs.write(
        tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4])], [tensor("y", ["n", 3])], graphs.weights(w=(4, 3))
    )
    imported = import_(path, X)
    assert any("two samples in one batch give another result" in note for note in imported.notes)
    with open_engine(tmp_path / "out/float.onnx") as session:
        assert session.inputs[0].shape == (1, 4)


def test_a_model_without_any_batch(tmp_path, import_):
    """A vector in, a vector out; a sample each."""
    path = graphs.write(
        tmp_path / "m.onnx", [node("MatMul", ["x", "w"], ["y"])], [tensor("x", [4])], [tensor("y", [3])],
        graphs.weights(w=(4, 3)),
    )  # fmt: skip
    imported = import_(path, X)
    assert any("input x has no dimension for a batch" in note for note in imported.notes)
    (ids,) = rows(tmp_path / "out")
    expected = np.stack([run_user(path, "y", {"x": X["x"][row]}) for row in ids])
    np.testing.assert_allclose(outputs(tmp_path / "out")["y"], expected, rtol=1e-5)


def test_one_number_for_each_sample(tmp_path, import_):
    nodes = [node("Gemm", ["x", "w"], ["s"]), node("Squeeze", ["s", "axis"], ["y"])]
    stored = [*graphs.weights(w=(4, 1)), *graphs.integers(axis=[1])]
    path = graphs.write(tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4])], [tensor("y", ["n"])], stored)
    imported = import_(path, {**X, "labels": np.zeros(12, int)})
    assert (imported.exported.facts.classes, imported.exported.facts.metric) == ({}, "metric")
    assert any("the labels are not used" in note for note in imported.notes)
    assert outputs(tmp_path / "out")["y"].shape == (6, 1)
    with np.load(tmp_path / "out/test.npz") as arrays:
        assert "labels" not in arrays


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": {"score": {}}}, "no output of numbers 'score'; did you mean 'scores'"),
        ({"taps": {"a": "image_featurs"}}, "no tensor 'image_featurs'; did you mean 'image_features'"),
    ],
    ids=["output", "tap"],
)
def test_wrong_names(tmp_path, import_, options, message):
    with pytest.raises(TaskError, match=message):
        import_(graphs.two_towers(tmp_path / "m.onnx"), TOWERS, **options)


def test_a_tap_that_holds_no_floats(tmp_path, import_):
    path = graphs.tokens(tmp_path / "m.onnx")
    with pytest.raises(TaskError, match="tap words: tensor 'tokens' is int64; an embedding is a float tensor"):
        import_(path, {"tokens": np.zeros((12, 3), int)}, taps={"words": "tokens"})


def test_a_model_without_float_outputs(tmp_path, import_):
    path = graphs.write(
        tmp_path / "m.onnx", [node("ArgMax", ["x"], ["y"], axis=1)], [tensor("x", ["n", 4])],
        [tensor("y", ["n", 1], graphs.INT64)],
    )  # fmt: skip
    with pytest.raises(ModelError, match="no output of the model is a float tensor"):
        import_(path, X)


def test_outputs_that_are_no_tensors_are_left_out(tmp_path, import_):
    nodes = [node("Gemm", ["x", "w"], ["y"]), node("SequenceConstruct", ["y"], ["list"])]
    listed = helper.make_tensor_sequence_value_info("list", graphs.FLOAT, ["n", 3])
    path = graphs.write(
        tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4])], [listed, tensor("y", ["n", 3])], graphs.weights(w=(4, 3))
    )
    assert list(import_(path, X).exported.facts.outputs) == ["y"]
    assert outputs(tmp_path / "out")["y"].shape == (6, 3)


def test_a_state_is_no_modality(tmp_path, import_):
    imported = import_(graphs.recurrent(tmp_path / "m.onnx"), {"x": normal(4), "state": normal(1, 1, 5)})
    assert list(imported.modalities) == ["y"]
    assert imported.exported.facts.modalities == ["x"]


def test_labels_beyond_the_classes(tmp_path, import_):
    with pytest.raises(ModelError, match="'labels' holds 3, but the model has classes 0 to 2 only"):
        import_(graphs.mlp(tmp_path / "m.onnx"), {**X, "labels": np.full(12, 3)})


def test_test_samples_of_another_size(tmp_path, import_):
    path = graphs.in_constants(tmp_path / "m.onnx", 17)
    with pytest.raises(ModelError, match=r"test.npz: input 'x' is \[2, 8, 6\] a sample in .*but here \[2, 9, 6\]"):
        import_(path, {"x": normal(2, 8, 6)}, test={"x": normal(2, 9, 6)})


def test_a_missing_state(tmp_path, import_):
    path = graphs.recurrent(tmp_path / "m.onnx")
    with pytest.raises(
        ModelError, match=r"input 'state', float32 \[1, state.1, 5\]; it looks like a state: --state state="
    ):
        import_(path, X, states={})
    with pytest.raises(ModelError, match="the model carries a state, state, so samples are the steps of sequences"):
        import_(path, X)
