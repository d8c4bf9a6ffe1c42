"""Limits of a budget file against the rows of a joined table."""

import json
import math
from dataclasses import replace

import pytest
from builds import LIMITS, full_profile, ledger, profile, target, write_run

from edgekd.errors import BudgetError
from edgekd.report.compare.budgets import check_budgets, read_budgets
from edgekd.report.compare.formats import Comparison, as_json, as_markdown, check_table
from edgekd.report.compare.read import read_run


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    lower = replace(LIMITS, higher_is_better=False)
    reason = "not measured: no device"
    found = [
        *read_run(write_run(folder / "a", target("cpu", profile=full_profile()), target("pi", profile_reason=reason))),
        *read_run(write_run(folder / "b", target("cpu", ledger=ledger(metric="MAE", limits=lower)), task="depth")),
    ]
    return tuple(found)


def checks(entries, tmp_path, text):
    path = tmp_path / "budget.toml"
    path.write_text(text)
    return check_budgets(entries, read_budgets(path), path)


def outcomes(found):
    return [(check.row.task, check.row.target, check.key, check.kept) for check in found]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("latency_p50_ms = 0.2", True),
        ("latency_p50_ms = 0.01", False),
        ("latency_p90_ms = 0.2", True),
        ("latency_p99_ms = 0.01", False),
        ("throughput_per_s = 1000", True),
        ("throughput_per_s = 1e6", False),
        ("size_mb = 0.3", True),
        ("size_mb = 0.2", False),
        ("memory_mb = 90", True),
        ("memory_mb = 80", False),
        ("energy_mj = 1.84", True),
        ("energy_mj = 1.8", False),
        ("min_metric = 0.95", True),
        ("min_metric = 0.96", False),
        ("max_metric_drop = 0.0031", True),
        ("max_metric_drop = 0.003", False),
        ("max_drift_bound = 0.02", True),
        ("max_drift_bound = 0.001", False),
        ('verdict = "pass"', True),
    ],
)
def test_each_limit_is_held_against_its_figure(entries, tmp_path, text, kept):
    (check,) = checks(entries, tmp_path, f'[[limits]]\ntask = "gestures"\ntarget = "cpu"\n{text}')
    assert (check.kept, check.why) == (kept, "")
    assert check.measured is not None


def test_limits_without_names_are_for_all_rows_and_others_for_some(entries, tmp_path):
    text = '[[limits]]\nsize_mb = 0.3\n[[limits]]\ndevice = "this *"\ntarget = "c?u"\nverdict = "warn"'
    assert outcomes(checks(entries, tmp_path, text)) == [
        ("gestures", "cpu", "size_mb", True),
        ("gestures", "pi", "size_mb", True),
        ("depth", "cpu", "size_mb", True),
        ("gestures", "cpu", "verdict", True),
        ("depth", "cpu", "verdict", True),
    ]


def test_a_figure_that_was_not_measured_does_not_keep_its_limit(entries, tmp_path):
    found = checks(entries, tmp_path, "[[limits]]\nlatency_p50_ms = 1000\nenergy_mj = 1000")
    assert {(check.row.target, check.key): check.why for check in found if not check.kept} == {
        ("pi", "latency_p50_ms"): "not measured: no device",
        ("pi", "energy_mj"): "not measured: no device",
        ("cpu", "energy_mj"): "not measured: the profile was not asked for it",
    }


def test_a_verdict_is_at_least_the_wanted_one(tmp_path):
    warns = read_run(write_run(tmp_path / "w", target(ledger=ledger(0.024))))
    wanted = {
        verdict: checks(warns, tmp_path, f'[[limits]]\nverdict = "{verdict}"') for verdict in ("pass", "warn", "fail")
    }
    assert {verdict: found[0].kept for verdict, found in wanted.items()} == {"pass": False, "warn": True, "fail": True}


def test_a_metric_that_is_better_low_has_an_upper_limit_and_drops_upwards(entries, tmp_path):
    depth = '[[limits]]\ntask = "depth"\n'
    assert outcomes(checks(entries, tmp_path, f"{depth}max_metric = 0.96")) == [("depth", "cpu", "max_metric", True)]
    (drop,) = checks(entries, tmp_path, f"{depth}max_metric_drop = 0.001")  # it became lower, so better
    assert (drop.kept, drop.measured) == (True, pytest.approx(-0.0031))


def test_a_metric_that_is_no_number_keeps_no_limit(tmp_path):
    broken = read_run(write_run(tmp_path / "n", target(ledger=ledger(metrics=(("device", math.nan),)))))
    (check,) = checks(broken, tmp_path, "[[limits]]\nmin_metric = 0.1")
    assert (check.kept, check.why) == (False, "not a number: the measured value was nan")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[limits]]\nlatency_ms = 3", r"\[limits\[0\]\] has no key 'latency_ms'; did you mean 'latency_p"),
        ("[[limit]]\nsize_mb = 3", "the top level has no key 'limit'; did you mean 'limits'"),
        (
            "[[limits]]\nsize_mb = 0",
            r"limits\[0\]\.size_mb: expected a number above 0 and up to 1,000,000,000,000, got 0",
        ),
        ("[[limits]]\nsize_mb = 'small'", r"limits\[0\]\.size_mb: expected a number above 0 and up to"),
        ("[[limits]]\nsize_mb = nan", r"limits\[0\]\.size_mb: expected a finite number, got nan"),
        ("[[limits]]\nverdict = 'good'", r"limits\[0\]\.verdict: there is no 'good'"),
        ("[[limits]]\ntarget = 'cpu'", r"limits\[0\]: limits nothing; give it one of latency_p50_ms"),
        ("", r"limits"),
        ("limits = []", r"limits"),
        ("limits = 3", r"limits"),
        ("[[limits]", "not valid TOML"),
        ("[[limits]]\ntarget = 'cpi'\nsize_mb = 1", r"limits\[0\]: no row is of the target 'cpi'; did you mean"),
        ("[[limits]]\ntask = 'gesture'\nsize_mb = 1", r"no row is of the task 'gesture'; did you mean 'gestures'"),
        ("[[limits]]\ndevice = 'orin'\nsize_mb = 1", r"no row is of the device 'orin'"),
        ("[[limits]]\ntask = 'depth'\ntarget = 'pi'\nsize_mb = 1", "no row is of target 'pi', task 'depth' at once"),
        (
            "[[limits]]\nmin_metric = 0.5",
            r"limits\[0\]: min_metric 0\.5: the MAE of .* is better when lower: use max_metric",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_said(entries, tmp_path, text, said):
    with pytest.raises(BudgetError, match=r"budget\.toml: .*" + said):
        checks(entries, tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BudgetError, match=r"none\.toml: no such file"):
        read_budgets(tmp_path / "none.toml")


def test_the_table_of_checks_has_those_that_are_not_kept_first(entries, tmp_path):
    found = checks(entries, tmp_path, "[[limits]]\nlatency_p50_ms = 0.2\nsize_mb = 0.3")
    table = check_table(Comparison(entries, checks=found))
    assert [row[0] for row in table.rows] == ["NOT KEPT", *["kept"] * 5]
    assert table.rows[0][1:] == ("2", "pi", "latency_p50_ms", "not measured", "≤ 0.2 ms")
    assert table.notes == ("5 of 6 limits kept.", "latency_p50_ms of 2: not measured: no device.")
    widths = [max(map(len, column)) for column in zip(*table.rows, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= 78


def test_checks_are_in_markdown_and_json(entries, tmp_path):
    joined = Comparison(entries, checks=checks(entries, tmp_path, "[[limits]]\nlatency_p50_ms = 0.2\nverdict = 'pass'"))
    assert "### Budgets" in as_markdown(joined)
    content = json.loads(as_json(joined))
    assert content["kept"] is False
    (missed,) = (check for check in content["checks"] if not check["kept"])
    assert (missed["target"], missed["key"], missed["limit"], missed["measured"]) == ("pi", "latency_p50_ms", 0.2, None)
    assert (missed["place"], missed["why"]) == ("limits[0].latency_p50_ms", "not measured: no device")
    assert "checks" not in json.loads(as_json(Comparison(entries)))


def test_a_profile_with_too_few_inferences_keeps_no_limit_on_its_p99(tmp_path):
    few = read_run(write_run(tmp_path / "f", target(profile=profile(n=200))))
    (check,) = checks(few, tmp_path, "[[limits]]\nlatency_p99_ms = 1000")
    assert (check.kept, check.why) == (False, "withheld: 200 samples are too few for its 95 % interval")
