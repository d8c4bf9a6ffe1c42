"""A build of a network with a state: INT8 carries its own in the gate, and the bundle streams and verifies itself."""

from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
import recurrent
from commands import stage_folder

import edgekd
from edgekd.config.recipe import QuantizeConfig, Recipe
from edgekd.errors import ModelError
from edgekd.pipeline.target.outputs import probe_variants, run_on_host
from edgekd.runtime.session import open_arrays
from edgekd.workflows.build import build

X = recurrent.steps(1)


def built(folder, path, samples, **model):
    np.savez(folder / "samples.npz", **samples)
    table = {"path": str(path), "calibration": str(folder / "samples.npz"), **model}
    profile = {"iterations": 40, "cold_starts": 2, "layers": False}
    recipe = msgspec.convert({"model": table, "profile": profile, "gate": {"undecided": "release"}}, Recipe)
    quantize = QuantizeConfig(precision="int8", calibration="minmax", repair="off")
    return build(
        msgspec.structs.replace(recipe, quantize=quantize), "cpu", output=folder / "out", cache=folder / "cache"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    built(folder, recurrent.cell(folder / "m.onnx"), X, outputs={"y": "regression"})
    return folder


@pytest.fixture
def bundle(folder):
    with edgekd.load(folder / "out" / "cpu" / "bundle", allow_rejected=True) as opened:
        yield opened


def by_hand(engine, x, h=None):
    """Run an engine with a state, as it lies in a bundle, step by step; return its answers and its last state."""
    session = ort.InferenceSession(str(engine), providers=["CPUExecutionProvider"])
    h, answers = np.zeros((1, 5), np.float32) if h is None else h, []
    for row in x:
        y, h = session.run(["y", "hn"], {"x": row[None], "h": h})
        answers.append(y[0])
    return np.array(answers), h


def test_a_stream_carries_what_the_engine_gives(bundle):
    x = X["x"][:12]
    expected, state = by_hand(bundle.folder / "deploy.onnx", x)
    stream = bundle.stream()
    found = [stream.run({"x": row[None]})["y"][0] for row in x]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stream.state["h"], state, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found[-1], bundle.run({"x": x[-1:]})["y"], atol=1e-3), "the state matters"


def test_a_stream_begins_anew_and_takes_a_state_that_is_given(bundle):
    stream, x = bundle.stream(), X["x"][:2]
    first = stream.run({"x": x[:1]})["y"]
    stream.run({"x": x[1:]})
    stream.reset()
    assert stream.state == {}
    np.testing.assert_array_equal(stream.run({"x": x[:1]})["y"], first)
    h = np.full((1, 5), 0.5, np.float32)
    np.testing.assert_array_equal(stream.run({"x": x[:1], "h": h})["y"], bundle.run({"x": x[:1], "h": h})["y"])


def test_a_step_that_does_not_fit_leaves_the_state_as_it_was(bundle):
    stream = bundle.stream()
    stream.run({"x": X["x"][:1]})
    before = stream.state["h"].copy()
    for wrong in ({"x": np.zeros((1, 3), np.float32)}, {"x": np.full((1, 4), np.nan, np.float32)}, {}, None):
        with pytest.raises(ModelError):
            stream.run(wrong)
    np.testing.assert_array_equal(stream.state["h"], before)


def test_streams_in_many_threads_do_not_mix(bundle):
    sequences = [X["x"][X["groups"] == group] for group in range(8)]

    def follow(x):
        stream = bundle.stream()
        return [stream.run({"x": row[None]})["y"][0] for row in x]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(follow, sequences))
    for x, answers in zip(sequences, found, strict=True):
        np.testing.assert_allclose(answers, by_hand(bundle.folder / "deploy.onnx", x)[0], rtol=1e-5, atol=1e-6)


def test_a_state_that_is_left_out_is_zero_for_every_row(bundle):
    zeros = np.zeros((3, 5), np.float32)
    given = bundle.run({"x": X["x"][:3], "h": zeros})
    np.testing.assert_array_equal(bundle.run({"x": X["x"][:3]})["hn"], given["hn"])


def test_all_rows_of_a_file_are_steps_of_the_sequences_that_it_names(bundle, tmp_path):
    found = bundle.run_all({"x": X["x"]}, X["groups"])["y"]
    for group in range(8):
        own = X["groups"] == group
        expected = by_hand(bundle.folder / "deploy.onnx", X["x"][own])[0]
        np.testing.assert_allclose(found[own], expected, rtol=1e-5, atol=1e-6)
    np.savez(tmp_path / "s.npz", **X)
    predicted = edgekd.predict(bundle.folder, tmp_path / "s.npz", allow_rejected=True)
    np.testing.assert_array_equal(predicted.outputs["y"], found)
    assert list(predicted.answers[0]) == ["y"]
    assert "as the steps of 8 sequences, which 'groups' names, in their order: h began at zero" in predicted.notes[0]
    np.savez(tmp_path / "one.npz", x=X["x"])
    one = edgekd.predict(bundle.folder, tmp_path / "one.npz", allow_rejected=True)
    expected = by_hand(bundle.folder / "deploy.onnx", X["x"])[0]
    np.testing.assert_allclose(one.outputs["y"], expected, rtol=1e-5, atol=1e-6)
    assert "as the steps of one sequence" in one.notes[0]


def test_the_bundle_says_what_is_carried_and_verifies_itself_with_states_that_occur(bundle):
    assert bundle.manifest.states == [{"input": "h", "output": "hn", "initial": "zeros"}]
    assert {entry["name"]: entry["kind"] for entry in bundle.manifest.outputs} == {
        "y": "regression",
        "hn": "state",
        "embedding.y": "tap",
    }
    with open_arrays(bundle.folder / "reference.npz") as reference:
        state, outputs = reference["input.h"], reference["output.hn"]
    assert np.abs(state).max() > 0.1
    assert outputs.shape == state.shape
    verified = bundle.verify()
    assert verified.ok
    assert verified.output_error < 1e-3


def test_an_engine_without_a_state_has_no_stream(tmp_path, folder):
    nothing = built_without_state(tmp_path)
    with edgekd.load(nothing, allow_rejected=True) as bundle, pytest.raises(ModelError, match="has no state to carry"):
        bundle.stream()


def built_without_state(folder):
    path = recurrent.cell(folder / "m.onnx")
    h = np.random.default_rng(0).normal(size=(len(X["x"]), 5)).astype(np.float32)
    built(folder, path, {**X, "h": h}, states="none", outputs={"y": "regression"})
    return folder / "out" / "cpu" / "bundle"


def test_the_gate_sees_the_answers_over_whole_sequences(folder):
    """What was judged is what INT8 gives when it carries its own state, and not that of the float network."""
    quantized, imported = (stage_folder(folder / "cache", stage) for stage in ("quantize", "import"))
    with open_arrays(imported / "validation.npz") as arrays:
        x, groups, given = arrays["input.x"], arrays["groups"], arrays["input.h"]
    with open_arrays(quantized / "int8" / "outputs.npz") as arrays:
        judged = arrays["y"]
    deploy = quantized / "int8" / "deploy.onnx"
    own = np.concatenate([by_hand(deploy, x[groups == group])[0] for group in np.unique(groups)])
    order = np.concatenate([np.flatnonzero(groups == group) for group in np.unique(groups)])
    scale = np.abs(own).max()
    assert np.abs(judged[order] - own).max() < 0.02 * scale
    session = ort.InferenceSession(str(deploy), providers=["CPUExecutionProvider"])
    from_float = session.run(["y"], {"x": x, "h": given})[0]
    assert np.abs(judged - from_float).max() > 0.02 * scale, "its own state is another by now"


def test_variants_are_compared_from_the_same_state(folder):
    """Two variants that differ by rounding may end anywhere, each from a state of its own; a wrong one is found."""
    imported = stage_folder(folder / "cache", "import")
    engine, samples = imported / "float.onnx", imported / "validation.npz"
    seen = []

    def run(variant, steps):
        outputs = run_on_host(engine, steps)
        with open_arrays(steps) as arrays:
            seen.append((variant, {str(key) for key in arrays if key.startswith("carried.")}))
        return {key: x for key, x in outputs.items() if variant == "probe.onnx" or not key.startswith("embedding.")}

    _, error = probe_variants(run, samples, "it")
    assert seen == [("deploy.onnx", {"carried.h"}), ("probe.onnx", set())]
    assert error < 1e-6

    def wrong(variant, steps):
        return {name: x * (2 if variant == "deploy.onnx" else 1) for name, x in run(variant, steps).items()}

    with pytest.raises(ModelError, match=r"deploy\.onnx and probe\.onnx disagree by .* in output 'y'"):
        probe_variants(wrong, samples, "it")
