"""What the epochs of a training tell."""

import math

import numpy as np
import pytest

from edgekd.training.loop.epochs import best_epoch, has_stalled, still_improving

NAN = math.nan


def history(*values):
    return [{"validation": value} for value in values]


@pytest.mark.parametrize(
    ("values", "highest", "lowest"),
    [((0.1, 0.3, 0.2), 1, 0), ((0.3, 0.1, 0.3, 0.1), 2, 3), ((NAN, 0.3, math.inf), 1, 1), ((NAN, NAN), None, None)],
)
def test_the_best_epoch_is_the_latest_of_equals_and_a_number(values, highest, lowest):
    assert best_epoch(history(*values), higher_is_better=True) == highest
    assert best_epoch(history(*values), higher_is_better=False) == lowest


@pytest.mark.parametrize(
    ("values", "over"),
    [
        ((0.5, 0.4, 0.4), True),
        ((0.5, 0.5, 0.5), True),  # an equal is no better
        ((0.5, 0.4), False),
        ((0.5, 0.4, 0.6), False),
        ((0.5, NAN, NAN), True),
        ((NAN, NAN, NAN), False),
        ((), False),
    ],
)
def test_patience_ends_after_epochs_that_were_no_better(values, over):
    assert has_stalled(history(*values), 2, higher_is_better=True) is over
    assert has_stalled(history(*(-value for value in values)), 2, higher_is_better=False) is over
    assert not has_stalled(history(*values), None, higher_is_better=True)


def curve(rises, noise, epochs=50, seed=0):
    """A metric that approaches its end with a time constant of a share of the epochs."""
    steps = np.arange(epochs) / epochs
    return history(*(1 - np.exp(-steps / rises) + noise * np.random.default_rng(seed).normal(size=epochs)))


def test_a_rise_that_had_not_ended_is_told_from_one_that_had():
    rising = [still_improving(curve(1.0, 0.01, seed=seed), higher_is_better=True) for seed in range(20)]
    level = [still_improving(curve(0.05, 0.01, seed=seed), higher_is_better=True) for seed in range(200)]
    assert sum(rising) >= 19
    assert sum(level) <= 4
    assert not still_improving(curve(1.0, 0.01), higher_is_better=False)


@pytest.mark.parametrize("values", [(0.1, 0.5, 0.9), [0.9] * 40, [NAN] * 40, [*np.linspace(0, 1, 39), NAN]])
def test_few_epochs_level_ones_and_what_is_no_number_tell_nothing(values):
    assert not still_improving(history(*values), higher_is_better=True)
