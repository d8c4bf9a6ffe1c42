import pytest

from edgekd.workflows.advise.budget import TrialCost, choose_dropped, choose_epochs, count_trials, shortest_epochs
from edgekd.workflows.advise.format import budget_text


def test_trials_of_some_seeds():
    assert count_trials(3, 9) == 27
    assert count_trials(6, 9) == 27 + 3 * 5
    assert count_trials(7, 9) == 27 + 3 * 5 + 3
    assert count_trials(20, 9) == 27 + 3 * 5 + 14 * 3


def test_epochs_fill_the_budget_with_six_seeds():
    cost = TrialCost(fixed=1.0, epoch=0.5)
    epochs = choose_epochs(42 * 6.0, cost, 9, 30)
    assert epochs == 10
    assert count_trials(6, 9) * cost.of(epochs) <= 42 * 6.0 < count_trials(6, 9) * cost.of(epochs + 1)


def test_epochs_are_at_most_the_recipes_and_never_too_few():
    cost = TrialCost(fixed=0.0, epoch=1.0)
    assert choose_epochs(1e6, cost, 9, 30) == 30
    assert choose_epochs(27 * 6.0, cost, 9, 30) == shortest_epochs(30) == 6, "three seeds fit, six do not"
    assert choose_epochs(27 * 6.0 - 1, cost, 9, 30) is None
    assert (shortest_epochs(4), shortest_epochs(2)) == (3, 2)


def test_the_worse_half_is_dropped_and_two_stay():
    differences = {"a": [0.0, 0.0], "b": [0.3, 0.1], "c": [-1.0, 0.5], "d": [0.1, 0.2], "e": [0.0, 0.1]}
    assert choose_dropped(differences) == ("a", "c")
    assert choose_dropped({"a": [1.0], "b": [0.0]}) == ()


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1s"), (61, "61s"), (91, "2m"), (7100, "119m"), (7300, "3h")])
def test_budgets_are_written_rounded_up(seconds, text):
    assert budget_text(seconds) == text
