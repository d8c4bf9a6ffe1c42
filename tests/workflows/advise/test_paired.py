import math

import numpy as np
import pytest
from scipy import stats

from edgekd.gram.stats import t_quantile, t_tail
from edgekd.workflows.advise.paired import compare, holm, pairs_needed


@pytest.mark.parametrize("freedom", [1, 2, 5, 29])
@pytest.mark.parametrize("t", [0.0, -0.3, 1.7, 12.0])
def test_the_tails_of_student(t, freedom):
    assert t_tail(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-4)


@pytest.mark.parametrize("freedom", [2, 5, 29])
def test_the_quantile_far_out_where_holm_needs_it(freedom):
    assert t_quantile(1 - 0.05 / 16, freedom) == pytest.approx(stats.t.ppf(1 - 0.05 / 16, freedom), rel=1e-3)


def test_one_comparison_is_students_paired_interval():
    d = np.array([0.5, 1.5, 1.0, 2.0])
    (found,) = compare([d])
    expected = stats.ttest_rel(d, np.zeros(4)).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-4)
    assert found.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=1e-4)
    assert (found.mean, found.pairs, found.level) == (1.25, 4, 0.05)
    assert found.deviation == pytest.approx(math.sqrt(1.25 / 3))


def test_holm_by_hand():
    # 0.01 against 0.05/4, 0.015 against 0.05/3, 0.03 against 0.05/2: there it stops, and the last is not looked at.
    assert holm([0.03, 0.01, 0.04, 0.015]) == pytest.approx([0.025, 0.0125, 0.025, 0.05 / 3])
    assert holm([0.6]) == [0.05]
    assert holm([]) == []


def test_an_interval_excludes_0_exactly_where_holm_rejects():
    random = np.random.default_rng(0)
    for _ in range(60):
        family = [random.normal(random.choice([0, 0.8]), 1, size=random.integers(2, 9)) for _ in range(6)]
        p_values = np.array([stats.ttest_1samp(d, 0).pvalue for d in family])
        adjusted = np.maximum.accumulate(np.sort(p_values) * np.arange(6, 0, -1))[np.argsort(np.argsort(p_values))]
        assert [one.holds for one in compare(family)] == (adjusted <= 0.05).tolist()


def test_false_claims_are_as_rare_in_the_whole_family():
    random = np.random.default_rng(1)
    claims = [any(one.holds for one in compare(list(random.normal(size=(8, 5))))) for _ in range(300)]
    assert 0.02 < np.mean(claims) < 0.08


def test_equal_differences_of_a_metric_in_steps_are_no_certainty():
    d = np.array([0.005, 0.005, 0.005])
    assert compare([d])[0].holds
    assert not compare([d], least=0.005 / math.sqrt(6))[0].holds
    (nothing,) = compare([np.zeros(3)])
    assert (nothing.p, nothing.low, nothing.high, nothing.holds) == (1.0, 0.0, 0.0, False)


@pytest.mark.parametrize(("effect", "level"), [(0.6, 0.05), (1.0, 0.05 / 8), (2.0, 0.05)])
def test_so_many_pairs_find_it_four_times_in_five(effect, level):
    pairs = pairs_needed(effect * 3, 3, level)

    def power(n):
        t = stats.t.ppf(1 - level / 2, n - 1)
        return stats.nct.sf(t, n - 1, effect * math.sqrt(n))

    assert power(pairs) > 0.78
    assert power(pairs - 2) < 0.82


def test_no_number_of_pairs_finds_nothing():
    assert pairs_needed(0.0, 1.0) is None
    assert pairs_needed(0.01, 1.0, most=30) is None
    assert pairs_needed(1.0, 0.0) == 2
