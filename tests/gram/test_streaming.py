import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.gram.streaming import UNITS, Subsample, Units, hash_names


def test_hashes_depend_on_the_name_alone_and_spread():
    names = np.array([f"sample-{index:05d}" for index in range(20_000)])
    keys = hash_names(names)
    np.testing.assert_array_equal(hash_names(names[7:9]), keys[7:9])
    assert len(np.unique(keys)) == len(names)
    counts = np.bincount((keys % 100).astype(int), minlength=100)
    # Poisson: 200 in each block, standard deviation 14.
    assert 200 - 5 * 14 < counts.min() < counts.max() < 200 + 5 * 14


def test_units_by_hand():
    units = Units()
    units.add(hash_names(np.array(["anna", "ben", "anna"])), np.array([1.0, 2.0, 3.0]))
    units.add(hash_names(np.array(["cleo", "ben"])), np.array([4.0, 5.0]))
    np.testing.assert_array_equal(units.totals(), [[4, 7, 4], [2, 2, 1]])


def test_one_unit_too_many_is_dealt_into_blocks():
    units = Units()
    units.add(hash_names(np.arange(UNITS)), np.ones(UNITS))
    assert units.totals().shape == (2, UNITS)
    units.add(hash_names(np.array([UNITS])), np.ones(1))
    sums, counts = units.totals()
    # Of n blocks into which n are dealt 1/e stay empty.
    assert len(sums) == pytest.approx(UNITS * (1 - np.exp(-1)), rel=0.03)
    np.testing.assert_array_equal(sums, counts)
    assert counts.sum() == UNITS + 1


def test_a_unit_stays_in_one_block():
    units = Units()
    groups = hash_names(np.arange(2 * UNITS))
    for _ in range(3):
        units.add(groups, np.ones(len(groups)))
    assert set(units.totals()[1] % 3) == {0}


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.booleans())
@settings(max_examples=20, deadline=None)
def test_units_do_not_depend_on_the_chunks(sizes, grouped):
    total = 3 * UNITS
    keys = hash_names(np.arange(total) // 2 if grouped else np.arange(total))
    values = np.random.default_rng(0).exponential(size=total)
    whole, parts = Units(), Units()
    whole.add(keys, values)
    start = 0
    for size in [*sizes, total]:
        parts.add(keys[start : start + size], values[start : start + size])
        start += size
    np.testing.assert_allclose(parts.totals(), whole.totals(), rtol=1e-12)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=10), st.integers(1, 120))
@settings(max_examples=50, deadline=None)
def test_a_subsample_is_of_the_smallest_hashes_whatever_the_chunks(sizes, size):
    keys = hash_names(np.arange(100))
    sample = Subsample(size)
    start = 0
    for count in [*sizes, 100]:
        part = slice(start, start + count)
        sample.add(keys[part], [np.arange(100)[part], np.arange(300).reshape(100, 3)[part]])
        start += count
    expected = np.argsort(keys)[:size]
    np.testing.assert_array_equal(sample.keys, keys[expected])
    np.testing.assert_array_equal(sample.rows[0], expected)
    np.testing.assert_array_equal(sample.rows[1], np.arange(300).reshape(100, 3)[expected])
