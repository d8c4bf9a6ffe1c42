"""Every output of every sample beside the reference's: what breaks an output shows, whatever its kind."""

import math

import numpy as np
import pytest

from edgekd.gram.answers import changed_answers, compare_answers, sample_divergences, sample_errors
from edgekd.gram.intervals import Bootstrap, binomial_upper, mean_needs, share_needs
from edgekd.gram.measures.guess import guess_kind
from edgekd.gram.output_kind import MAX_DIVERGENCE, OutputKind
from edgekd.gram.probe import Probe

RANDOM = np.random.default_rng(4)
SCORES = (4 * RANDOM.standard_normal((300, 8))).astype(np.float32)
UNIT = (SCORES / np.linalg.norm(SCORES, axis=1, keepdims=True)).astype(np.float32)
OUTPUTS = {
    "classes": (OutputKind("classes"), SCORES),
    "probabilities": (OutputKind("classes", True), (np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True))),
    "multilabel": (OutputKind("multilabel"), SCORES),
    "regression": (OutputKind("regression", threshold=0.5), SCORES * [1, 1e3, 1, 1, 1, 1, 1, 1e-3]),
    "map": (OutputKind("regression"), SCORES.reshape(300, 2, 4)),
    "embedding": (OutputKind("embedding"), UNIT),
}
ROTATION = np.linalg.qr(RANDOM.standard_normal((8, 8)))[0]


def probe_of(outputs: np.ndarray) -> Probe:
    return Probe(np.arange(len(outputs)).astype(str), {"logits": outputs}, {})


def compared(name: str, outputs: np.ndarray, groups=None):
    kind, reference = OUTPUTS[name]
    return compare_answers(probe_of(outputs), probe_of(reference), "logits", kind, groups, Bootstrap(resamples=200))


def negated_in_one_of_twenty(outputs: np.ndarray) -> np.ndarray:
    changed = outputs.copy()
    changed[::20] *= -1
    return changed


def one_output_negated(outputs: np.ndarray) -> np.ndarray:
    changed = outputs.reshape(len(outputs), -1).copy()
    changed[:, 3] *= -1
    return changed.reshape(outputs.shape)


def rotated(outputs: np.ndarray) -> np.ndarray:
    return (outputs.reshape(len(outputs), -1) @ ROTATION).reshape(outputs.shape)


BREAKS = {
    "halved": lambda outputs: outputs * 0.5,
    "negated": lambda outputs: -outputs,
    "rotated": rotated,
    "one output of several": one_output_negated,
    "one sample in twenty": negated_in_one_of_twenty,
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_same_outputs_differ_in_nothing(name):
    answers = compared(name, OUTPUTS[name][1])
    assert (answers.error.mean, answers.largest_error, answers.divergence.high) == (0, 0, pytest.approx(0, abs=1e-12))
    assert answers.changed is None or answers.changed.mean == 0
    assert (answers.samples, answers.units) == (300, 300)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("kind_of_break", BREAKS)
def test_a_break_shows_in_the_error_and_in_the_kinds_own_measure(name, kind_of_break):
    outputs = OUTPUTS[name][1]
    answers = compared(name, BREAKS[kind_of_break](outputs))
    assert answers.error.low > 0.003  # of "regression" one output of another unit makes up most of the length
    assert answers.largest_error > 0
    if (name, kind_of_break) not in {
        ("embedding", "halved"),
        ("probabilities", "halved"),
    }:  # a scale that cannot matter
        assert answers.divergence.low > MAX_DIVERGENCE[answers.kind]


def test_the_figures_of_a_small_case_are_those_by_hand():
    reference = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))
    changed = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32))
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert sample_divergences(changed, reference, OutputKind()) == pytest.approx([kl, 0], abs=1e-6)
    assert sample_divergences(np.exp(changed), np.exp(reference), OutputKind("classes", True)) == pytest.approx(
        [kl, 0], abs=1e-6
    )
    values = np.array([[0.0], [2.0], [4.0]])
    assert sample_divergences(values + 1, values, OutputKind("regression")) == pytest.approx(
        [3 / 8] * 3
    )  # variance 8/3
    assert changed_answers(values + 1, values, OutputKind("regression", threshold=2.5)).tolist() == [0, 1, 0]
    assert changed_answers(values, values, OutputKind("regression")) is None


def test_probabilities_of_labels_far_from_half_do_not_overflow():
    far = np.array([[1e4, -1e4]])
    assert sample_divergences(far, far, OutputKind("multilabel")).tolist() == [0]
    assert np.isfinite(sample_divergences(-far, far, OutputKind("multilabel"))).all()


@pytest.mark.parametrize("name", OUTPUTS)
def test_errors_in_memory_are_those_of_the_comparison(name):
    changed, reference = rotated(OUTPUTS[name][1]), OUTPUTS[name][1]
    assert sample_errors(changed, reference).mean() == pytest.approx(compared(name, changed).error.mean)
    nothing = np.zeros((2, 3))
    assert sample_errors(nothing, nothing).tolist() == [0, 0]


def test_outputs_near_zero_are_compared_with_the_others_length():
    reference = np.array([[3.0, 4.0], [0.0, 0.0], [1e-9, 0.0]])
    noise = np.array([[0, 0], [0, 1e-9], [0, 0]])
    answers = compare_answers(
        probe_of(reference + noise), probe_of(reference), "logits", OutputKind("regression"), None, Bootstrap()
    )
    assert answers.error.mean < 1e-8


def test_a_number_that_is_none_is_told():
    spoilt = SCORES.copy()
    spoilt[7, 2] = np.nan
    answers = compared("regression", spoilt)
    assert math.isnan(answers.error.mean)
    assert math.isnan(answers.largest_error)
    assert math.isnan(answers.divergence.high)


def test_the_worst_element_is_named_whatever_its_unit():
    changed = OUTPUTS["regression"][1].copy()
    changed[:, 7] *= 1.5  # a thousandth of the others
    answers = compared("regression", changed)
    assert answers.worst_element == 7
    assert answers.worst_divergence == pytest.approx(0.25, rel=0.1)


def test_of_grouped_samples_groups_are_the_units():
    changed = SCORES.copy()
    changed[:100] = changed[:100, ::-1]
    grouped = compared("classes", changed, np.repeat(["a", "b", "c"], 100))
    alone = compared("classes", changed)
    assert (grouped.units, alone.units) == (3, 300)
    assert grouped.divergence.high > alone.divergence.high
    assert grouped.changed.high > alone.changed.high


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(300, 8\) and \(300, 7\)"):
        compare_answers(probe_of(SCORES), probe_of(SCORES[:, :7]), "logits", OutputKind(), None, Bootstrap())


def test_none_of_few_changed_says_little():
    changed = compare_answers(
        probe_of(SCORES[:20]), probe_of(SCORES[:20]), "logits", OutputKind(), None, Bootstrap()
    ).changed
    assert changed.mean == 0
    assert changed.high == pytest.approx(1 - 0.05 ** (1 / 20))


@pytest.mark.parametrize(
    ("outputs", "labelled", "expected"),
    [
        (SCORES, True, OutputKind("classes")),
        (SCORES, False, OutputKind("regression")),
        (OUTPUTS["probabilities"][1], False, OutputKind("classes", True)),
        (OUTPUTS["probabilities"][1][:, :5], False, OutputKind("multilabel", True, 0.5)),
        (OUTPUTS["probabilities"][1][:, :1], False, OutputKind("multilabel", True, 0.5)),
        (UNIT, False, OutputKind("embedding")),
        (SCORES.reshape(300, 2, 4), True, OutputKind("regression")),
        (np.zeros((9, 1)), False, OutputKind("regression")),
    ],
)
def test_the_kind_of_an_output_is_guessed_from_its_values(outputs, labelled, expected):
    assert guess_kind(outputs, labelled) == expected


def test_binomial_bounds_are_exact():
    assert binomial_upper(0, 130, 0.95) == pytest.approx(1 - 0.05 ** (1 / 130))
    assert binomial_upper(3, 130, 0.95) == pytest.approx(0.0584, abs=2e-4)
    assert binomial_upper(5, 5, 0.95) == 1
    assert binomial_upper(40_000, 100_000, 0.95) == pytest.approx(0.40255, abs=1e-4)


def test_how_many_samples_would_tell():
    assert share_needs(0.0, 0.03, 0.95) == 99
    assert binomial_upper(round(0.02 * share_needs(0.02, 0.03, 0.95)), share_needs(0.02, 0.03, 0.95), 0.95) <= 0.031
    assert share_needs(0.04, 0.03, 0.95) is None
    bounds = compared("regression", OUTPUTS["regression"][1] * 1.05).divergence
    needed = mean_needs(bounds, (bounds.mean + bounds.high) / 2, 300)
    assert needed in (1200, 1300)  # four times as many, rounded up
    assert mean_needs(bounds, bounds.mean / 2, 300) is None


def between(outputs, reference, kind):
    return compare_answers(probe_of(outputs), probe_of(reference), "logits", kind, None, Bootstrap(resamples=200))


def test_classes_that_are_ruled_out_in_both_do_not_count():
    masked = SCORES.copy()
    masked[:, 3] = -np.inf
    found = between(masked + np.float32(0.01) * RANDOM.standard_normal(SCORES.shape), masked, OutputKind())
    assert found.reference_broken == 0
    assert 0 < found.divergence.mean < 1e-3
    assert found.error.high < 0.02
    leaking = masked.copy()
    leaking[:, 3] = 2
    assert between(leaking, masked, OutputKind()).divergence.low > 0.02


def test_samples_for_which_the_reference_is_not_finite_are_counted():
    spoilt = SCORES.copy()
    spoilt[[7, 9], 2] = np.nan
    assert between(spoilt, spoilt, OutputKind()).reference_broken == 2
    assert between(spoilt, SCORES, OutputKind()).reference_broken == 0


def test_probabilities_that_no_longer_sum_to_1_diverge():
    kind, probabilities = OUTPUTS["probabilities"]
    assert between(2 * probabilities, probabilities, kind).divergence.low > 0.3
    assert between(probabilities * 1.01, probabilities, kind).divergence.high < 1e-3


def test_labels_that_hold_are_counted_apart_from_those_that_never_do():
    tags = np.full((300, 2000), 1e-3, np.float32)
    tags[np.arange(300), np.arange(300)] = 0.9
    found = between(np.full_like(tags, 1e-3), tags, OutputKind("multilabel", True))
    assert found.changed.mean < 1e-3
    assert found.changed_held.low > 0.9
    assert between(tags, tags, OutputKind("multilabel", True)).changed_held.mean == 0
    assert between(tags * 0.1, tags * 0.1, OutputKind("multilabel", True)).changed_held is None


def test_an_element_that_is_always_0_is_of_the_others_unit():
    values = OUTPUTS["regression"][1].copy()
    values[:, 2] = 0
    noise = 0.01 * values.std(0).clip(1e-2) * RANDOM.standard_normal(values.shape)
    assert between(values + noise, values, OutputKind("regression")).divergence.high < 1e-3


def test_a_dead_element_shows_however_small_its_unit():
    values = SCORES * np.float32([1e-6, 1, 1, 1, 1, 1, 1, 1e5])
    dead = values.copy()
    dead[:, 0] = 0
    assert between(dead, values, OutputKind("regression")).worst_element == 0
    assert between(dead, values, OutputKind("regression")).worst_divergence > 0.5


def test_embeddings_without_a_direction_are_the_same():
    embeddings = SCORES.copy()
    embeddings[:30] = 0
    noise = np.where(np.arange(300)[:, None] < 30, 1e-9, 0)
    assert between(embeddings, embeddings, OutputKind("embedding")).divergence.high == 0
    assert between(embeddings + noise, embeddings, OutputKind("embedding")).divergence.high < 1e-6
    gone = np.where(np.arange(300)[:, None] < 60, 0, embeddings)
    assert between(gone, embeddings, OutputKind("embedding")).divergence.low > 0.03


def test_many_independent_samples_are_not_groups():
    outputs = np.tile(SCORES, (34, 1))
    found = between(outputs, outputs, OutputKind())
    assert (found.samples, found.units) == (10_200, 10_200)


def test_a_share_of_0_is_no_negative_0():
    assert not math.copysign(1, between(SCORES, SCORES, OutputKind()).divergence.low) < 0


def test_rounding_does_not_change_the_kind():
    probabilities = (OUTPUTS["probabilities"][1] * np.float32(1.0000005)).astype(np.float16)
    assert guess_kind(probabilities, False) == OutputKind("classes", True)
    assert guess_kind(np.float32([[1.0000001], [0.3]]), False) == OutputKind("multilabel", True, 0.5)
