import numpy as np
import pytest

from edgekd.errors import DataError
from edgekd.tasks.data.division import Division, divide
from edgekd.training.task.protocol import SPLITS


def shares(parts, chosen):
    """Return which part of the chosen samples each split has."""
    return [np.isin(parts[name], np.flatnonzero(chosen)).sum() / chosen.sum() for name in SPLITS]


def test_each_class_is_divided_by_the_shares():
    classes = ["a"] * 100 + ["b"] * 40
    parts = divide("data", Division(), classes)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(140))
    for name in "ab":
        assert shares(parts, np.array(classes) == name) == pytest.approx([0.6, 0.1, 0.1, 0.2])


@pytest.mark.parametrize("count", range(4, 30))
def test_a_small_class_is_in_every_split(count):
    parts = divide("data", Division(), ["a"] * count)
    assert min(len(rows) for rows in parts.values()) >= 1
    assert len(parts["train"]) >= len(parts["test"])


def test_no_group_is_in_two_splits_and_classes_stay_balanced():
    random = np.random.RandomState(0)
    groups = random.randint(0, 60, 3000)
    classes = np.where(random.rand(3000) < np.where(groups % 3, 0.2, 0.8), "a", "b")
    parts = divide("data", Division(seed=3), classes.tolist(), [f"g{group}" for group in groups])
    owners = [set(groups[rows]) for rows in parts.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 60
    for name in "ab":
        assert shares(parts, classes == name) == pytest.approx([0.6, 0.1, 0.1, 0.2], abs=0.06)


def test_a_seed_is_a_division_and_another_seed_another_one():
    parts = [divide("data", Division(seed=seed), ["a"] * 50)["test"].tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_where_there_are_no_classes_four_samples_will_do():
    assert [len(rows) for rows in divide("data", Division(), [""] * 4).values()] == [1, 1, 1, 1]
    with pytest.raises(DataError, match="data: has 3 samples, must have 4 or more"):
        divide("data", Division(), [""] * 3)
    with pytest.raises(DataError, match="data: has 2 groups, must have 4 or more"):
        divide("data", Division(), [""] * 30, ["x", "y"] * 15)


def test_a_class_of_one_sample_or_in_few_groups_is_named():
    with pytest.raises(DataError, match="data: class 'b' is in 1 sample, 'c' is in 3 samples; each must be in 4"):
        divide("data", Division(), ["a"] * 9 + ["b"] + ["c"] * 3)
    with pytest.raises(DataError, match="class 'b' is in 1 group; each must be in 4 groups"):
        divide("data", Division(), ["a", "b"] + ["a"] * 8, [str(i) for i in range(10)])


def test_a_class_that_large_groups_keep_from_the_test_is_named():
    sizes = {"g0": 500, "g1": 400, "g2": 300, "g3": 600, "s0": 20, "s1": 20, "s2": 20, "s3": 20}
    groups = [name for name, size in sizes.items() for _ in range(size)] + ["s0", "s1", "s2", "s3"]
    with pytest.raises(DataError, match="with seed 0 no group of the class 'b' falls into the split 'test'"):
        divide("data", Division(), ["a"] * 1880 + ["b"] * 4, groups)


@pytest.mark.parametrize("wrong", [{"train": 0.5}, {"val": 0, "train": 0.7}, {"test": -0.1, "train": 0.9}])
def test_shares_must_add_up(wrong):
    with pytest.raises(DataError, match="each share must be above 0, and all must add up to 1"):
        Division(**wrong)
