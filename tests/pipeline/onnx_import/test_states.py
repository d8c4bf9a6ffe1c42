"""A state is found, carried over sequences from zero on, kept out of the questions of the gate, and said otherwise."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import recurrent
from graphs import INT64, node, tensor, weights, write

from edgekd.errors import ModelError, TaskError
from edgekd.pipeline.onnx_import.states import find_states
from edgekd.runtime.session import open_arrays

X = recurrent.steps()


def carried_by_hand(path, samples, states, **fixed):
    """Run a model as its user would, one sequence after the other; return what each step was given and gave."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    shapes = {
        value.name: [size if isinstance(size, int) else 1 for size in value.shape] for value in session.get_inputs()
    }
    given, outputs = {name: [] for name in states}, {name: [] for name in names}
    state, before = {}, None
    for x, group in zip(samples["x"], samples["groups"], strict=True):
        if group != before:
            state = {name: np.zeros(shapes[name], np.float32) for name in states}
        before = group
        for name, value in state.items():
            given[name].append(value)
        step = dict(zip(names, session.run(names, {"x": x.reshape(shapes["x"]), **state, **fixed}), strict=True))
        state = {name: step[after] for name, after in states.items()}
        for name in names:
            outputs[name].append(step[name])
    return {name: np.stack(rows) for name, rows in given.items()}, {n: np.stack(rows) for n, rows in outputs.items()}


def test_a_state_is_found_and_carried_from_zero_on_within_each_group(tmp_path, import_):
    path = recurrent.cell(tmp_path / "m.onnx")
    imported = import_(path, X, test=X)
    facts = imported.exported.facts
    assert facts.states == {"h": "hn"}
    assert list(facts.outputs) == ["y"], "what is carried is asked no question of the gate"
    with open_arrays(tmp_path / "out" / "test.npz") as arrays:
        state, known = arrays["input.h"], {str(name) for name in arrays}
        ids = arrays["ids"].astype(int)
    given, _ = carried_by_hand(path, X, {"h": "hn"})
    assert np.allclose(state, given["h"].reshape(len(ids), 5)[ids], atol=1e-6)
    assert np.abs(state).max() > 0.5
    assert not state[np.flatnonzero(np.diff(X["groups"], prepend=-1))].any()
    assert "carried.h" in known
    said = "\n".join(imported.notes)
    assert "'h' takes at the next step what 'hn' gave" in said
    assert "--state IN=OUT" in said


def test_the_steps_of_a_group_need_not_lie_side_by_side(tmp_path, import_):
    path = recurrent.cell(tmp_path / "m.onnx")
    rows = np.arange(len(X["x"])).reshape(recurrent.SEQUENCES, recurrent.STEPS).T.ravel()  # step 0 of all, then 1, ...
    import_(
        path, {"x": X["x"][rows], "groups": X["groups"][rows], "ids": rows}, test={**X, "ids": np.arange(len(rows))}
    )
    given, _ = carried_by_hand(path, X, {"h": "hn"})
    for name in ("calibration", "validation", "test"):
        with open_arrays(tmp_path / "out" / f"{name}.npz") as arrays:
            ids = arrays["ids"].astype(int)
            assert np.allclose(arrays["input.h"], given["h"].reshape(-1, 5)[ids], atol=1e-6), name


def test_a_state_whose_batch_is_its_second_dimension(tmp_path, import_):
    path = recurrent.lstm(tmp_path / "m.onnx")
    x = {**X, "x": X["x"][:, None]}
    imported = import_(path, x, test=x)
    assert imported.exported.facts.states == {"h0": "hn", "c0": "cn"}
    shapes = {entry["name"]: entry["shape"] for entry in imported.exported.facts.inputs}
    assert (shapes["h0"], shapes["c0"]) == ([1, 1, 6], [1, 1, 6])
    given, _ = carried_by_hand(path, x, {"h0": "hn", "c0": "cn"})
    with open_arrays(tmp_path / "out" / "test.npz") as arrays:
        assert np.allclose(arrays["input.c0"], given["c0"].reshape(-1, 1, 6), atol=1e-5)


def test_two_layers_of_state_have_no_batch_first_and_get_one(tmp_path, import_):
    path = recurrent.lstm(tmp_path / "m.onnx", bidirectional=True)
    x = {**X, "x": X["x"][:, None]}
    import_(path, x, test=x)
    given, _ = carried_by_hand(path, x, {"h0": "hn", "c0": "cn"})
    with open_arrays(tmp_path / "out" / "test.npz") as arrays:
        assert arrays["input.h0"].shape == (len(x["x"]), 2, 1, 6)
        assert np.allclose(arrays["input.h0"], given["h0"], atol=1e-5)


def test_the_engine_gives_its_state_where_only_the_score_is_named(tmp_path, import_):
    path = recurrent.cell(tmp_path / "m.onnx", after="new_h")
    facts = import_(path, X, test=X, outputs={"y": {"kind": "classes"}}).exported.facts
    assert (list(facts.outputs), facts.states) == (["y"], {"h": "new_h"})
    written = onnx.load(tmp_path / "out" / "float.onnx")
    assert [value.name for value in written.graph.output] == ["y", "new_h", "embedding.y"]


def test_a_state_that_is_named_as_an_output_is_judged_as_well(tmp_path, import_):
    path = recurrent.cell(tmp_path / "m.onnx")
    facts = import_(path, X, test=X, outputs={"y": {"kind": "classes"}, "hn": {"kind": "custom"}}).exported.facts
    assert {name: kind.name for name, kind in facts.outputs.items()} == {"y": "classes", "hn": "custom"}
    assert facts.states == {"h": "hn"}


def test_a_state_that_the_samples_give_is_theirs(tmp_path, import_):
    path = recurrent.cell(tmp_path / "m.onnx")
    h = np.random.default_rng(3).normal(size=(len(X["x"]), 5)).astype(np.float32)
    imported = import_(path, {**X, "h": h}, test={**X, "h": h})
    with open_arrays(tmp_path / "out" / "test.npz") as arrays:
        assert np.array_equal(arrays["input.h"], h)
        assert "carried.h" not in set(arrays)
    assert imported.exported.facts.states == {"h": "hn"}
    assert "how errors add up over a sequence is not measured" in "\n".join(imported.notes)


def test_without_groups_nobody_knows_where_a_sequence_begins(tmp_path, import_):
    path = recurrent.cell(tmp_path / "m.onnx")
    with pytest.raises(
        ModelError, match=r"the model carries a state, h, so samples are the steps of sequences; add 'gr"
    ):
        import_(path, {"x": X["x"]})


def test_that_there_is_no_state_can_be_said(tmp_path, import_):
    path = recurrent.cell(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"has no array for the model's input 'h'"):
        import_(path, X, states={})
    h = np.zeros((len(X["x"]), 5), np.float32)
    facts = import_(path, {**X, "h": h}, states={}).exported.facts
    assert (facts.states, list(facts.outputs)) == ({}, ["y", "hn"])


def test_names_that_say_nothing_are_paired_by_the_user_alone(tmp_path, import_):
    path = recurrent.cell(tmp_path / "m.onnx", state="a", after="b")
    assert find_states(onnx.load(path), None) == {}
    facts = import_(path, X, test=X, states={"a": "b"}).exported.facts
    assert (facts.states, list(facts.outputs)) == ({"a": "b"}, ["y"])


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"hh": "hn"}, TaskError, r"state hh=hn: the model has no input 'hh'; did you mean 'h'"),
        ({"h": "hm"}, TaskError, r"the model has no output 'hm'; did you mean"),
        ({"h": "y"}, ModelError, r"input 'h' is float32 \[\?, 5\], and output 'y' is float32 \[\?, 3\]"),
        ({"h": "hn", "x": "y"}, ModelError, r"state x=y: input 'x' is float32 \[\?, 4\]"),
    ],
)
def test_a_wrong_pair_is_one_clear_error(tmp_path, import_, asked, error, said):
    with pytest.raises(error, match=said):
        import_(recurrent.cell(tmp_path / "m.onnx"), X, states=asked)


def test_a_pair_of_two_types_is_refused(tmp_path, import_):
    inputs = [tensor("x", ["n", 4]), tensor("h", ["n", 3], INT64)]
    nodes = [
        node("MatMul", ["x", "w"], ["y"]),
        node("Cast", ["h"], ["float_h"], to=1),
        node("Add", ["y", "float_h"], ["hn"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, inputs, [tensor("y", ["n", 3]), tensor("hn", ["n", 3])], weights(w=(4, 3)))
    assert find_states(onnx.load(path), None) == {}
    with pytest.raises(ModelError, match=r"input 'h' is int64 \[\?, 3\], and output 'hn' is float32"):
        import_(path, X, states={"h": "hn"})


def test_neither_every_input_nor_every_output_can_be_a_state(tmp_path):
    path = recurrent.cell(tmp_path / "m.onnx", state="a", after="b", sizes=("n", 4), score_sizes=("n", 4))
    model = onnx.load(path)
    with pytest.raises(ModelError, match="every input is named as a state, so nothing is fed at a step"):
        find_states(model, {"a": "b", "x": "y"})
    with pytest.raises(ModelError, match="output 'b' is named as the state of several inputs"):
        find_states(model, {"a": "b", "x": "b"})


def test_a_cache_that_grows_is_refused_unless_the_samples_give_it(tmp_path, import_):
    path = recurrent.growing(tmp_path / "m.onnx")
    with pytest.raises(
        ModelError, match=r"input 'past', \[1, 4\] a sample, is \[1, 2, 4\] after a step.*changes its size"
    ):
        import_(path, X)
    past = np.random.default_rng(0).normal(size=(len(X["x"]), 3, 4)).astype(np.float32)
    imported = import_(path, {**X, "past": past})
    assert imported.exported.facts.states == {}
    assert "it is no state that an engine can carry" in "\n".join(imported.notes)


@pytest.mark.parametrize(
    ("before", "after", "paired"),
    [
        ("state", "stateN", True), ("h", "h_n", True), ("h0", "hn", True), ("c_in", "c_out", True),
        ("past_key_values.0.key", "present.0.key", True), ("past_key_values.0.key", "present.0.value", False),
        ("past_key_values.1.key", "present.0.key", False), ("past", "present", True), ("cache_in", "cache_out", True),
        ("in_cache", "out_cache", True), ("cached_len_0", "new_cached_len_0", True), ("prev_state", "next_state", True),
        ("rnn_hidden_in", "rnn_hidden_out", True), ("onnx::GRU_1", "54", False), ("input", "output", False),
        ("image", "image_out", False), ("input", "present", False), ("hidden_states", "last_hidden_state", False),
        ("encoder.state", "decoder.state_out", False),
    ],
)  # fmt: skip
def test_names_by_which_states_are_found(tmp_path, before, after, paired):
    path = recurrent.cell(tmp_path / "m.onnx", state=before, after=after)
    assert find_states(onnx.load(path), None) == ({before: after} if paired else {})


def test_two_outputs_that_fit_one_state_are_left_to_the_user(tmp_path):
    nodes = [node("MatMul", ["x", "w"], ["y"]), *(node("Tanh", ["h"], [name]) for name in ("hn", "h_out"))]
    outputs = [tensor("y", ["n", 3]), tensor("hn", ["n", 5]), tensor("h_out", ["n", 5])]
    path = write(tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4]), tensor("h", ["n", 5])], outputs, weights(w=(4, 3)))
    assert find_states(onnx.load(path), None) == {}
