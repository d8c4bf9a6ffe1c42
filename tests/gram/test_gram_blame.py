import numpy as np
import pytest

from edgekd.gram.blame import RankedFigure, rank
from edgekd.gram.jackknife import Series, make_blocks


def series(values):
    """Return the mean of some values, a block each."""
    values = np.asarray(values, float)
    return Series.of(lambda kept: values[kept].mean(), np.arange(len(values)))


def test_the_error_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 50)
    found = series(values)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_groups_are_left_out_whole():
    """Ten copies of each value say no more than one."""
    values = np.random.default_rng(0).normal(size=6)
    copies = np.repeat(values, 10)
    grouped = Series.of(lambda kept: copies[kept].mean(), make_blocks(60, np.repeat(list("abcdef"), 10)))
    assert grouped.error == pytest.approx(series(values).error)


def test_a_mean_is_computed_as_any_statistic():
    values, blocks = np.random.default_rng(0).normal(size=60), make_blocks(60, np.repeat(list("abcdef"), 10))
    found, expected = Series.mean(values, blocks), Series.of(lambda kept: values[kept].mean(), blocks)
    assert found.value == pytest.approx(expected.value)
    assert found.without == pytest.approx(expected.without)
    assert Series.mean(np.array([2.0]), np.array([0])).error is None


def test_a_share_of_nothing_is_nothing():
    share = Series(1.0, np.array([2.0, 3.0])) / Series(4.0, np.array([0.0, 6.0]))
    assert (share.value, *share.without) == (0.25, 0, 0.5)
    assert (series([1.0, 2.0]) / series([0.0, 0.0])).value == 0
    total = series([1.0, 2.0]) + series([3.0, 4.0])
    assert (total.value, *total.without) == (5, 6, 4)


def test_differences_are_paired():
    common = np.random.default_rng(0).normal(0, 100, 40)
    apart = np.linspace(0.9, 1.1, 40)
    difference = series(common + apart) - series(common)
    assert difference.value == pytest.approx(1)
    assert difference.error == pytest.approx(series(apart).error)


@pytest.mark.parametrize(
    ("groups", "sizes"), [(None, {3, 4}), (["one"] * 100, {3, 4}), (["a"] * 60 + ["b"] * 40, {40, 60})]
)
def test_blocks(groups, sizes):
    blocks = make_blocks(100, None if groups is None else np.array(groups))
    assert set(np.unique(blocks, return_counts=True)[1]) == sizes


def test_blocks_of_one_group_are_runs_of_neighbours():
    blocks = make_blocks(100, np.array(["one"] * 100))
    assert (np.diff(blocks) >= 0).all()
    assert len(set(blocks)) == 32


def test_one_sample_has_no_error():
    assert series([2.0]).error is None


def test_figures_within_their_error_are_level():
    wide = np.array([-1.0, 1.0] * 20)
    found = rank(
        {
            "low": series(wide * 0 + 1),
            "close": series(wide + 9.9),
            "best": series(wide * -1 + 10),
            "sole": series(wide + 5),
        }
    )
    assert {name: figure.rank for name, figure in found.items()} == {"best": 1, "close": 1, "sole": 3, "low": 4}
    assert found["best"].value == pytest.approx(10)
    assert list(found) == ["best", "close", "sole", "low"]


def test_pairs_tell_apart_what_single_errors_do_not():
    common = np.random.default_rng(0).normal(0, 100, 40)
    found = rank({"worse": series(common), "better": series(common + np.linspace(0.9, 1.1, 40))})
    assert {name: figure.rank for name, figure in found.items()} == {"better": 1, "worse": 2}
    assert found["better"].error > 10


def test_nothing_to_rank():
    assert rank({}) == {}
    assert rank({"sole": series([1.0])}) == {"sole": RankedFigure(1.0, None, 1)}
