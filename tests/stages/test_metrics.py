"""The default metric of each kind of output, held against scikit-learn's."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from edgekd.errors import TaskError
from edgekd.gram.metric import SubsetMetric
from edgekd.gram.output_kind import OutputKind
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.metrics import accuracy, default_metric

RANDOM = np.random.default_rng(3)


def metric_of(name, **more):
    return default_metric({"y": OutputKind(name, **more)}).compute


r2, mean_iou, token_accuracy = metric_of("regression"), metric_of("dense-classes"), metric_of("sequence-classes")
recall_at_1 = metric_of("embedding")


def some_unlabelled(targets, share=0.2):
    return np.where(RANDOM.random(targets.shape) < share, UNLABELLED if targets.dtype.kind == "i" else np.nan, targets)


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("probabilities", [False, True])
def test_f1_is_scikit_learns(threshold, probabilities):
    scores, targets = RANDOM.standard_normal((50, 6)), some_unlabelled(RANDOM.integers(0, 2, (50, 6)))
    odds = 1 / (1 + np.exp(-scores))
    f1 = metric_of("multilabel", probabilities=probabilities, threshold=threshold)
    known = targets != UNLABELLED
    expected = sk.f1_score(targets[known], (odds >= (threshold or 0.5))[known])
    assert f1(odds if probabilities else scores, targets) == pytest.approx(expected)
    floats = np.where(known, targets, np.nan)
    assert f1(odds if probabilities else scores, floats) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(60,), (60, 1), (60, 4), (60, 2, 3)])
def test_r2_is_scikit_learns(shape):
    targets = RANDOM.standard_normal(shape)
    outputs = targets + 0.5 * RANDOM.standard_normal(shape)
    assert r2(outputs, targets) == pytest.approx(sk.r2_score(targets.reshape(60, -1), outputs.reshape(60, -1)))
    assert r2(outputs[:, None], targets) == pytest.approx(r2(outputs, targets))


def test_r2_of_each_element_is_that_of_its_known_targets():
    targets = some_unlabelled(RANDOM.standard_normal((60, 3)))
    outputs = np.nan_to_num(targets) + 0.3 * RANDOM.standard_normal((60, 3))
    known = ~np.isnan(targets)
    each = [sk.r2_score(targets[known[:, i], i], outputs[known[:, i], i]) for i in range(3)]
    assert r2(outputs, targets) == pytest.approx(np.mean(each))
    targets[:, 1] = 4  # always the same: nothing to explain
    assert r2(outputs, targets) == pytest.approx((each[0] + each[2]) / 2)


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 9)])
def test_mean_iou_is_scikit_learns(shape):
    targets = some_unlabelled(RANDOM.integers(0, 4, shape))
    outputs = RANDOM.standard_normal((5, 6, *shape[1:]))
    outputs[:, 5] = -9  # a class that is nowhere
    known = targets != UNLABELLED
    expected = sk.jaccard_score(targets[known], outputs.argmax(1)[known], average="macro")
    assert mean_iou(outputs, targets) == pytest.approx(expected)
    assert mean_iou(outputs, targets[:, None]) == pytest.approx(expected)


def test_token_accuracy_is_scikit_learns():
    targets, outputs = some_unlabelled(RANDOM.integers(0, 4, (8, 9))), RANDOM.standard_normal((8, 9, 4))
    known = targets != UNLABELLED
    expected = sk.accuracy_score(targets[known], outputs.argmax(-1)[known])
    assert token_accuracy(outputs, targets) == pytest.approx(expected)
    classes, labels = RANDOM.standard_normal((40, 3)), some_unlabelled(RANDOM.integers(0, 3, 40))
    known = labels != UNLABELLED
    assert accuracy(classes, labels) == pytest.approx(sk.accuracy_score(labels[known], classes.argmax(1)[known]))


def test_the_token_error_rate_counts_the_edits_of_all_tokens():
    frames = np.array([[1, 1, 0, 1, 2, 0], [0, 3, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    outputs = np.eye(4)[frames]
    targets = np.array([[1, 1, 2, -100], [3, 1, -100, -100], [-100] * 4])
    assert metric_of("sequence-classes", blank=0)(outputs, targets) == pytest.approx(1 - 1 / 5)


@pytest.mark.parametrize("rows", [7, 512])
def test_recall_is_that_of_scikit_learns_nearest_neighbours(rows, monkeypatch):
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr("edgekd.stages.metrics._ROWS", rows)
    z, labels = RANDOM.standard_normal((90, 5)), RANDOM.integers(0, 30, 90)
    unknown = RANDOM.random(90) < 0.1
    kept, own = z[~unknown], labels[~unknown]
    nearest = NearestNeighbors(n_neighbors=2, metric="cosine").fit(kept).kneighbors(kept)[1][:, 1]
    has_others = np.bincount(own, minlength=30)[own] > 1
    expected = (own[nearest] == own)[has_others].mean()
    assert recall_at_1(z, np.where(unknown, UNLABELLED, labels)) == pytest.approx(expected)


KINDS = {
    "classes": (OutputKind(), (6, 3), (6,), "accuracy"),
    "multilabel": (OutputKind("multilabel"), (6, 3), (6, 3), "F1"),
    "regression": (OutputKind("regression"), (6, 3), (6, 3), "R2"),
    "dense": (OutputKind("dense-classes"), (6, 3, 4, 4), (6, 4, 4), "mean IoU"),
    "tokens": (OutputKind("sequence-classes"), (6, 5, 3), (6, 5), "token accuracy"),
    "ctc": (OutputKind("sequence-classes", blank=0), (6, 5, 3), (6, 2), "1 - token error rate"),
    "embedding": (OutputKind("embedding"), (6, 4), (6,), "recall@1"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_metric_of_nothing_that_is_labelled_is_no_number(name):
    kind, shape, target_shape, called = KINDS[name]
    metric = default_metric({"y": kind})
    assert (metric.name, metric.higher_is_better) == (called, True)
    empty = np.nan if name == "regression" else UNLABELLED
    assert math.isnan(metric.compute(RANDOM.standard_normal(shape), np.full(target_shape, empty)))


@pytest.mark.parametrize("name", ["multilabel", "regression", "dense", "tokens", "embedding", "ctc"])
def test_targets_of_another_shape_are_refused(name):
    kind, shape, target_shape, _ = KINDS[name]
    with pytest.raises(TaskError, match="the targets are of shape"):
        default_metric({"y": kind}).compute(np.zeros(shape), np.zeros((*target_shape, 2), int))


@pytest.mark.parametrize("name", KINDS)
def test_of_a_subset_it_is_that_of_its_samples_alone(name, monkeypatch):
    monkeypatch.setattr("edgekd.stages.metrics._NEAR", 2)
    kind, shape, target_shape, _ = KINDS[name]
    outputs, targets = RANDOM.standard_normal((60, *shape[1:])), RANDOM.integers(0, 2, (60, *target_shape[1:]))
    metric = default_metric({"y": kind}).compute
    assert isinstance(metric, SubsetMetric)
    subsets = metric.subsets(outputs, targets)
    for _ in range(20):
        kept = RANDOM.random(60) < 0.3
        assert subsets(kept) == pytest.approx(metric(outputs[kept], targets[kept]))
    both = default_metric({"a": kind, "b": OutputKind()}).compute
    labels = RANDOM.integers(0, 3, 60)
    given = {"a": outputs, "b": np.eye(3)[labels]}, {"a": targets, "b": labels}
    assert both.subsets(*given)(np.ones(60, bool)) == pytest.approx((metric(outputs, targets) + 1) / 2)


def test_of_several_outputs_it_is_their_weighted_mean():
    logits, labels = np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 1])
    numbers, values = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([1.0, 2.0, 3.0, 4.0])
    kinds = {"a": OutputKind(), "b": OutputKind("regression")}
    outputs, targets = {"a": logits, "b": numbers}, {"a": labels, "b": values}
    metric = default_metric(kinds)
    assert metric.name == "mean of accuracy and R2"
    assert metric.compute(outputs, targets) == pytest.approx((0.75 + 1) / 2)
    assert default_metric(kinds, {"a": 3}).compute(outputs, targets) == pytest.approx((3 * 0.75 + 1) / 4)
    assert default_metric({"a": OutputKind(), "b": OutputKind()}).name == "mean accuracy"


def test_what_only_the_task_can_read_has_no_default():
    assert default_metric({"boxes": OutputKind("custom")}) is None
    assert default_metric({"classes": OutputKind(), "boxes": OutputKind("custom")}) is None
