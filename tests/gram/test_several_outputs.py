"""A network with several outputs: each is judged by its own kind, the worst decides, and it is named."""

import numpy as np
import pytest

from edgekd.gram.answers import compare_outputs, joint_divergences, joint_errors, sample_divergences, sample_errors
from edgekd.gram.gate import GateRules, keep_ledger
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.metric import LedgerMetrics
from edgekd.gram.output_kind import MAX_DIVERGENCE, OutputKind
from edgekd.gram.probe import Probe
from edgekd.gram.verdict import GateLimits

COUNT = 400
KINDS = {"scores": OutputKind("classes"), "boxes": OutputKind("regression"), "vector": OutputKind("embedding")}
RULES = GateRules("metric", GateLimits(0.02, 0.04, 0.05, 0.015), Bootstrap(resamples=200), KINDS)
RANDOM = np.random.default_rng(0)
EXACT = {
    "scores": 4 * RANDOM.normal(size=(COUNT, 5)).astype(np.float32),
    "boxes": RANDOM.normal(size=(COUNT, 4, 2)).astype(np.float32),
    "vector": RANDOM.normal(size=(COUNT, 16)).astype(np.float32),
}


def probe_of(**changes):
    taps = {"a": EXACT["vector"]}
    return Probe(np.arange(COUNT).astype(str), {**EXACT, **changes}, taps)


def ledger_of(**changes):
    probes = {"float": probe_of(), "quantized": probe_of(**changes)}
    return keep_ledger(probes, LedgerMetrics(dict.fromkeys(probes)), RULES, None)


def test_all_of_them_pass_where_they_are_the_same():
    ledger = ledger_of()
    assert ledger.verdict == "pass"
    assert list(ledger.rows[-1].answers) == list(ledger.kinds) == list(KINDS)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("scores", -EXACT["scores"]),
        ("boxes", 0.5 * EXACT["boxes"]),
        ("vector", EXACT["vector"][:, ::-1]),
    ],
)
def test_one_that_is_broken_fails_the_build_and_is_named(name, broken):
    ledger = ledger_of(**{name: broken})
    assert ledger.verdict == "fail"
    behaviour = ledger.questions[1]
    assert behaviour.verdict == "fail"
    assert all(reason.startswith(f"{name}: ") for reason in behaviour.reasons)
    others = [each for key, each in ledger.rows[-1].answers.items() if key != name]
    assert all(each.error.mean == 0 for each in others)


def test_what_a_repair_goes_by_counts_each_of_them_in_its_own_measure():
    changed = {**EXACT, "boxes": EXACT["boxes"] + 0.1}
    joint = joint_divergences(changed, EXACT, KINDS)
    alone = sample_divergences(changed["boxes"], EXACT["boxes"], KINDS["boxes"])
    unit = MAX_DIVERGENCE["classes"] / MAX_DIVERGENCE["regression"]
    np.testing.assert_allclose(joint, alone * unit / 3, atol=1e-9)
    errors = joint_errors(changed, EXACT, KINDS)
    np.testing.assert_allclose(errors, sample_errors(changed["boxes"], EXACT["boxes"]) / 3)
    only = {"boxes": KINDS["boxes"]}
    np.testing.assert_array_equal(joint_divergences(changed, EXACT, only), alone)


def test_an_output_that_one_of_them_lacks_is_named():
    lacking = Probe(np.arange(COUNT).astype(str), {"boxes": EXACT["boxes"]}, {})
    with pytest.raises(ValueError, match="the outputs 'scores' are None and"):
        compare_outputs(lacking, probe_of(), KINDS, None, Bootstrap())
