import numpy as np
import pytest
from probes import random_rotation

from edgekd.gram.stats import debiased_cka, spearman, t_quantile


def biased_cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_independent_features_pass_biased_cka_only():
    random = np.random.default_rng(0)
    pairs = [(random.normal(size=(32, 128)), random.normal(size=(32, 128))) for _ in range(20)]
    assert min(biased_cka(x, y) for x, y in pairs) > 0.7
    debiased = [debiased_cka(x, y) for x, y in pairs]
    assert abs(np.mean(debiased)) < 0.02
    assert max(map(abs, debiased)) < 0.15


def test_debiased_cka_is_1_for_the_same_and_its_rotation():
    x = np.random.default_rng(0).normal(size=(64, 16))
    assert debiased_cka(x, x) == pytest.approx(1)
    assert debiased_cka(x, 3 * x @ random_rotation(16)) == pytest.approx(1)


def test_debiased_cka_is_none_where_a_side_does_not_vary():
    x = np.random.default_rng(0).normal(size=(64, 16))
    assert debiased_cka(x, np.zeros((64, 3))) is None


def test_nothing_has_no_rank_correlation():
    assert spearman(np.empty(0), np.empty(0)) is None


@pytest.mark.parametrize(
    ("confidence", "freedom", "expected"),
    [(0.95, 1, 6.3138), (0.95, 2, 2.9200), (0.975, 10, 2.2281), (0.95, 500, 1.6479), (0.95, 5000, 1.6452)],
)
def test_students_quantile_against_its_table(confidence, freedom, expected):
    assert t_quantile(confidence, freedom) == pytest.approx(expected, abs=6e-4)
