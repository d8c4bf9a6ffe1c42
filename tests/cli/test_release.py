"""How ``edgekd build`` and ``edgekd check`` end: what is released, what is not, and what their one line says."""

import json
import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from builds import LEDGERS, LIMITS, build, ledger, target

from edgekd.cli.build import _require_release, _warn_of_undecided
from edgekd.cli.terminal.checks import print_checks
from edgekd.config.target import Budgets
from edgekd.errors import GateFailed, TargetRefused
from edgekd.report.escape import json_text
from edgekd.runtime.manifest import null_not_finite
from edgekd.workflows.check import TargetCheck

OUT = Path("out")


def undecided(setting):
    return ledger(answers=10, surely=0.03, limits=replace(LIMITS, undecided=setting))


@pytest.mark.parametrize("state", ["pass", "warn", "undecided"])
def test_what_is_released_ends_without_an_error(state):
    _require_release(build(target(ledger=LEDGERS[state]())), OUT)


def test_the_line_of_a_rejected_build_has_the_reasons_of_the_failure_and_the_path_alone():
    failing = target(ledger=LEDGERS["fail"](), budgets=Budgets(size_mb=0.1))
    report = replace(build(failing, target("pi")), refused={"orin": "no device"})
    with pytest.raises(GateFailed) as error:
        _require_release(report, OUT)
    assert str(error.value) == (
        "the gate rejected the build: cpu: the metric is 0.159 [0.157, 0.161] worse, more than 0.015 (kept in "
        "out/cpu/rejected); refused: orin"
    )
    assert failing.warnings


def test_an_undecided_build_is_rejected_where_the_recipe_says_so():
    with pytest.raises(GateFailed, match=r"cpu: undecided: n = 30 groups, about \d+ would tell \(kept in out/cpu/rej"):
        _require_release(build(target(ledger=undecided("reject"))), OUT)


def test_without_a_rejection_a_target_that_refused_is_the_error():
    with pytest.raises(TargetRefused, match="orin refused"):
        _require_release(replace(build(), refused={"orin": "no device"}), OUT)


def test_an_undecided_build_that_is_released_warns_where_no_table_is_printed(capsys):
    _warn_of_undecided(build(target(ledger=undecided("release")), target("pi"), target("x", ledger=LEDGERS["fail"]())))
    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.splitlines()
    assert line.startswith("warning: cpu is released, undecided: n = 30 groups, about ")


def test_a_check_rejects_where_no_candidate_would_be_released():
    both = {"int8": LEDGERS["fail"](), "float32": undecided("reject")}
    assert TargetCheck("cpu", "local", both, ()).rejected
    assert not TargetCheck("cpu", "local", {**both, "float32": undecided("release")}, ()).rejected


def test_a_check_prints_each_candidates_questions_on_the_samples_that_judge_it(capsys):
    found = TargetCheck("cpu", "local", {"int8": LEDGERS["fail"](), "float32": LEDGERS["pass"]()}, ())
    print_checks([found], width=80)
    out = capsys.readouterr().out
    assert out.count("Does the compressed network still answer the same?") == 2
    assert out.count("150 validation samples in 30 groups") == 2
    assert "\nFAIL  cpu  int8\n      the metric is 0.159 [0.157, 0.161] worse, more than 0.015\n      warning: " in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_check_as_json_has_null_where_few_samples_give_no_bound():
    found = TargetCheck("cpu", "local", {"int8": ledger(surely=math.inf)}, ())
    content = json.loads(json_text(null_not_finite(msgspec.to_builtins([found]))))
    assert content[0]["ledgers"]["int8"]["rows"][-1]["loss"]["low"] is None
