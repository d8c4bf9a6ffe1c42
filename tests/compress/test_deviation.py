"""What of two engines' values is rounding: relative to what is about an element, and to what noise does."""

import numpy as np
import pytest

from edgekd.compress.oracles.deviation import deviation

VALUES = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def test_rounding_is_none_and_a_thousandth_is():
    assert deviation(VALUES * np.float32(1 + 1e-6), VALUES).reason == ""
    found = deviation(VALUES * np.float32(1.001), VALUES)
    assert found.reason.startswith("is off by")
    assert found.share == pytest.approx(1e-3, rel=0.1)


def test_half_precision_may_round_more():
    rounded = VALUES.astype(np.float16).astype(np.float32)
    assert deviation(rounded, VALUES).reason
    assert deviation(rounded, VALUES, arithmetic="f16").reason == ""


def test_large_numbers_hide_no_small_ones_in_another_channel():
    boxes = np.concatenate([np.full((4, 3), 640, np.float32), np.full((4, 2), 0.5, np.float32)], 1)
    scores = boxes.copy()
    scores[:, 3:] += 0.01
    assert deviation(scores, boxes).reason
    boxes[:, 3:] = scores[:, 3:] = 0  # and a channel of nothing is not held against its own rounding
    scores[:, 3:] = 1e-6
    assert deviation(scores, boxes).reason == ""


def test_what_noise_does_as_well_is_no_difference():
    other = VALUES + np.float32(0.01)
    assert deviation(other, VALUES).reason
    assert deviation(other, VALUES, [VALUES - np.float32(0.005)]).reason == ""


def test_infinities_and_nan_are_compared_by_their_places():
    exact = VALUES.copy()
    exact[0, 0], exact[1, 1] = np.inf, np.nan
    assert deviation(exact.copy(), exact).reason == ""
    for place, value in (((0, 0), -np.inf), ((1, 1), 0), ((2, 2), np.nan)):
        other = exact.copy()
        other[place] = value
        assert deviation(other, exact).reason == "is infinite or NaN in other places"


def test_whole_numbers_are_exact_but_where_noise_changes_them():
    exact = np.array([[3, 7], [1, 2]])
    assert deviation(exact.astype(np.int32), exact).reason == ""
    other = np.array([[3, 7], [1, 5]])
    assert deviation(other, exact).reason == "is off by 3, its largest magnitude is 7"
    assert deviation(other, exact, [np.array([[3, 7], [1, 4]])]).reason == ""
    assert deviation(np.array([True, False]), np.array([True, True])).reason


def test_shapes_and_kinds_are_compared():
    assert deviation(VALUES[:2], VALUES).reason == "is float32 [2, 6] instead of float32 [4, 6]"
    assert deviation(VALUES.astype(np.int64), VALUES).reason.startswith("is int64")
    empty = np.zeros((0, 6), np.float32)
    assert deviation(empty, empty).reason == ""


def test_a_probability_of_almost_nothing_is_compared_as_a_probability():
    tiny, zero = np.full((4, 1), 2e-9, np.float32), np.zeros((4, 1), np.float32)
    assert deviation(tiny, zero).reason
    assert deviation(tiny, zero, least=1.0).reason == ""
