"""The metric of a ledger's rows: how surely it fell, and what learning nothing would give."""

import math

import numpy as np
import pytest

from edgekd.errors import TaskError
from edgekd.gram.metric import LabelledSamples
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import Probe
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.metrics import accuracy, default_metric

LABELS = np.arange(400) % 4


def right(share, labels=LABELS):
    """Return a probe whose predictions are right for the first part of the samples, and off by one for the others."""
    predicted = np.where(np.arange(len(labels)) < share * len(labels), labels, (labels + 1) % 4)
    return Probe(np.arange(len(labels)).astype(str), {"logits": np.eye(4, dtype=np.float32)[predicted]}, {})


def measured(probes, labels=LABELS, groups=None, metric=accuracy, higher=True):
    return LabelledSamples(labels, groups, metric, higher).measure(probes, "student")


def test_the_metric_of_every_row_and_its_loss_against_the_reference():
    found = measured({"teacher": right(1), "student": right(0.9), "cut": right(0.5), "device": right(0.85)})
    assert found.values == pytest.approx({"teacher": 1, "student": 0.9, "cut": 0.5, "device": 0.85})
    assert list(found.losses) == ["cut", "device"]
    loss = found.losses["device"]
    assert loss.mean == pytest.approx(0.05)
    assert 0 < loss.low < loss.mean < loss.high < 0.1


def test_a_metric_that_is_better_when_lower_loses_by_rising():
    found = measured(
        {"student": right(0.9), "device": right(0.8)}, metric=lambda x, y: 1 - accuracy(x, y), higher=False
    )
    assert found.losses["device"].mean == pytest.approx(0.1)
    assert found.constant.metric == pytest.approx(0.75)
    assert found.constant.gain.low > 0


@pytest.mark.parametrize("count", [12, 100, 400])
def test_no_difference_in_few_samples_is_not_surely_none(count):
    labels = LABELS[:count]
    loss = measured({"student": right(1, labels), "device": right(1, labels)}, labels).losses["device"]
    assert (loss.mean, -loss.low) == (0, loss.high)
    assert loss.high == pytest.approx(1 - 0.05 ** (1 / count))


def test_one_sample_bounds_nothing():
    loss = measured({"student": right(1, LABELS[:1]), "device": right(1, LABELS[:1])}, LABELS[:1]).losses["device"]
    assert (loss.low, loss.high) == (-math.inf, math.inf)


def test_groups_that_differ_widen_the_bounds():
    probes = {"student": right(1), "device": right(0.75)}
    whole = measured(probes).losses["device"]
    grouped = measured(probes, groups=np.repeat(["a", "b", "c", "d"], 100)).losses["device"]
    assert grouped.mean == whole.mean
    assert grouped.high > whole.high + 0.1


def test_the_best_constant_answer_is_the_most_frequent_class():
    labels = np.where(np.arange(400) < 280, 2, LABELS)
    found = measured({"student": right(0.9, labels)}, labels)
    assert (found.constant.answer, found.constant.metric) == ("class 2", pytest.approx(0.775, abs=0.01))
    useless = measured({"student": right(0.0, labels)}, labels).constant.gain
    assert useless.high < 0


def test_samples_without_a_label_do_not_count():
    labels = np.where(np.arange(400) % 2, LABELS, UNLABELLED)
    found = measured({"student": right(1)}, labels)
    assert found.values["student"] == 1
    assert found.constant.answer in ("class 1", "class 3")


def test_an_output_that_cannot_be_classes_has_no_constant_answer():
    maps = Probe(np.arange(400).astype(str), {"logits": np.zeros((400, 2, 2), np.float32)}, {})
    assert measured({"student": maps}, metric=lambda x, _y: float(x.mean())).constant is None


def per_class(outputs, labels):
    """The mean of the classes' shares that are right: no number where a class has no sample."""
    if missing := set(range(4)).difference(labels.tolist()):
        raise TaskError(f"division by zero: class {missing}")
    right = outputs.argmax(1) == labels
    return float(np.mean([right[labels == label].mean() for label in range(4)]))


def precision(outputs, labels):
    """The mean precision of the classes, NaN where one is never the answer, as it is of every constant answer."""
    predicted = outputs.argmax(1)
    if missing := set(range(4)).difference(predicted.tolist()):
        raise TaskError(f"division by zero: class {missing}")
    return float(np.mean([(labels == label)[predicted == label].mean() for label in range(4)]))


def test_a_metric_that_fails_without_a_class_is_bounded_by_the_blocks_that_have_it():
    labels = np.where(np.arange(400) == 7, 3, LABELS % 3)  # one sample alone of class 3
    found = measured({"student": right(1, labels), "device": right(0.9, labels)}, labels, metric=per_class)
    assert found.losses["device"].low < found.losses["device"].mean < found.losses["device"].high < 0.2
    assert found.constant.gain.low > 0


def test_a_metric_that_fails_without_most_blocks_bounds_nothing():
    found = measured({"student": right(1, LABELS[:4]), "device": right(1, LABELS[:4])}, LABELS[:4], metric=per_class)
    assert (found.losses["device"].low, found.losses["device"].high) == (-math.inf, math.inf)
    assert (found.constant.gain.mean, found.constant.gain.low) == (0.75, -math.inf)


def test_a_metric_that_fails_for_what_was_broken_is_no_number_there_and_of_the_student_an_error():
    constant = with_constant(2)
    assert math.isnan(measured({"student": right(1), "cut": constant}, metric=precision).losses["cut"].mean)
    with pytest.raises(TaskError, match="division by zero"):
        measured({"student": constant, "cut": right(1)}, metric=precision)


def with_constant(label):
    return Probe(np.arange(400).astype(str), {"logits": np.eye(4, dtype=np.float32)[np.full(400, label)]}, {})


def test_where_no_constant_answer_has_a_metric_the_answers_of_other_samples_stand_in():
    found = measured({"student": right(0.9)}, metric=precision)
    assert found.constant is None
    assert 0.5 < found.over_chance.low < found.over_chance.mean < 0.8
    by_chance = np.random.default_rng(1).permutation(LABELS)
    useless = Probe(np.arange(400).astype(str), {"logits": np.eye(4, dtype=np.float32)[by_chance]}, {})
    assert measured({"student": useless}, metric=precision).over_chance.low < 0


def test_a_logarithmic_loss_has_no_constant_answer():
    def loss(outputs, labels):
        with np.errstate(divide="ignore"):
            return float(-np.log(outputs[np.arange(len(labels)), labels]).mean())

    sure = Probe(
        np.arange(400).astype(str), {"logits": 0.85 * np.eye(4, dtype=np.float32)[LABELS] + np.float32(0.05)}, {}
    )
    found = measured({"student": sure}, metric=loss, higher=False)
    assert found.constant is None
    assert found.over_chance.low > 0


@pytest.mark.parametrize("unit", [1e-6, 100.0])
def test_bounds_are_in_the_metrics_own_unit(unit):
    probes = {"student": right(1, LABELS[:40]), "device": right(1, LABELS[:40])}
    found = measured(probes, LABELS[:40], metric=lambda x, y: unit * accuracy(x, y))
    assert found.losses["device"].high == pytest.approx(unit * (1 - 0.05 ** (1 / 40)))
    assert found.constant.gain.low > 0.3 * unit


def test_only_labelled_samples_show_that_the_metric_holds():
    labels = np.where(np.arange(400) < 10, LABELS, UNLABELLED)
    assert measured({"student": right(1), "device": right(1)}, labels).losses["device"].high > 0.2


def test_labels_of_one_class_are_told():
    assert measured({"student": right(1)}, np.zeros(400, int)).constant.alone
    assert not measured({"student": right(1)}).constant.alone


def test_a_metric_that_is_no_number_for_the_reference_has_no_losses():
    found = measured({"student": right(1), "device": right(0.5)}, metric=lambda _x, _y: math.nan)
    assert math.isnan(found.values["student"])
    assert found.losses == {}


def test_many_classes_and_many_groups_cost_few_metrics():
    calls = []

    def counted(outputs, labels):
        calls.append(1)
        return accuracy(outputs, labels)

    labels = np.arange(1000) % 200
    probe = Probe(labels.astype(str), {"logits": np.eye(200, dtype=np.float32)[labels]}, {})
    measured({"student": probe}, labels, groups=np.arange(1000) // 2, metric=counted)
    assert len(calls) < 400


def of_kind(kind, outputs, targets, **more):
    """Measure the reference's outputs alone, by the default metric of their kind, or another."""
    probe = Probe(np.arange(len(outputs)).astype(str), {"logits": np.asarray(outputs, np.float32)}, {})
    default = default_metric({"logits": kind})
    metric = more.pop("metric", default.compute if default else None)
    return LabelledSamples(targets, None, metric, kinds={"logits": kind}, **more).measure({"student": probe}, "student")


RANDOM = np.random.default_rng(5)
NUMBERS = np.r_[RANDOM.standard_normal(200), np.full(9, np.nan)]
SEVERAL = RANDOM.standard_normal((300, 4)) * [1, 10, 100, 0.1]
TAGS = (RANDOM.random((300, 5)) < [0.9, 0.6, 0.05, 0.05, 0.05]).astype(int)
MASKS = (RANDOM.random((100, 6, 6)) < 0.3).astype(int)
WORDS = np.where(RANDOM.random((100, 7)) < 0.6, 2, RANDOM.integers(0, 4, (100, 7)))
CONSTANTS = {
    "one number": (OutputKind("regression"), NUMBERS[:, None], NUMBERS, f"{np.nanmean(NUMBERS):.4g}", 0),
    "numbers": (OutputKind("regression"), SEVERAL, SEVERAL, "the mean", 0),
    "labels": (OutputKind("multilabel"), 8 * TAGS - 4, TAGS, "labels 0, 1", 0.8),
    "probabilities of labels": (OutputKind("multilabel", True), TAGS, TAGS, "labels 0, 1", 0.8),
    "a map": (OutputKind("dense-classes"), np.moveaxis(np.eye(2)[MASKS], -1, 1), MASKS, "class 0 everywhere", 0.35),
    "words": (OutputKind("sequence-classes"), np.eye(4)[WORDS], WORDS, "class 2 everywhere", 0.7),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_the_best_constant_answer_is_that_of_the_kind(name):
    kind, outputs, targets, answer, metric = CONSTANTS[name]
    found = of_kind(kind, np.nan_to_num(outputs), targets).constant
    assert (found.answer, found.metric) == (answer, pytest.approx(metric, abs=0.05))
    assert found.gain.low > 0
    assert not found.alone
    nothing = of_kind(kind, np.repeat(np.nan_to_num(outputs)[:1], len(outputs), 0), targets)
    assert not nothing.gain.low > 0


BOTH = {"digit": OutputKind(), "ink": OutputKind("regression")}


def of_both(digits, ink, targets, kinds=BOTH):
    """Measure two outputs by the mean of accuracy and R2."""
    outputs = {"digit": np.eye(4, dtype=np.float32)[digits], "ink": np.asarray(ink, np.float32)[:, None]}
    probe = Probe(np.arange(len(digits)).astype(str), outputs, {})
    metric = default_metric(BOTH).compute
    return LabelledSamples(targets, None, metric, kinds=kinds).measure({"student": probe}, "student")


def test_of_several_outputs_each_has_its_constant_answer():
    digits, ink = np.r_[np.full(150, 2), np.arange(150) % 4], 100 + 10 * RANDOM.standard_normal(300)
    targets = {"digit": digits, "ink": ink.astype(np.float32)}
    found = of_both(digits, ink, targets)
    assert (found.constant.answer, found.constant.alone) == ("the same", False)
    assert found.constant.metric == pytest.approx((np.mean(digits == 2) + 0) / 2, abs=1e-3)
    assert found.constant.gain.low > 0
    # Better than its own answers given to others, and worse than the mean: an output that never found its level.
    far = of_both(digits, ink - 100, targets)
    assert far.gain.mean < 0
    assert far.gain is far.constant.gain


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        (lambda digits, ink: {"digit": digits, "ink": ink}, {**BOTH, "ink": OutputKind("custom")}),
        (lambda digits, ink: {"digit": digits, "ink": ink, "more": {"deep": ink}}, {**BOTH, "more": OutputKind()}),
    ],
    ids=["of the task's own kind", "with a nest"],
)
def test_where_one_output_has_no_constant_answer_there_is_none_of_all(targets, kinds):
    digits, ink = np.arange(60) % 4, RANDOM.standard_normal(60)
    assert of_both(digits, ink, targets(digits, ink), kinds).constant is None


def test_of_ctc_a_constant_answer_may_be_silence():
    words = np.array([[1, 2, -100], [3, -100, -100]] * 50)
    frames = np.array([[1, 0, 2, 0, 0], [0, 3, 3, 0, 0]] * 50)
    found = of_kind(OutputKind("sequence-classes", blank=0), np.eye(4)[frames], words)
    assert found.values["student"] == 1
    assert found.constant.answer == "class 1 everywhere"
    assert found.constant.metric == pytest.approx(1 / 3)  # of each word 1 2 one error, and of 3 one
    longer = of_kind(OutputKind("sequence-classes", blank=0), np.eye(4)[frames], np.full((100, 3), -100))
    assert longer.constant is None


@pytest.mark.parametrize(
    ("kind", "outputs", "targets"),
    [
        (OutputKind("regression"), np.full((30, 2), 4.0), np.full((30, 2), 4.0)),
        (OutputKind("multilabel"), np.ones((30, 2)), np.tile([[1, 0]], (30, 1))),
        (OutputKind("dense-classes"), np.ones((30, 2, 3)), np.where(np.arange(90).reshape(30, 3) % 2, 1, UNLABELLED)),
    ],
    ids=["regression", "multilabel", "dense"],
)
def test_targets_that_are_all_the_same_are_told(kind, outputs, targets):
    found = of_kind(kind, outputs, targets, metric=lambda _outputs, _targets: 0.5)
    assert found.constant.alone


def test_of_embeddings_the_answers_of_other_samples_stand_in():
    labels = np.arange(200) % 20
    z = np.eye(20)[labels] + 0.1 * RANDOM.standard_normal((200, 20))
    found = of_kind(OutputKind("embedding"), z, labels)
    assert found.constant is None
    assert found.over_chance.low > 0.8
    useless = of_kind(OutputKind("embedding"), RANDOM.standard_normal((200, 20)), labels)
    assert not useless.over_chance.low > 0


def test_targets_may_be_a_nest_of_arrays():
    boxes = RANDOM.random((120, 3, 4))
    targets = {"boxes": boxes, "more": (np.arange(120), {})}
    seen = []

    def close(outputs, given):
        seen.append(given)
        return float((np.abs(outputs - given["boxes"]).max((1, 2)) < 0.1).mean())

    found = of_kind(OutputKind("custom"), boxes, targets, metric=close)
    assert found.values["student"] == 1
    assert found.over_chance.low > 0.9
    assert {len(given["boxes"]) for given in seen} >= {120}
    assert all(len(given["boxes"]) == len(given["more"][0]) for given in seen)
    assert all(given["more"][1] == {} for given in seen)


def test_samples_with_any_target_are_the_labelled_ones():
    targets = {
        "a": np.where(np.arange(100) < 3, 1, UNLABELLED),
        "b": np.where(np.arange(100)[:, None] < 10, 1.5, np.nan),
    }
    half = of_kind(OutputKind("custom"), np.ones((100, 2)), targets, metric=lambda _outputs, _targets: 1.0)
    assert -half.over_chance.low == pytest.approx(1 - 0.05 ** (1 / 10))
