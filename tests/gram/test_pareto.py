"""The Pareto front against its definition."""

import random

import pytest

from edgekd.gram.pareto import dominates, pareto_front


@pytest.mark.parametrize(
    ("one", "other", "better"),
    [((1, 2), (2, 2), True), ((1, 2), (1, 2), False), ((1, 3), (2, 2), False), ((2, 2), (1, 2), False)],
)
def test_one_dominates_where_it_is_nowhere_worse_and_somewhere_better(one, other, better):
    assert dominates(one, other) is better


def test_of_equal_candidates_the_first_is_on_the_front():
    assert pareto_front([(2, 1), (1, 2), (2, 1), (3, 3)]) == [0, 1]
    assert pareto_front([]) == []


def test_the_front_dominates_all_others_and_none_of_itself():
    draw = random.Random(0)
    costs = [(draw.randint(0, 9), draw.randint(0, 9), draw.randint(0, 9)) for _ in range(60)]
    front = pareto_front(costs)
    assert 0 < len(front) < len(costs)
    chosen = [costs[index] for index in front]
    for index, cost in enumerate(costs):
        beaten = any(dominates(other, cost) for other in chosen)
        assert beaten is (cost not in chosen), (index, cost)
