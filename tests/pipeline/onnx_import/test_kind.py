"""What the output of an imported model is taken for, and what comes of it in the stages that follow."""

import graphs
import msgspec
import numpy as np
import pytest
from graphs import node, normal, tensor

from edgekd.config.recipe import OutputConfig, QuantizeConfig, Recipe
from edgekd.devices.targets import load_target
from edgekd.errors import ModelError
from edgekd.gram.gate import keep_ledger
from edgekd.gram.metric import LedgerMetrics
from edgekd.gram.output_kind import OutputKind
from edgekd.pipeline.build import prepare
from edgekd.pipeline.onnx_import.answers.kind import settle_kinds
from edgekd.pipeline.target.outputs import join_probe, run_on_host, write_references
from edgekd.pipeline.target.quantize import QUANTIZE
from edgekd.stages.progress import Silent
from edgekd.workflows.check import check, suggest_limits

X = {"x": normal(4)}
HEADS = {
    "logits": [node("Identity", ["scores"], ["y"])],
    "softmax": [node("Softmax", ["scores"], ["y"], axis=-1)],
    "sigmoid": [node("Sigmoid", ["scores"], ["y"])],
    "unit length": [node("LpNormalization", ["scores"], ["y"], axis=1)],
}


def model(path, head, width=3):
    nodes = [node("Gemm", ["x", "w", "b"], ["scores"], name="layer"), *HEADS[head]]
    inputs, outputs = [tensor("x", ["n", 4])], [tensor("y", ["n", width])]
    return graphs.write(path, nodes, inputs, outputs, graphs.weights(w=(4, width), b=(width,)))


def sequence(path, head):
    """An output of [n, 5, 3]: three scores at each of five steps."""
    nodes = [node("MatMul", ["x", "w"], ["scores"]), *HEADS[head]]
    inputs, outputs = [tensor("x", ["n", 5, 4])], [tensor("y", ["n", 5, 3])]
    return graphs.write(path, nodes, inputs, outputs, graphs.weights(w=(4, 3)))


GUESSED = {
    "labels": ("logits", {"labels": np.arange(12) % 3}, OutputKind("classes"), "since the samples have labels"),
    "no labels": ("logits", {}, OutputKind("regression"), "if it is the logits of classes, say --kind classes"),
    "softmax": ("softmax", {}, OutputKind("classes", True), "since it ends in Softmax over 3"),
    "softmax and labels": ("softmax", {"labels": np.arange(12) % 3}, OutputKind("classes", True), "have labels"),
    "sigmoid": ("sigmoid", {}, OutputKind("multilabel", True, 0.5), "since it ends in Sigmoid of 3 labels"),
    "unit length": ("unit length", {}, OutputKind("embedding"), "since it ends in a division of 3 numbers by their"),
}


@pytest.mark.parametrize("name", GUESSED)
def test_the_kind_is_guessed_and_said(tmp_path, import_, name):
    head, more, kind, said = GUESSED[name]
    imported = import_(model(tmp_path / "m.onnx", head), {**X, **more})
    facts = imported.exported.facts
    assert facts.outputs == {"y": kind}
    assert facts.classes == ({"y": ["0", "1", "2"]} if kind.name == "classes" else {})
    assert facts.metric == ("accuracy" if kind.name == "classes" else "metric")
    (note,) = [note for note in imported.notes if note.startswith("the output ")]
    assert note.startswith(f"the output [batch, 3] is taken for '{kind.name}'")
    assert said in note
    assert note.endswith("or kind in [model]")


@pytest.mark.parametrize(
    ("head", "kind", "reason"),
    [
        ("logits", OutputKind("regression"), "it is no vector"),
        ("softmax", OutputKind("sequence-classes", True), "it ends in Softmax over 3 at every step"),
    ],
    ids=["logits", "softmax"],
)
def test_a_map_is_told_by_its_values_and_its_labels_are_not_used(tmp_path, import_, head, kind, reason):
    imported = import_(sequence(tmp_path / "m.onnx", head), {"x": normal(5, 4), "labels": np.arange(12) % 3})
    assert imported.exported.facts.outputs == {"y": kind}
    notes = "\n".join(imported.notes)
    assert f"the output [batch, 5, 3] is taken for '{kind.name}', since {reason}" in notes
    assert f"the labels are not used: the output is '{kind.name}', and labels are for 'classes'" in notes
    for name in ("test", "calibration", "validation"):
        with np.load(tmp_path / "out" / f"{name}.npz") as arrays:
            assert "labels" not in arrays


ASKED = {
    "classes": ("logits", "classes", None, OutputKind("classes")),
    "probabilities": ("softmax", "classes", None, OutputKind("classes", True)),
    "labels' logits": ("logits", "multilabel", 0.3, OutputKind("multilabel", False, 0.3)),
    "labels": ("sigmoid", "multilabel", None, OutputKind("multilabel", True)),
    "regression": ("unit length", "regression", -1.5, OutputKind("regression", False, -1.5)),
    "embedding": ("logits", "embedding", None, OutputKind("embedding")),
}


@pytest.mark.parametrize("name", ASKED)
def test_the_kind_that_is_asked_for_is_taken_without_a_word(tmp_path, import_, name):
    head, kind, threshold, expected = ASKED[name]
    imported = import_(model(tmp_path / "m.onnx", head), X, kind=kind, threshold=threshold)
    assert imported.exported.facts.outputs == {"y": expected}
    assert not any(note.startswith("the output ") for note in imported.notes)


def test_labels_of_what_is_asked_to_be_a_regression_are_not_used(tmp_path, import_):
    samples = {**X, "labels": np.full(12, 7)}  # of no class, which then does not matter
    imported = import_(model(tmp_path / "m.onnx", "logits"), samples, kind="regression")
    assert "the labels are not used: the output is 'regression', and labels are for 'classes'" in imported.notes


def settled(outputs, **said):
    return settle_kinds({"y": OutputConfig(**said)}, {"y": outputs}, {}, None)


WRONG = {
    "classes of a map": ("classes", None, (6, 5, 3), r"'classes' needs an output \[batch, classes\], of two .* 5, 3\]"),
    "one class": ("classes", None, (6, 1), r"but it is \[batch, 1\]"),
    "embedding of a map": ("embedding", None, (6, 5, 3), r"'embedding' needs an output \[batch, width\]"),
    "threshold of classes": ("classes", 0.5, (6, 3), "threshold = 0.5 is for 'multilabel', 'regression' and 'custom'"),
    "threshold of an embedding": ("embedding", 0.5, (6, 3), "not for 'embedding'"),
    "threshold beyond probabilities": ("multilabel", 1.5, (6, 3), "threshold = 1.5 must lie between 0 and 1"),
    "threshold that is no number": ("regression", float("nan"), (6, 3), "threshold = nan must be a finite number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_kind_that_does_not_fit_is_refused(name):
    kind, threshold, shape, match = WRONG[name]
    with pytest.raises(ModelError, match=match):
        settled(np.random.default_rng(0).normal(size=shape), kind=kind, threshold=threshold)


def test_a_threshold_does_not_fit_what_was_guessed():
    outputs = np.full((6, 4), 0.25)
    with pytest.raises(ModelError, match="not for 'classes', for which it was taken"):
        settled(outputs, threshold=0.5)
    with pytest.raises(ModelError, match="'embedding' needs directions, but it is zero for every sample"):
        settled(np.zeros((6, 4)), kind="embedding")


def test_which_inputs_are_modalities(tmp_path, import_):
    """No masks, numbers of tokens, states or numbers that are one a sample."""
    nodes = [
        node("Gemm", ["image", "w"], ["seen"]),
        node("Gather", ["table", "tokens"], ["words"]),
        node("ReduceMean", ["words"], ["read"], axes=[1], keepdims=0),
        node("Mul", ["seen", "mask"], ["masked"]),
        node("Add", ["masked", "read"], ["both"]),
        node("Add", ["both", "state"], ["y"]),
        node("Tanh", ["y"], ["state_out"]),
    ]
    inputs = [
        tensor("image", ["n", 4]),
        tensor("tokens", ["n", 5], graphs.INT64),
        tensor("mask", ["n", 3]),
        tensor("state", ["n", 3]),
    ]
    path = graphs.write(
        tmp_path / "m.onnx", nodes, inputs, [tensor("y", ["n", 3]), tensor("state_out", ["n", 3])],
        graphs.weights(w=(4, 3), table=(9, 3)),
    )  # fmt: skip
    mask = (np.arange(36).reshape(12, 3) % 2).astype(np.float32)
    samples = {"image": normal(4), "tokens": np.ones((12, 5), np.int64), "mask": mask, "state": normal(3, seed=1)}
    found = import_(path, samples).exported.facts
    assert [spec["name"] for spec in found.inputs] == ["image", "tokens", "mask", "state"]
    assert found.modalities == ["image"]


def recipe(path, **model):
    return msgspec.convert(
        {"model": {"path": str(path / "m.onnx"), "calibration": str(path / "samples.npz"), **model}}, Recipe
    )


def test_a_build_takes_the_kind_of_its_recipe(tmp_path):
    model(tmp_path / "m.onnx", "logits")
    np.savez(tmp_path / "samples.npz", **X)
    kinds = []
    for settings in ({}, {"kind": "multilabel", "threshold": 0.25}):
        with prepare(
            recipe(tmp_path, **settings), [load_target("cpu")], tmp_path / "cache",
            devices=["none"], observer=Silent(), only=(QUANTIZE,),
        ) as prepared:  # fmt: skip
            kinds.append(prepared.contexts["cpu"].rules.kinds["y"])
    assert kinds == [OutputKind("regression"), OutputKind("multilabel", False, 0.25)]


def test_reference_samples_are_those_that_a_classifier_is_surest_of_and_of_others_the_first(tmp_path):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "s.npz", **{"ids": np.arange(40), "input.x": random.normal(size=(40, 2)).astype(np.float32)})
    logits = random.normal(size=(40, 3)).astype(np.float32)
    probe = join_probe({"logits": logits, "embedding.a": logits}, tmp_path / "s.npz")
    chosen = {}
    for kind in ("classes", "regression", "embedding", "multilabel"):
        write_references(tmp_path / "s.npz", probe, {"logits": OutputKind(kind)}, tmp_path / "r.npz")
        with np.load(tmp_path / "r.npz") as arrays:
            chosen[kind] = arrays["ids"].astype(int).tolist()
    assert chosen["regression"] == chosen["embedding"] == chosen["multilabel"] == list(range(16))
    assert chosen["classes"] != list(range(16))


def test_no_limits_are_suggested_by_flips_of_what_decides_nothing(tmp_path):
    model(tmp_path / "m.onnx", "unit length", width=8)
    np.savez(tmp_path / "samples.npz", **X)
    with pytest.raises(ModelError, match=r"float.onnx is 'embedding', which decides nothing whose flips would do"):
        suggest_limits(recipe(tmp_path), cache=tmp_path / "cache")
    alarm = suggest_limits(recipe(tmp_path, kind="classes"), cache=tmp_path / "cache")
    assert alarm.judged_by == "flips"


def regression(path, change=()):
    """Four numbers of a vector, through a hidden layer; ``change`` are nodes from ``exact`` to ``y``."""
    nodes = [
        node("Gemm", ["x", "w", "b"], ["hidden"]),
        node("Relu", ["hidden"], ["positive"]),
        node("Gemm", ["positive", "v"], ["exact" if change else "y"]),
        *change,
    ]
    random = np.random.default_rng(5)
    turned = np.linalg.qr(random.normal(size=(4, 4)))[0]
    constants = {
        "half": 0.5,
        "once": np.array([1, 1, 0.5, 1]),
        "turned": turned,
        "edge": 1.64,
        "one": np.array([1.0]),
    }
    stored = [
        *graphs.weights(w=(4, 16), b=(16,), v=(16, 4)),
        *(graphs.numpy_helper.from_array(np.asarray(x, np.float32), name) for name, x in constants.items()),
        *graphs.integers(start=[0], end=[1], axes=[1]),
    ]
    return graphs.write(path, nodes, [tensor("x", ["n", 4])], [tensor("y", ["n", 4])], stored)


#: Each keeps every cosine between samples, or nearly so, or concerns one output of several or one sample of twenty.
BREAKS = {
    "half": [node("Mul", ["exact", "half"], ["y"])],
    "negated": [node("Neg", ["exact"], ["y"])],
    "rotated": [node("MatMul", ["exact", "turned"], ["y"])],
    "one output of four": [node("Mul", ["exact", "once"], ["y"])],
    "one sample in twenty": [
        node("Slice", ["x", "start", "end", "axes"], ["first"]),
        node("Greater", ["first", "edge"], ["rare"]),
        node("Neg", ["exact"], ["wrong"]),
        node("Where", ["rare", "wrong", "exact"], ["y"]),
    ],
}


@pytest.fixture
def imported_regression(tmp_path, import_):
    """Import the regression with 1,200 samples, of which 600 are to test; return its folder."""
    x = np.random.default_rng(6).normal(size=(1200, 4)).astype(np.float32)
    assert 0.04 < (x[:, 0] > 1.64).mean() < 0.06
    facts = import_(regression(tmp_path / "m.onnx"), {"x": x}).exported.facts
    assert facts.outputs == {"y": OutputKind("regression")}
    return tmp_path / "out"


def judged(folder, graph, rules):
    """Return the ledger of a graph beside the imported one, both run on the test samples."""
    samples = folder / "test.npz"
    exact = run_on_host(folder / "float.onnx", samples)
    changed = run_on_host(graph, samples)["y"]
    probes = {
        "float": join_probe(exact, samples),
        "quantized": join_probe({"y": changed, "embedding.y": changed}, samples),
    }
    return keep_ledger(probes, LedgerMetrics(dict.fromkeys(probes)), rules, None)


@pytest.mark.parametrize("name", BREAKS)
def test_a_regression_that_is_broken_does_not_pass(imported_regression, rules, tmp_path, name):
    ledger = judged(imported_regression, regression(tmp_path / "broken.onnx", BREAKS[name]), rules)
    assert ledger.verdict == "fail", ledger.rows[-1]


def test_a_regression_that_is_the_same_passes(imported_regression, rules, tmp_path):
    same = regression(tmp_path / "same.onnx", [node("Identity", ["exact"], ["y"])])
    assert judged(imported_regression, same, rules).verdict == "pass"


@pytest.fixture
def rules(tmp_path):
    """Return the rules of a build of the regression."""
    with prepare(
        recipe(tmp_path),
        [load_target("cpu")],
        tmp_path / "cache",
        devices=["none"],
        observer=Silent(),
        only=(QUANTIZE,),
    ) as prepared:
        return prepared.contexts["cpu"].rules


def test_a_regression_that_int8_spoils_does_not_pass(tmp_path):
    """One sample in calibration that is huge leaves hardly a level of INT8 to the others."""
    regression(tmp_path / "m.onnx")
    x = np.random.default_rng(6).normal(size=(400, 4)).astype(np.float32)
    np.savez(tmp_path / "test.npz", x=x[200:])
    verdicts = {}
    for name, scale in (("plain", 1), ("huge", 300)):
        np.savez(tmp_path / "samples.npz", x=np.concatenate([x[:200], scale * x[:200:20]]))
        given = recipe(tmp_path, test=str(tmp_path / "test.npz"))
        given = msgspec.structs.replace(given, quantize=QuantizeConfig(precision="int8", repair="off"))
        (checked,) = check(given, cache=tmp_path / "cache", devices=["none"])
        (ledger,) = checked.ledgers.values()
        assert ledger.kind == "regression"
        verdicts[name] = ledger.rows[-1].verdict, ledger.rows[-1].first.divergence.mean
    assert verdicts["plain"][1] < 0.01 < verdicts["huge"][1]
    assert verdicts["huge"][0] == "fail"
