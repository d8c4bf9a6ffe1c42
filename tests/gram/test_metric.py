"""The metric of a ledger's rows: how surely it fell, and what learning nothing would give."""

import math

import numpy as np
import pytest

from edgekd.gram.metric import LabelledSamples
from edgekd.gram.probe import Probe
from edgekd.stages.labels import UNLABELLED, accuracy

LABELS = np.arange(400) % 4


def right(share, labels=LABELS):
    """Return a probe whose predictions are right for the first part of the samples, and off by one for the others."""
    predicted = np.where(np.arange(len(labels)) < share * len(labels), labels, (labels + 1) % 4)
    return Probe(np.arange(len(labels)).astype(str), np.eye(4, dtype=np.float32)[predicted], {})


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
    assert (found.constant.label, found.constant.metric) == (2, pytest.approx(0.775, abs=0.01))
    useless = measured({"student": right(0.0, labels)}, labels).constant.gain
    assert useless.high < 0


def test_samples_without_a_label_do_not_count():
    labels = np.where(np.arange(400) % 2, LABELS, UNLABELLED)
    found = measured({"student": right(1)}, labels)
    assert found.values["student"] == 1
    assert found.constant.label in (1, 3)


def test_a_network_that_is_no_classifier_has_no_constant_answer():
    maps = Probe(np.arange(400).astype(str), np.zeros((400, 2, 2), np.float32), {})
    assert measured({"student": maps}, metric=lambda x, _y: float(x.mean())).constant is None
