"""Which candidate ships, from figures of every kind."""

from dataclasses import replace

import pytest

from edgekd.config.target import Budgets
from edgekd.gram.intervals import Estimate
from edgekd.pipeline.target.select import choose
from edgekd.report.results import CandidateResult
from edgekd.runtime.measure.results import Quantile

INT8 = CandidateResult(
    "int8", "int8", "pass", 0.9, Estimate(0.002, 0.001, 0.004), 0.01, 0.02, Quantile(0.50, 0.49, 0.51), 50_000,
    70_000_000,
)  # fmt: skip
#: As measured its output diverges more, and its Gram drifts more; the bound of the divergence is what counts.
NNCF = replace(INT8, name="int8-nncf", divergence=Estimate(0.0025, 0.002, 0.003), bound=0.02)
FLOAT = replace(INT8, name="float32", precision="float32", divergence=Estimate(0.001, 0.0, 0.002), size_bytes=200_000)


def timed(candidate, low, value, high):
    return replace(candidate, p50=Quantile(value, low, high))


FAST = timed(FLOAT, 0.29, 0.30, 0.31)


@pytest.mark.parametrize(
    ("candidates", "chosen", "reason"),
    [
        ([INT8], "int8", "the only candidate"),
        ([INT8, FAST], "float32", "0.3 ms against 0.5 ms (int8)"),
        ([INT8, FLOAT], "int8", "not clearly slower than float32, and the target prefers it"),
        ([INT8, timed(FLOAT, 0.505, 0.52, 0.53)], "int8", "not clearly slower than float32, and the target prefers it"),
        (
            [INT8, NNCF, FLOAT],
            "int8-nncf",
            "not clearly slower than int8, float32, and the target prefers it; "
            "of the int8 ones its output diverges least",
        ),
        ([INT8, NNCF], "int8-nncf", "not clearly slower than int8; of the int8 ones its output diverges least"),
        (
            [INT8, NNCF, timed(FLOAT, 1, 2, 3)],
            "int8-nncf",
            "0.5 ms against 2 ms (float32); not clearly slower than int8; of the int8 ones its output diverges least",
        ),
        ([INT8, timed(NNCF, 0.6, 0.61, 0.62)], "int8", "0.5 ms against 0.61 ms (int8-nncf)"),
        ([replace(INT8, verdict="fail"), timed(FLOAT, 1, 2, 3)], "float32", "the only one left; the gate rejects int8"),
        ([replace(c, verdict="fail") for c in (INT8, FAST)], "int8", "the gate rejects every candidate"),
        ([replace(INT8, verdict="warn"), timed(FLOAT, 1, 2, 3)], "int8", "0.5 ms against 2 ms (float32)"),
        (
            [replace(c, p50=None) for c in (INT8, FLOAT)],
            "int8",
            "the target's first choice, since no latency was measured",
        ),
        (
            [replace(c, p50=None) for c in (INT8, NNCF, FLOAT)],
            "int8-nncf",
            "the target's first choice, since no latency was measured; of the int8 ones its output diverges least",
        ),
    ],
)
def test_the_fastest_that_the_gate_lets_through_ships(candidates, chosen, reason):
    choice = choose(candidates, Budgets())
    assert (choice.name, choice.reason) == (chosen, reason)


def test_a_budget_comes_before_speed():
    smaller = choose([INT8, FAST], Budgets(size_mb=0.1))
    assert smaller.name == "int8"
    assert smaller.reason == "the only one left; it keeps more of the budgets than float32"
    assert choose([INT8, FAST], Budgets(size_mb=0.01)).name == "float32", "none keeps it"
    assert choose([INT8, FAST], Budgets(size_mb=0.1, latency_ms=0.4)).name == "float32", "each keeps one"
    assert choose([timed(INT8, 0.2, 0.2, 0.2), FAST], Budgets(memory_mb=60)).name == "int8"


def test_slack_lets_less_divergence_cost_some_time():
    closer = timed(NNCF, 0.515, 0.52, 0.525)
    assert choose([INT8, closer], Budgets()).name == "int8"
    found = choose([INT8, closer], Budgets(), slack=0.05)
    assert found.name == "int8-nncf"
    assert found.reason == "not clearly more than 5% slower than int8; of the int8 ones its output diverges least"
    assert choose([INT8, timed(NNCF, 0.54, 0.55, 0.56)], Budgets(), slack=0.05).name == "int8"


def test_what_is_undecided_ships_only_where_the_gate_releases_it_or_nothing_else_is_left():
    undecided = replace(FAST, verdict="undecided")
    assert choose([INT8, undecided], Budgets()).name == "float32"
    choice = choose([INT8, undecided], Budgets(), undecided_ships=False)
    assert choice.name == "int8"
    assert "undecided, which gate.undecided rejects: float32" in choice.reason
    assert choose([undecided], Budgets(), undecided_ships=False).name == "float32"
