"""The drift and the gate, of arrays that came from anywhere."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import environment

import edgekd
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe

RANDOM = np.random.RandomState(0)
COUNT = 120
Z, W = RANDOM.randn(2, COUNT, 8).astype(np.float32)
LOGITS = (3 * RANDOM.randn(COUNT, 5)).astype(np.float32)
LABELS = LOGITS.argmax(1)
NEAR, FAR = (LOGITS + scale * RANDOM.randn(COUNT, 5).astype(np.float32) for scale in (0.01, 3))
OTHER = W + np.float32(0.2) * RANDOM.randn(COUNT, 8).astype(np.float32)
IDS = np.arange(COUNT).astype(str)


@pytest.mark.parametrize("groups", [None, np.arange(COUNT) // 10], ids=["independent", "grouped"])
def test_drift_is_that_of_the_ledger(groups):
    found = edgekd.gram_drift({"a": Z, "b": W}, {"a": Z, "b": OTHER}, groups)
    names = None if groups is None else groups.astype(str)
    probes = [Probe(IDS, {}, {"a": Z, "b": b}) for b in (W, OTHER)]
    assert found == measure_drift(*probes, names, Bootstrap())
    assert found.worst_pair == "a-b"
    assert 0 < found.mean < found.bound


def test_drift_of_equal_embeddings_is_nothing_and_of_turned_ones_within_too():
    turned = Z @ np.linalg.qr(RANDOM.randn(8, 8))[0]
    assert edgekd.gram_drift(Z, turned).mean < 1e-6
    assert edgekd.gram_drift({"a": Z, "b": W}, {"b": W, "a": Z}).mean == 0
    assert edgekd.gram_drift(Z, W).mean > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_type_with_a_gradient_are_taken(dtype):
    ours, theirs = (torch.tensor(x).to(dtype).requires_grad_() for x in (Z, W))
    expected = edgekd.gram_drift(ours.detach().double().numpy(), theirs.detach().double().numpy())
    assert edgekd.gram_drift(ours, theirs).mean == pytest.approx(expected.mean, rel=1e-6)


def test_a_network_that_answers_the_same_passes_and_one_that_does_not_fails():
    near = edgekd.judge(NEAR, LOGITS, labels=LABELS, embeddings=(Z, Z))
    assert (near.verdict, near.released, near.reasons) == ("pass", True, ())
    assert near.drift.mean == 0
    assert (near.metric, near.reference_metric) == (1.0, 1.0)
    far = edgekd.judge(FAR, LOGITS, labels=LABELS, embeddings=(Z, W))
    assert (far.verdict, far.released) == ("fail", False)
    assert far.reasons[0].startswith("the metric is ")
    assert [answered.verdict for answered in far.questions] == ["pass", "fail", "fail"]


def test_without_labels_and_embeddings_the_outputs_alone_decide():
    for outputs, verdict in ((NEAR, "pass"), (FAR, "fail")):
        judged = edgekd.judge(outputs, torch.tensor(LOGITS))
        assert (judged.verdict, judged.drift, judged.metric) == (verdict, None, None)
        assert judged.questions[2].verdict is None


def test_a_structure_that_broke_decides_where_limits_are_strict():
    judged = [edgekd.judge(NEAR, LOGITS, embeddings=(Z, W), limits=limits) for limits in ({}, {"structure": "strict"})]
    assert [one.verdict for one in judged] == ["warn", "fail"]
    assert judged[1].reasons[0].startswith("Gram drift ")


def test_probabilities_are_told_from_logits():
    def softmax(x):
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    divergences = [
        edgekd.judge(ours, theirs).answers["logits"].divergence.mean
        for ours, theirs in ((NEAR, LOGITS), (softmax(NEAR), softmax(LOGITS)))
    ]
    assert divergences[1] == pytest.approx(divergences[0], rel=1e-3)


def test_several_outputs_each_of_its_kind():
    boxes = RANDOM.randn(COUNT, 4).astype(np.float32)
    kinds = {"class": "classes", "box": edgekd.OutputKind("regression")}
    reference = {"class": LOGITS, "box": boxes}
    labels = {"class": LABELS, "box": boxes}
    same = edgekd.judge({"class": NEAR, "box": boxes}, reference, labels=labels, kind=kinds)
    assert same.verdict == "pass"
    broken = edgekd.judge({"class": NEAR, "box": boxes[::-1]}, reference, kind=kinds)
    assert broken.verdict == "fail"
    assert broken.reasons[0].startswith("box")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Z, Z[:7]), "embeddings 'embedding' are of 120 samples where others are of 7"),
        ((Z, {"a": Z}), r"embeddings are \['embedding'\], the reference's \['a'\]"),
        ((Z[:, 0], Z), "embeddings 'embedding' have shape"),
        (("x", "y"), "must be numbers with a row for each sample"),
        (([], []), "embeddings are of no samples"),
        (([[1.0], [2.0, 3.0]], Z), "embeddings: cannot be made an array"),
        ((Z, Z, [1]), "groups have shape"),
    ],
)
def test_arrays_without_a_drift_are_refused_in_one_line(arguments, message):
    with pytest.raises(edgekd.TaskError, match=message):
        edgekd.gram_drift(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": LOGITS[:, :4]}, r"outputs 'logits' are \(120, 4\), the reference's \(120, 5\)"),
        ({"kind": "class"}, "there is no kind 'class' of output; did you mean 'classes'"),
        ({"kind": {"box": "classes"}}, "kind names the outputs"),
        ({"kind": "custom", "labels": LABELS}, "'custom' has no metric that reads them"),
        ({"limits": {"max_flip": 1}}, "limits: the top level has no key 'max_flip'; did you mean 'max_flips'"),
        ({"limits": {"max_flips": 3}}, "limits: max_flips: expected a number from 0 to 1"),
        ({"labels": 0 * LABELS + 9}, "labels hold 9, but the outputs are of 5 classes"),
        ({"labels": LABELS / 2}, "must be class indices of shape"),
        ({"labels": {"x": LABELS}}, "labels are of"),
        ({"labels": LABELS[:3]}, "with a row for each of the 120 samples"),
        ({"embeddings": Z}, "embeddings must be a pair"),
        ({"embeddings": (Z[:5], Z[:5])}, "embeddings 'embedding' are of 5 samples, the outputs of 120"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(change, message):
    with pytest.raises((edgekd.TaskError, edgekd.RecipeError), match=message):
        edgekd.judge(**{"outputs": LOGITS, "reference_outputs": LOGITS, **change})


def test_no_torch_is_needed():
    code = (
        "import sys, numpy as np, edgekd\n"
        "z = np.random.RandomState(0).randn(30, 4)\n"
        "edgekd.gram_drift(z, z), edgekd.judge(z, z, embeddings=(z, z))\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(), cwd="/")
    assert process.stdout.split() == ["False"]
