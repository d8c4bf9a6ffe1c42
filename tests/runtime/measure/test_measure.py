import math
import time
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
from scipy import stats

from edgekd.runtime.measure.results import EngineProfile, LayerTime, interval_ranks, latency_from, stream_discards


def test_ten_samples_by_hand():
    # P(B = 0) + P(B = 1) = 11/1024 <= 0.025 < 56/1024: the median of ten lies between the 2nd and the 9th.
    latency = latency_from(np.array([7, 3, 9, 1, 10, 2, 8, 4, 6, 5]) * 1_000_000)
    assert latency.n == 10
    assert latency.p50 is not None
    assert (latency.p50.value_ms, latency.p50.low_ms, latency.p50.high_ms) == (5.0, 2.0, 9.0)
    assert latency.p90 is None
    assert latency.p99 is None
    assert latency.max_ms == 10.0


@pytest.mark.parametrize(("p", "least"), [(0.5, 6), (0.9, 36), (0.99, 368)])
def test_a_quantile_is_withheld_until_its_upper_order_statistic_exists(p, least):
    assert p ** (least - 1) > 0.025 >= p**least
    assert interval_ranks(least - 1, p) is None
    ranks = interval_ranks(least, p)
    assert ranks is not None
    assert ranks[1] == least


@pytest.mark.parametrize("p", [Fraction(1, 2), Fraction(9, 10), Fraction(99, 100)])
@pytest.mark.parametrize("n", [6, 7, 20, 36, 50, 101, 368])
def test_ranks_are_the_tightest_by_exact_arithmetic(n, p):
    mass = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    below = list(accumulate(mass))  # P(B <= k)
    low = max((rank for rank in range(1, n + 1) if below[rank - 1] <= Fraction(25, 1000)), default=None)
    high = min((rank for rank in range(1, n + 1) if below[rank - 1] >= Fraction(975, 1000)), default=None)
    expected = None if low is None or high is None else (low, high)
    assert interval_ranks(n, float(p)) == expected


@pytest.mark.parametrize(("n", "p"), [(1000, 0.5), (1000, 0.9), (2000, 0.99)])
def test_the_interval_covers_the_true_quantile(n, p):
    random = np.random.default_rng(0)
    ranks = interval_ranks(n, p)
    assert ranks is not None
    truth = math.log(1 / (1 - p))
    ordered = np.sort(random.exponential(size=(400, n)), axis=1)
    covered = ((ordered[:, ranks[0] - 1] <= truth) & (truth <= ordered[:, ranks[1] - 1])).mean()
    assert 0.925 <= covered <= 0.985  # 0.95 or a little more; one standard error is 0.011


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_a_million_samples_are_quick_and_near_the_normal_limit(p):
    n = 1_000_000
    start = time.process_time()  # which other programs do not lengthen
    ranks = interval_ranks(n, p)
    assert time.process_time() - start < 1
    half = 1.959964 * math.sqrt(n * p * (1 - p))
    assert ranks == pytest.approx((n * p - half, n * p + half), abs=3)


def test_every_sample_counts():
    ns = np.full(1000, 1_000_000)
    ns[17] = 500_000_000
    latency = latency_from(ns)
    assert latency.max_ms == 500.0
    assert latency.p99 is not None
    assert latency.p99.value_ms == 1.0


def test_nothing_timed_is_refused():
    with pytest.raises(ValueError, match="no inference was timed"):
        latency_from(np.array([], np.int64))


# --- several processes


def test_processes_that_differ_widen_the_interval_to_students():
    shares = [np.full(500, ns) for ns in (1_000_000, 1_010_000, 1_030_000, 1_040_000)]
    p50 = latency_from(*shares).p50
    logs = np.log([ns[0] / 1e6 for ns in shares])
    half = stats.t.ppf(0.975, 3) * logs.std(ddof=1) / 2
    assert p50.value_ms == 1.01
    assert (p50.low_ms, p50.high_ms) == pytest.approx((1.01 * np.exp(-half), 1.01 * np.exp(half)))


def test_processes_that_are_alike_leave_the_interval_of_order_statistics():
    ns = np.random.default_rng(0).integers(900_000, 1_100_000, 2000)
    one, several = latency_from(ns), latency_from(*[np.sort(ns)[start::4] for start in range(4)])
    for name in ("p50", "p90", "p99"):
        alone, shared = getattr(one, name), getattr(several, name)
        assert shared.value_ms == alone.value_ms
        assert shared.low_ms <= alone.low_ms
        assert shared.high_ms >= alone.high_ms
    assert several.p50.high_ms - several.p50.low_ms < 1.05 * (one.p50.high_ms - one.p50.low_ms)


def test_the_interval_covers_the_truth_where_processes_differ():
    """With a luck of 1 % for each process, that of order statistics alone holds in one trial of five."""
    random = np.random.default_rng(1)
    held, naive = [], []
    for _ in range(400):
        luck = np.exp(random.normal(scale=0.01, size=(8, 1)))
        times = (1e6 * luck * np.exp(random.normal(scale=0.02, size=(8, 250)))).astype(np.int64)
        for found, latency in ((held, latency_from(*times)), (naive, latency_from(times.ravel()))):
            found.append(latency.p50.low_ms <= 1 <= latency.p50.high_ms)
    assert 0.92 <= np.mean(held) <= 0.98  # one standard error is 0.011
    assert np.mean(naive) < 0.6


def test_a_clock_that_says_0_is_no_defect():
    latency = latency_from(np.zeros(100, np.int64), np.full(100, 5000))
    assert latency.p50.value_ms == 0
    assert latency.p50.low_ms == 0


# --- MLPerf's early-stopping estimate


@pytest.mark.parametrize(("p", "least"), [(0.9, 64), (0.99, 662)])
def test_the_fewest_queries_are_those_that_mlperf_names(p, least):
    assert stream_discards(least - 1, p) is None
    assert stream_discards(least, p) == 0


@pytest.mark.parametrize("n", [64, 100, 1000, 2000, 24_576])
def test_the_estimate_is_the_largest_t_of_the_binomial_distribution(n):
    t = stream_discards(n) + 1
    assert stats.binom.cdf(t, n, 0.1) < 0.01 <= stats.binom.cdf(t + 1, n, 0.1)


def test_the_published_query_count_gives_the_published_margin():
    """23,886 queries bound a p90 within 0.5 % of the queries, at 99 % (MLPerf inference rules, table of counts)."""
    low, high = interval_ranks(23_886, 0.9, confidence=0.99)
    assert (high - low) / 2 / 23_886 == pytest.approx(0.005, rel=0.01)


def test_the_bound_is_a_measured_sample_above_the_p90():
    ns = np.random.default_rng(0).permutation(np.arange(1, 1001)) * 1_000_000
    assert latency_from(ns).p90_bound_ms == 1000 - stream_discards(1000)
    assert latency_from(ns).p90_bound_ms > latency_from(ns).p90.value_ms
    assert latency_from(ns[:63]).p90_bound_ms is None


def test_the_mean_is_of_all():
    assert latency_from(np.array([1, 2]) * 10**6, np.array([6]) * 10**6).mean_ms == 3


def test_branches_add_up_to_the_layers():
    layers = [("a", "image", 1.0), ("b", "audio", 2.0), ("c", "image", 0.5), ("d", None, 0.25), ("e", "fusion", 4.0)]
    engine = EngineProfile(
        "engine", latency_from(np.ones(1)), (), (), 1, 1, "engine.npy",
        layers=tuple(LayerTime(name, "Conv", branch, ms) for name, branch, ms in layers),
    )  # fmt: skip
    assert engine.branches_ms == {"image": 1.5, "audio": 2.0, "other": 0.25, "fusion": 4.0}
