import pytest

from edgekd.workflows.advise.budget import (
    TrialCost,
    TrialSize,
    alike,
    choose_dropped,
    choose_size,
    count_trials,
    fixed_size,
    shortest_epochs,
)
from edgekd.workflows.advise.format import budget_text


def test_trials_of_some_seeds():
    assert count_trials(3, 9) == 27
    assert count_trials(6, 9) == 27 + 3 * 5
    assert count_trials(7, 9) == 27 + 3 * 5 + 3
    assert count_trials(20, 9) == 27 + 3 * 5 + 14 * 3


def test_epochs_fill_the_budget_with_six_seeds():
    cost = TrialCost(fixed=1.0, epoch=0.5)
    size = choose_size(42 * 11.0, cost, 9, 30)
    assert size == TrialSize(20, 3)
    assert count_trials(6, 9) * cost.of(20) <= 42 * 11.0 < count_trials(6, 9) * cost.of(21)


def test_epochs_are_at_most_the_recipes_and_a_short_budget_rather_leaves_losses_out():
    cost = TrialCost(fixed=0.0, epoch=1.0)
    assert choose_size(1e6, cost, 9, 30) == TrialSize(30, 3)
    assert choose_size(4 * 3 * 15.0, cost, 9, 30) == TrialSize(15, 3), "half of the epochs, for KD and three others"
    assert choose_size(4 * 3 * 15.0 - 1, cost, 9, 30) == TrialSize(6, 3), "and if not for these, a fifth"
    assert choose_size(2 * 3 * 6.0, cost, 9, 30) == TrialSize(6, 3)
    assert choose_size(2 * 3 * 6.0 - 1, cost, 9, 30) == TrialSize(6, 2), "then fewer seeds"
    assert choose_size(2 * 6.0, cost, 9, 30) == TrialSize(6, 1)
    assert choose_size(2 * 6.0 - 1, cost, 9, 30) is None
    assert (shortest_epochs(4), shortest_epochs(2)) == (3, 2)


def test_given_epochs_are_kept_and_seeds_follow_the_budget():
    cost = TrialCost(fixed=0.0, epoch=1.0)
    assert [fixed_size(budget, cost, 10) for budget in (1000, 60, 59, 20)] == [
        TrialSize(10, 3), TrialSize(10, 3), TrialSize(10, 2), TrialSize(10, 1),
    ]  # fmt: skip
    assert fixed_size(19, cost, 10) is None


def test_trials_of_an_earlier_run_go_on_where_they_are_about_as_long():
    assert alike(10, 30) == [10, 9, 11, 8, 12]
    assert alike(30, 30) == [30, 29, 28, 27, 26, 25, 24]
    assert alike(6, 30) == [6, 7]


def test_the_worse_half_is_dropped_and_two_stay():
    differences = {"a": [0.0, 0.0], "b": [0.3, 0.1], "c": [-1.0, 0.5], "d": [0.1, 0.2], "e": [0.0, 0.1]}
    assert choose_dropped(differences) == ("a", "c")
    assert choose_dropped({"a": [1.0], "b": [0.0]}) == ()


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1s"), (61, "61s"), (91, "2m"), (7100, "119m"), (7300, "3h")])
def test_budgets_are_written_rounded_up(seconds, text):
    assert budget_text(seconds) == text
