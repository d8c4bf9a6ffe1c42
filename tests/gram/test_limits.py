from math import comb

import numpy as np
import pytest

from edgekd.gram.limits import ALLOWED, WINDOW, has_lost, suggest

COUNT = 300
DRIFTS = np.linspace(0.001, 0.1, COUNT)


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
    found = suggest(DRIFTS, losses(100, 120, 140, *range(150, COUNT)), 0.015)
    assert found.tau == DRIFTS[139]
    assert found.reason == "of the 61 drifts next below it, at most 2 come with a loss above 0.015"


def test_two_losses_in_a_window_are_let_pass():
    found = suggest(DRIFTS, losses(10, 20, 10 + WINDOW, *range(200, COUNT)), 0.015)
    assert found.tau == DRIFTS[201]


def test_what_follows_a_bad_window_does_not_count():
    found = suggest(DRIFTS, losses(100, 101, 102), 0.015)
    assert found.tau == DRIFTS[101]


def test_the_order_given_does_not_matter():
    order = np.random.default_rng(0).permutation(COUNT)
    lost = losses(100, 120, 140, 150)
    assert suggest(DRIFTS[order], lost[order], 0.015) == suggest(DRIFTS, lost, 0.015)


def test_more_harmless_perturbations_do_not_raise_it():
    lost = losses(100, 120, 140, *range(150, COUNT))
    more = np.concatenate([np.linspace(1e-5, 9e-4, 1000), DRIFTS])
    assert suggest(more, np.concatenate([np.zeros(1000), lost]), 0.015) == suggest(DRIFTS, lost, 0.015)


@pytest.mark.parametrize(
    ("drifts", "lost", "reason"),
    [
        (DRIFTS[:60], losses()[:60], "60 perturbations, of which 61 or more are needed"),
        (DRIFTS, losses(50, 150), "losses above 0.015 are rare up to a drift of 0.1000"),
        (DRIFTS, losses(1, 2, 3, 4), "4 of the 61 smallest drifts, up to 0.0209, come with a loss above 0.015"),
    ],
)
def test_says_when_it_cannot_be_decided(drifts, lost, reason):
    found = suggest(drifts, lost, 0.015)
    assert found.tau is None
    assert found.reason.startswith(f"not decided: {reason}")


def test_a_loss_at_the_limit_is_none_and_one_that_is_not_a_number_is_one():
    assert has_lost(np.array([0.9125 - 0.8975, 0.016, np.nan]), 0.015).tolist() == [False, True, True]
