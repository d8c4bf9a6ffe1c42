"""Inputs that never change, and sizes: the branches that they decide are folded, and give what they gave."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import recurrent

from edgekd.compress.graph import all_nodes
from edgekd.errors import ModelError, TaskError
from edgekd.runtime.backends.onnxruntime import open_engine

X = recurrent.steps()
RATE = {**X, "rate": np.full(len(X["x"]), 16000, np.int64)}


def operators(folder):
    return {node.op_type for node in all_nodes(onnx.load(folder / "float.onnx").graph)}


def test_an_input_that_never_changes_becomes_a_constant_and_its_branch_alone_is_left(tmp_path, import_):
    path = recurrent.by_rate(tmp_path / "m.onnx")
    facts = import_(path, RATE, test=RATE, fixed={"rate": 8000} | {"rate": 16000}).exported.facts
    assert [entry["name"] for entry in facts.inputs] == ["x", "h"]
    assert facts.states == {"h": "hn"}
    assert "If" not in operators(tmp_path / "out")
    h = np.ones((1, 5), np.float32)
    feeds = {"x": X["x"][:1], "h": h}
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["y"], {**feeds, "rate": np.array(16000)})
    (other,) = session.run(["y"], {**feeds, "rate": np.array(8000)})
    with open_engine(tmp_path / "out" / "float.onnx") as written:
        found = written.run(feeds)["y"]
    assert np.allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, other, atol=1e-2)


def test_the_other_branch_is_left_for_the_other_number_and_samples_need_not_have_it(tmp_path, import_):
    path = recurrent.by_rate(tmp_path / "m.onnx")
    import_(path, X, test=X, fixed={"rate": 8000})
    (expected,) = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        ["y"], {"x": X["x"][:1], "h": np.ones((1, 5), np.float32), "rate": np.array(8000)}
    )
    with open_engine(tmp_path / "out" / "float.onnx") as written:
        assert np.allclose(written.run({"x": X["x"][:1], "h": np.ones((1, 5), np.float32)})["y"], expected, atol=1e-5)


def test_an_input_that_is_the_same_in_all_samples_is_said_with_the_option(tmp_path, import_):
    imported = import_(recurrent.by_rate(tmp_path / "m.onnx"), RATE, test=RATE)
    assert "If" in operators(tmp_path / "out")
    assert "--fix rate=16000" in "\n".join(imported.notes)


@pytest.mark.parametrize(
    ("fixed", "samples", "error", "said"),
    [
        ({"rat": 1}, RATE, TaskError, r"fix rat=1: the model has no input 'rat'; did you mean 'rate'"),
        ({"rate": 8000}, RATE, ModelError, r"input 'rate' is 16000 in sample 0, and not 8000"),
        ({"rate": 0.5}, RATE, ModelError, r"the input is int64, which cannot hold 0\.5"),
        ({"rate": 1e30}, X, ModelError, r"the input is int64, which cannot hold 1e\+30"),
        ({"rate": 1, "x": 0, "h": 0}, X, ModelError, "every input is fixed"),
    ],
)
def test_what_cannot_be_fixed_is_one_clear_error(tmp_path, import_, fixed, samples, error, said):
    with pytest.raises(error, match=said):
        import_(recurrent.by_rate(tmp_path / "m.onnx"), samples, fixed=fixed)


def test_branches_that_the_size_of_samples_decides_are_folded_and_the_engine_takes_that_size_alone(tmp_path, import_):
    imported = import_(recurrent.by_size(tmp_path / "m.onnx"), X, test=X)
    assert "If" not in operators(tmp_path / "out")
    assert {entry["name"]: entry["shape"] for entry in imported.exported.facts.inputs} == {"x": [1, 4], "h": [1, 5]}
    assert "decided by the sizes of the inputs and folded" in "\n".join(imported.notes)
    assert imported.exported.parity["float"] < 1e-5
