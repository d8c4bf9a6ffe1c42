"""Every output of an imported model is kept under its own name, whatever it is, and is judged by its kind."""

import graphs
import msgspec
import numpy as np
import onnx
import pytest
from graphs import node, normal, tensor
from user import run_user

from edgekd.config.recipe import QuantizeConfig, Recipe
from edgekd.errors import ModelError, RecipeError, TaskError
from edgekd.runtime.session import open_arrays
from edgekd.workflows.build import build

X = {"x": normal(4)}
DOUBLE = onnx.TensorProto.DOUBLE


def detector(path, outputs=("scores", "boxes", "best", "exact", "height")):
    """A model of one layer that answers in five ways: one of integers, one in doubles, one a number a sample."""
    nodes = [
        node("Gemm", ["x", "w", "b"], ["hidden"], name="layer"),
        node("Softmax", ["hidden"], ["scores"], axis=-1),
        node("Reshape", ["hidden", "grid"], ["boxes"]),
        node("ArgMax", ["hidden"], ["best"], axis=1, keepdims=0),
        node("Cast", ["hidden"], ["exact"], to=DOUBLE),
        node("ReduceMean", ["hidden"], ["height"], axes=[1], keepdims=0),
    ]
    values = {
        "scores": tensor("scores", ["n", 6]),
        "boxes": tensor("boxes", ["n", 2, 3]),
        "best": tensor("best", ["n"], graphs.INT64),
        "exact": tensor("exact", ["n", 6], DOUBLE),
        "height": tensor("height", ["n"]),
    }
    stored = [*graphs.weights(w=(4, 6), b=(6,)), *graphs.integers(grid=[-1, 2, 3])]
    return graphs.write(path, nodes, [tensor("x", ["n", 4])], [values[name] for name in outputs], stored)


def test_all_outputs_of_floats_are_kept_each_of_the_kind_it_looks_like(tmp_path, import_):
    path = detector(tmp_path / "m.onnx")
    imported = import_(path, {**X, "labels": np.arange(12) % 6})
    facts = imported.exported.facts
    assert {name: kind.name for name, kind in facts.outputs.items()} == {
        "scores": "classes",
        "boxes": "custom",
        "exact": "regression",
        "height": "regression",
    }
    assert (list(facts.classes), facts.metric) == (["scores"], "accuracy")
    said = "\n".join(imported.notes)
    assert "gives scores, boxes, exact, height: without best" in said
    assert "output 'boxes' [batch, 2, 3] is taken for 'custom'" in said
    assert "--output NAME=KIND" in said
    assert imported.exported.parity["float"] < 1e-6


def test_what_each_output_is_can_be_said_and_what_is_not_named_is_left_out(tmp_path, import_):
    asked = {"boxes": {"kind": "custom"}, "best": {"kind": "custom"}, "exact": {"kind": "embedding", "index": "own"}}
    imported = import_(detector(tmp_path / "m.onnx"), X, outputs=asked)
    kinds = imported.exported.facts.outputs
    assert [(name, kind.name, kind.index) for name, kind in kinds.items()] == [
        ("boxes", "custom", "float"),
        ("best", "custom", "float"),
        ("exact", "embedding", "own"),
    ]
    session = onnx.load(tmp_path / "out" / "float.onnx")
    assert [value.name for value in session.graph.output][:3] == ["boxes", "best", "exact"]


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"score": {}}, TaskError, "no output of numbers 'score'; did you mean 'scores'"),
        ({"boxes": {"kind": "classes"}, "scores": {}}, ModelError, r"output 'boxes': kind 'classes' needs .* 2, 3\]"),
        ({"boxes": {"kind": "custom", "index": "own"}}, ModelError, "index = 'own' is for 'embedding'"),
        ({"boxes": {"kind": "sequence-classes", "blank": 3}}, ModelError, "blank = 3 is no class"),
    ],
    ids=["name", "shape", "index", "blank"],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, import_, asked, error, message):
    with pytest.raises(error, match=message):
        import_(detector(tmp_path / "m.onnx"), X, outputs=asked)


def test_the_kind_of_the_only_output_says_nothing_of_several(tmp_path, import_):
    with pytest.raises(ModelError, match="the model has scores, boxes, exact, height: say what each is"):
        import_(detector(tmp_path / "m.onnx"), X, kind="regression")
    with pytest.raises((RecipeError, msgspec.ValidationError), match="are of the only output"):
        recipe(tmp_path, outputs={"boxes": "custom"}, kind="regression")


def recipe(folder, **model):
    table = {"path": str(folder / "m.onnx"), "calibration": str(folder / "samples.npz"), **model}
    return msgspec.convert({"model": table, "profile": {"iterations": 40, "cold_starts": 2, "layers": False}}, Recipe)


def test_a_build_ships_all_of_them_and_the_ledger_judges_each(tmp_path):
    path = detector(tmp_path / "m.onnx")
    x = np.random.default_rng(3).normal(size=(400, 4)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=x)
    given = recipe(tmp_path, outputs={"scores": "classes", "boxes": "custom", "best": "custom", "height": "auto"})
    given = msgspec.structs.replace(given, quantize=QuantizeConfig(precision="float32"))
    report = build(given, "cpu", output=tmp_path / "out", cache=tmp_path / "cache")
    (target,) = report.targets
    row = target.ledger.rows[-1]
    assert list(row.answers) == ["scores", "boxes", "best", "height"]
    assert target.ledger.verdict == "pass"
    from edgekd import load

    with load(tmp_path / "out" / "cpu" / "bundle") as bundle:
        assert bundle.verify().ok
        found = bundle.run({"x": x[:5]})
        with open_arrays(tmp_path / "out" / "cpu" / "bundle" / "reference.npz") as reference:
            assert {"output.scores", "output.boxes", "output.best", "output.height"} <= set(reference)
    for name in ("scores", "boxes"):
        np.testing.assert_allclose(found[name], run_user(path, name, {"x": x[:5]}), rtol=1e-5)
    for name in ("best", "height"):  # one number a sample has a dimension of its own
        np.testing.assert_allclose(found[name][:, 0], run_user(path, name, {"x": x[:5]}), rtol=1e-5)
    assert found["best"].dtype == np.int64


def test_several_outputs_of_which_none_is_of_classes_are_built(tmp_path):
    detector(tmp_path / "m.onnx")
    np.savez(tmp_path / "samples.npz", x=np.random.default_rng(3).normal(size=(100, 4)).astype(np.float32))
    given = recipe(tmp_path, outputs={"boxes": "custom", "height": "regression"})
    given = msgspec.structs.replace(given, quantize=QuantizeConfig(precision="float32"))
    report = build(given, "cpu", output=tmp_path / "out", cache=tmp_path / "cache")
    assert list(report.targets[0].ledger.rows[-1].answers) == ["boxes", "height"]
