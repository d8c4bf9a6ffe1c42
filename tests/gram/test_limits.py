import math
from math import comb

import numpy as np
import pytest

from edgekd.gram.limits import (
    ALLOWED,
    WINDOW,
    Tally,
    has_lost,
    is_refused,
    round_down,
    samples_that_tell,
    suggest,
)

COUNT = 300
DRIFTS = np.arange(1, COUNT + 1) / 1000


def losses(*positions):
    """Return no loss but at these positions in the order of drift."""
    found = np.zeros(COUNT)
    found[list(positions)] = 0.02
    return found


def test_the_window_is_the_smallest_that_shows_one_in_ten_to_be_too_many():
    def probability(count):
        return sum(comb(count, lost) * 0.1**lost * 0.9 ** (count - lost) for lost in range(ALLOWED + 1))

    assert probability(WINDOW) < 0.05 < probability(WINDOW - 1)


def test_stops_before_the_loss_that_is_one_too_many():
    found = suggest(DRIFTS, losses(100, 120, 140, *range(150, COUNT)), 0.015, "drift")
    assert found.limit == 0.14
    assert found.reason == "of the 61 perturbations next below it, at most 2 come with a loss above 0.015"


def test_two_losses_in_a_window_are_let_pass():
    found = suggest(DRIFTS, losses(10, 20, 10 + WINDOW, *range(200, COUNT)), 0.015, "drift")
    assert found.limit == 0.2  # 0.202, rounded down


def test_what_follows_a_bad_window_does_not_count():
    found = suggest(DRIFTS, losses(100, 101, 102), 0.015, "drift")
    assert found.limit == 0.1


def test_the_order_given_does_not_matter():
    order = np.random.default_rng(0).permutation(COUNT)
    lost = losses(100, 120, 140, 150)
    assert suggest(DRIFTS[order], lost[order], 0.015, "drift") == suggest(DRIFTS, lost, 0.015, "drift")


def test_of_equal_figures_all_are_let_through_or_none():
    shares = np.repeat(np.arange(1, 61) / 100, 5)  # as of changed answers among few samples
    lost = losses(*range(154, COUNT, 5))  # the last of each share from 0.31 on
    assert suggest(shares, lost, 0.015, "flips").limit == 0.32  # the third, of 0.33, would be one too many
    assert suggest(shares, lost[::-1], 0.015, "flips").limit is None


def test_a_limit_of_nothing_is_none():
    flips = np.repeat([0.0, 0.5], 150)
    assert suggest(flips, losses(*range(150, COUNT)), 0.015, "flips").limit is None


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.0389, 0.038), (0.02, 0.02), (0.29, 0.29), (0.0999, 0.099), (12.7, 12.0), (0.0, 0.0)]
)
def test_limits_are_rounded_down(value, rounded):
    assert round_down(value) == rounded


def test_a_tally_counts_whom_a_limit_misses_and_refuses():
    figures, lost = np.array([0.01, 0.02, 0.03, np.nan]), np.array([True, False, False, True])
    assert Tally.of(is_refused(figures, 0.02), lost) == Tally(missed=1, lost=2, refused=1, kept=2)


def test_as_many_samples_tell_as_halve_the_interval():
    assert samples_that_tell([0.015], 0.015, 200) == 800
    assert samples_that_tell([0.001, 0.015, 0.9], 0.015, 200) == 800  # the median
    assert samples_that_tell([0.007], 0.015, 200) is None
    assert samples_that_tell([math.inf], 0.015, 200) is None


def test_more_harmless_perturbations_do_not_raise_it():
    lost = losses(100, 120, 140, *range(150, COUNT))
    more = np.concatenate([np.linspace(1e-5, 9e-4, 1000), DRIFTS])
    with_harmless = suggest(more, np.concatenate([np.zeros(1000), lost]), 0.015, "drift")
    assert with_harmless == suggest(DRIFTS, lost, 0.015, "drift")


@pytest.mark.parametrize(
    ("drifts", "lost", "reason"),
    [
        (DRIFTS[:60], losses()[:60], "60 perturbations, of which 61 or more are needed"),
        (DRIFTS, losses(50, 150), "losses above 0.015 are rare up to a drift of 0.3"),
        (DRIFTS, losses(1, 2, 3, 4), "4 of the 61 smallest, up to a drift of 0.061, come with a loss above 0.015"),
    ],
)
def test_says_when_it_cannot_be_decided(drifts, lost, reason):
    found = suggest(drifts, lost, 0.015, "drift")
    assert found.limit is None
    assert found.reason.startswith(f"not decided: {reason}")


def test_a_loss_at_the_limit_is_none_and_one_that_is_not_a_number_is_one():
    assert has_lost(np.array([0.9125 - 0.8975, 0.016, np.nan]), 0.015).tolist() == [False, True, True]
