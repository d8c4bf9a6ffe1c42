import json
import math
from dataclasses import replace

import pytest
from builds import LIMITS, build, ledger, target

from edgekd.cli.terminal import print_report
from edgekd.report.build.files import report_json, report_markdown
from edgekd.report.build.robustness import describe_worst, robustness_line, robustness_table
from edgekd.runtime.corruption import NetworkRobustness, Robustness

ENGINE = NetworkRobustness(0.9, {"accel": 0.5, "audio": 0.7}, {"accel": 0.85, "audio": 0.8})
NETWORKS = Robustness(1.0, {
    "teacher": NetworkRobustness(0.95, {"accel": 0.6, "audio": 0.7}, {"accel": 0.9, "audio": 0.9}),
    "student": NetworkRobustness(0.94, {"accel": 0.6, "audio": 0.7}, {"accel": 0.9, "audio": 0.9}),
    "pruned": NetworkRobustness(0.93, {"accel": 0.6, "audio": 0.7}, {"accel": 0.9, "audio": 0.9}),
})  # fmt: skip


def measured(*targets):
    return replace(build(*(targets or (target(robustness=ENGINE),))), robustness=NETWORKS)


def test_the_table_has_every_figure():
    table = robustness_table(measured())
    assert [column.name for column in table.columns] == ["inputs", "teacher", "student", "pruned", "shipped"]
    assert table.rows == (
        ("as they are", "0.9500", "0.9400", "0.9300", "0.9000"),
        ("without accel", "0.6000", "0.6000", "0.6000", "0.5000"),
        ("without audio", "0.7000", "0.7000", "0.7000", "0.7000"),
        ("accel noisy", "0.9000", "0.9000", "0.9000", "0.8500"),
        ("audio noisy", "0.9000", "0.9000", "0.9000", "0.8000"),
    )
    page = report_markdown(measured())
    assert "## Robustness" in page
    for told in ("training mean of each channel", "1 training standard deviation of each", "150 test samples"):
        assert told in page


def test_with_several_targets_each_engine_has_its_column():
    report = measured(target(robustness=ENGINE), target("board"))
    table = robustness_table(report)
    assert [column.name for column in table.columns][-2:] == ["cpu", "board"]
    assert {row[-1] for row in table.rows} == {"not measured"}
    assert {row[-2] for row in table.rows} == {"0.9000", "0.5000", "0.7000", "0.8500", "0.8000"}


def test_where_nothing_was_measured_it_says_so_and_why():
    report = replace(build(), robustness_reason="not measured: robustness.measure is false in the recipe")
    assert "Not measured: robustness.measure is false in the recipe." in report_markdown(report)
    assert report_json(report)["robustness"] == {
        "noise": None, "networks": None, "engines": None,
        "reason": "not measured: robustness.measure is false in the recipe",
    }  # fmt: skip


def test_json_has_all_and_null_for_what_is_no_number():
    odd = replace(ENGINE, dropped={"accel": math.nan, "audio": 0.7})
    content = json.loads(json.dumps(report_json(measured(target(robustness=odd))), allow_nan=False))
    assert content["robustness"]["noise"] == 1.0
    assert content["robustness"]["reason"] is None
    assert content["robustness"]["networks"]["student"]["dropped"] == {"accel": 0.6, "audio": 0.7}
    assert content["robustness"]["engines"]["cpu"]["noisy"] == {"accel": 0.85, "audio": 0.8}
    assert content["robustness"]["engines"]["cpu"]["dropped"]["accel"] is None
    assert content["not_finite"]["robustness.engines.cpu.dropped.accel"] == "nan"


def test_the_worst_is_the_lowest_or_where_less_is_better_the_highest():
    assert describe_worst(ENGINE, True) == "worst without accel: 0.5000 instead of 0.9000"
    assert describe_worst(ENGINE, False) == "worst accel noisy: 0.8500 instead of 0.9000"
    odd = replace(ENGINE, noisy={"accel": 0.1, "audio": math.nan})
    assert describe_worst(odd, True) == "worst audio noisy: NaN instead of 0.9000"


def test_one_line_names_the_engine_that_loses_most():
    better = replace(ENGINE, dropped={"accel": 0.8, "audio": 0.8})
    assert robustness_line(measured()) == "Robustness: macro-F1 worst without accel: 0.5000 instead of 0.9000."
    two = measured(target(robustness=better), target("board", robustness=ENGINE))
    assert robustness_line(two) == "Robustness of board: macro-F1 worst without accel: 0.5000 instead of 0.9000."
    lower = ledger(limits=replace(LIMITS, higher_is_better=False))
    errors = measured(
        target(ledger=lower, robustness=NetworkRobustness(1.0, {"a": 2.0, "b": 5.0}, {"a": 1.0, "b": 0.5}))
    )
    assert "worst without b: 5.0000 instead of 1.0000" in robustness_line(errors)


@pytest.mark.parametrize("verbose", [True, False])
def test_the_terminal_has_one_line_or_the_table(capsys, verbose):
    print_report(measured(), width=80, verbose=verbose)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert ("without audio" in out) == verbose
    assert out.count("0.5000 instead of 0.9000") == (not verbose)
    print_report(build(), width=80, verbose=verbose)
    assert ("Not measured." in capsys.readouterr().out) == verbose
