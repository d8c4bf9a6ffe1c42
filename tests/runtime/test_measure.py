import math
import subprocess
import sys
import time
from fractions import Fraction
from importlib import metadata
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from edgekd.runtime.machine import cpu_model, machine_facts
from edgekd.runtime.measure import interval_ranks, latency_from


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
    start = time.perf_counter()
    ranks = interval_ranks(n, p)
    assert time.perf_counter() - start < 1
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


def test_facts_are_known_or_said_to_be_unreadable():
    facts = machine_facts(("onnxruntime", "no-such-package"))
    expected = {"cpu", "logical_cores", "governor", "int8_instructions", "memory", "os", "arch", "python"}
    assert facts.keys() == expected | {"numpy", "onnxruntime"}
    assert all(isinstance(value, str) and value for value in facts.values())
    assert facts["onnxruntime"] == metadata.version("onnxruntime")
    assert facts["cpu"] == cpu_model()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_int8_instructions_are_the_processors():
    words = Path("/proc/cpuinfo").read_text().split()
    listed = machine_facts()["int8_instructions"]
    for flag in ("avx2", "avx_vnni", "avx512_vnni", "asimddp"):
        assert (flag in words) == (flag in listed.split(", "))


def test_peak_memory_is_what_was_touched_even_after_it_is_freed():
    code = (
        "import numpy as np; from edgekd.runtime.machine import peak_rss_bytes; before = peak_rss_bytes();"
        "block = np.ones(100_000_000, np.uint8); del block; print(peak_rss_bytes() - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 90e6 < grown < 120e6


def test_a_child_does_not_inherit_its_parents_peak():
    block = np.ones(250_000_000, np.uint8)
    code = "from edgekd.runtime.machine import peak_rss_bytes; print(peak_rss_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 5e6 < child < 200e6 < len(block)
