"""A metric of the user's own for an imported model: what it is given, where its figures go, and how it may fail."""

import graphs
import msgspec
import numpy as np
import pytest
from graphs import node, tensor

from edgekd.config.recipe import GateConfig, QuantizeConfig, Recipe
from edgekd.errors import ModelError, TaskError
from edgekd.pipeline.onnx_import.answers.own_metric import load_metric
from edgekd.workflows.check import check

METRICS = '''
import numpy as np

def error(outputs, targets):
    """The mean distance of boxes from where they should be, of those that are there."""
    there = ~np.isnan(targets["boxes"]).any(-1)
    outputs["boxes"][:] *= 1.0  # it has copies
    return np.abs(outputs["boxes"] - targets["boxes"])[there].mean()

error.higher_is_better = False
error.metric_name = "box error"

def words(outputs, targets):
    return float((np.array(["no", "yes"])[(outputs[:, 0] > 0).astype(int)] == targets).mean())

def ages(outputs, targets):
    return -float(np.abs(outputs[:, 0] - targets).mean())

def raises(outputs, targets):
    return targets["nowhere"]

def nothing(outputs, targets):
    outputs.mean()

def text(outputs, targets):
    return "0.5"

def many(outputs, targets):
    return outputs[0]

def is_nan(outputs, targets):
    return float("nan")

number = 5

def odd(outputs, targets):
    return 1.0
odd.higher_is_better = "no"
'''


@pytest.fixture
def metrics(tmp_path):
    (tmp_path / "own.py").write_text(METRICS, encoding="utf-8")
    return lambda name: f"{tmp_path / 'own.py'}:{name}"


def detector(path):
    """Boxes [n, 3, 4] and scores [n, 3, 1] through a hidden layer."""
    nodes = [
        node("Gemm", ["x", "w"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "v"], ["flat"]),
        node("Reshape", ["flat", "grid"], ["boxes"]),
        node("Gemm", ["r", "s"], ["flat_scores"]),
        node("Reshape", ["flat_scores", "column"], ["raw"]),
        node("Sigmoid", ["raw"], ["scores"]),
    ]
    stored = [*graphs.weights(w=(8, 16), v=(16, 12), s=(16, 3)), *graphs.integers(grid=[-1, 3, 4], column=[-1, 3, 1])]
    outputs = [tensor("boxes", ["n", 3, 4]), tensor("scores", ["n", 3, 1])]
    return graphs.write(path, nodes, [tensor("x", ["n", 8])], outputs, stored)


def found(path, x):
    from user import run_user

    return run_user(path, "boxes", {"x": x})


def samples(path, rows=160):
    """Boxes near those that the network finds; of half of the samples the last is none, so NaN."""
    random = np.random.default_rng(1)
    x = random.normal(size=(rows, 8)).astype(np.float32)
    boxes = found(path, x) + random.normal(0, 0.05, (rows, 3, 4)).astype(np.float32)
    boxes[::2, 2] = np.nan
    return {"x": x, "targets.boxes": boxes, "image_size": np.full(rows, 64)}


def recipe(folder, metric, **more):
    model = {"path": str(folder / "m.onnx"), "calibration": str(folder / "samples.npz"), "metric": metric, **more}
    return msgspec.convert({"model": model}, Recipe)


def test_it_is_in_the_ledger_and_decides(tmp_path, metrics):
    np.savez(tmp_path / "samples.npz", **samples(detector(tmp_path / "m.onnx")))
    given = recipe(tmp_path, metrics("error"))
    given = msgspec.structs.replace(
        given, quantize=QuantizeConfig(precision="int8", repair="off", calibration="minmax")
    )
    checked = {}
    for name, drop in (("lenient", 0.5), ("strict", 0.0)):
        judged = msgspec.structs.replace(given, gate=GateConfig(max_metric_drop=drop))
        (target,) = check(judged, cache=tmp_path / "cache", devices=["none"])
        (checked[name],) = target.ledgers.values()
    ledger = checked["lenient"]
    assert (ledger.metric, ledger.limits.higher_is_better) == ("box error", False)
    reference, last = ledger.rows[0], ledger.rows[-1]
    assert 0.03 < reference.metric < last.metric
    assert last.loss.mean == pytest.approx(last.metric - reference.metric)
    assert ledger.constant is None
    assert ledger.questions[0].verdict == "pass"  # better than with the answers to other samples
    assert ledger.verdict in ("pass", "warn"), ledger.reasons
    strict = checked["strict"]
    assert (strict.verdict, strict.rows[-1].metric) == ("fail", last.metric)
    assert any("the metric is" in reason for reason in strict.reasons), strict.reasons


def test_texts_and_labels_that_are_no_classes_are_given_as_they_are(tmp_path, metrics, import_):
    path, x = graphs.mlp(tmp_path / "m.onnx"), graphs.normal(4)
    words = np.where(np.arange(12) % 2 == 0, "yes", "no")
    imported = import_(path, {"x": x, "target": words}, metric=load_metric(metrics("words")))
    facts = imported.exported.facts
    assert (facts.metric, facts.higher_is_better, facts.outputs["y"].name) == ("words", True, "regression")
    with np.load(tmp_path / "out" / "test.npz") as arrays:
        assert arrays["target"].dtype.kind == "U"
    for labels in (np.linspace(0, 80, 12), np.arange(12) * 7):  # years, and whole years
        imported = import_(path, {"x": x, "labels": labels}, metric=load_metric(metrics("ages")))
        assert imported.exported.facts.metric == "ages"
        with np.load(tmp_path / "out" / "test.npz") as arrays:
            assert "labels" not in arrays
            assert set(arrays["target"]).issubset(set(labels))


def test_labels_of_classes_stay_labels(tmp_path, metrics, import_):
    imported = import_(
        graphs.mlp(tmp_path / "m.onnx"),
        {"x": graphs.normal(4), "labels": np.arange(12) % 3},
        metric=load_metric(metrics("ages")),
    )
    assert (imported.exported.facts.metric, list(imported.exported.facts.classes)) == ("ages", ["y"])
    with np.load(tmp_path / "out" / "test.npz") as arrays:
        assert "labels" in arrays
        assert "target" not in arrays


WRONG = {
    "no file": ("elsewhere.py:error", "cannot be imported: elsewhere.py: no such file"),
    "no colon": ("own.py", "write it as path/to/file.py:name or package.module:name"),
    "no name": ("misspelt", "has no 'misspelt'"),
    "no function": ("number", "is an int, must be a function of outputs and targets"),
    "higher_is_better": ("odd", "its higher_is_better is 'no', must be True or False"),
    "raises": ("raises", r"metric .*own.py:raises: .*\(.*own.py:\d+\)"),
    "returns nothing": ("nothing", "returned None, must return a number; is its 'return' missing"),
    "returns a text": ("text", r"returned a str \('0.5'\), must return one number"),
    "returns many": ("many", r"returned a ndarray .*, must return one number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_metric_is_said_in_one_line(tmp_path, metrics, import_, name):
    reference, match = WRONG[name]
    reference = reference if ":" in reference or reference.endswith(".py") else metrics(reference)
    with pytest.raises(TaskError, match=match) as raised:
        import_(
            graphs.mlp(tmp_path / "m.onnx"),
            {"x": graphs.normal(4), "labels": np.arange(12) % 3},
            metric=load_metric(reference),
        )
    assert "\n" not in str(raised.value)


def test_samples_need_something_to_hold_the_outputs_against(tmp_path, metrics, import_):
    path, metric = graphs.mlp(tmp_path / "m.onnx"), load_metric(metrics("ages"))
    with pytest.raises(ModelError, match="nothing that the metric could hold the outputs against: no array 'labels'"):
        import_(path, {"x": graphs.normal(4)}, metric=metric)
    with pytest.raises(ModelError, match="every array needs the same number of samples"):
        import_(path, {"x": graphs.normal(4), "boxes": np.zeros(5)}, metric=metric)
    with pytest.raises(ModelError, match="'size' must be numbers or texts, a row a sample, but is int64"):
        import_(path, {"x": graphs.normal(4), "size": np.array(64)}, metric=metric)
    with pytest.raises(ModelError, match="its targets cannot be told apart by their names"):
        import_(path, {"x": graphs.normal(4), "a": np.zeros(12), "a.b": np.zeros(12)}, metric=metric)


def test_a_metric_that_is_no_number_of_the_float_network_warns(tmp_path, metrics):
    graphs.mlp(tmp_path / "m.onnx")
    np.savez(tmp_path / "samples.npz", x=graphs.normal(4), labels=np.arange(12) % 3)
    given = msgspec.structs.replace(recipe(tmp_path, metrics("is_nan")), quantize=QuantizeConfig(precision="float32"))
    (target,) = check(given, cache=tmp_path / "cache", devices=["none"])
    (ledger,) = target.ledgers.values()
    assert np.isnan(ledger.rows[0].metric)
    assert ledger.questions[0].verdict == "warn"


def test_a_changed_metric_is_measured_again(tmp_path, metrics):
    graphs.mlp(tmp_path / "m.onnx")
    np.savez(tmp_path / "samples.npz", x=graphs.normal(4), labels=np.arange(12) % 3)
    given = msgspec.structs.replace(recipe(tmp_path, metrics("ages")), quantize=QuantizeConfig(precision="float32"))
    values = []
    for text in (METRICS, METRICS.replace("return -float", "return -2 * float")):
        (tmp_path / "own.py").write_text(text, encoding="utf-8")
        (target,) = check(given, cache=tmp_path / "cache", devices=["none"])
        (ledger,) = target.ledgers.values()
        values.append(ledger.rows[0].metric)
    assert values[1] == pytest.approx(2 * values[0])
