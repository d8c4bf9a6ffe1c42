import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from builds import LEDGERS, build, full_profile, further, ledger, profile, target, without_a_graph_of_the_teacher

from edgekd.config.target import Budgets
from edgekd.gram.verdict import QUESTIONS
from edgekd.report.build.files import report_json, report_markdown, write_report
from edgekd.report.compare.read import read_run
from edgekd.report.ledger_tables import question_table
from edgekd.report.questions import evidence_of

REQUIRED = {"target", "device", "runtime", "precision", "latency_ms", "metric", "gram", "size_bytes", "peak_rss_bytes"}


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}.{index}".lstrip("."))
    else:
        yield path, value


def nulls(row):
    return {path for path, value in leaves({k: v for k, v in row.items() if k != "not_measured"}) if value is None}


def test_a_measured_row_is_complete_and_has_no_null():
    row = report_json(build(target(profile=full_profile())))["rows"][0]
    assert set(row) >= REQUIRED
    assert set(row["latency_ms"]) >= {"p50", "p90", "p99", "n"}
    assert set(row["metric"]) >= {"name", "teacher", "student", "finetuned", "device"}
    assert set(row["gram"]) >= {"drift", "bound", "tau", "verdict"}
    assert nulls(row) == set()
    assert row["not_measured"] == {}
    low, high = row["latency_ms"]["interval_95"]["p50"]
    assert low <= row["latency_ms"]["p50"] <= high


def test_figures_are_those_of_the_ledger_and_the_profile():
    result = target()
    row = report_json(build(result))["rows"][0]
    p50 = {engine.name: engine.latency.p50.value_ms for engine in result.profile.engines}
    assert row["latency_ms"]["p50"] == p50["shipped"]
    assert row["baselines"]["teacher"]["latency_ms"]["p50"] == p50["teacher"]
    assert row["speedup_p50"]["student"] == pytest.approx(p50["student"] / p50["shipped"])
    assert row["gram"]["bound"] == result.ledger.row("device").to_reference.bound
    assert row["size_bytes"] == result.sizes["shipped"]
    assert row["size_ratio"]["teacher"] == pytest.approx(result.sizes["teacher"] / result.sizes["shipped"])


def test_what_a_profile_has_beside_latency_is_in_the_row():
    result = target(profile=full_profile())
    row = report_json(build(result))["rows"][0]
    engine = result.measured("shipped")
    assert row["throughput_per_s"] == pytest.approx(1000 / engine.latency.mean_ms)
    assert row["latency_ms"]["p90_bound"] == engine.latency.p90_bound_ms
    assert row["compute_ms"]["p50"] == engine.compute.p50.value_ms
    assert (row["energy_mj"], row["energy_rail"]) == (1.84, "RAPL package-0")
    assert row["branches_ms"] == engine.branches_ms
    assert (row["paced"]["rate_hz"], row["paced"]["late"]) == (30, 2)
    assert row["paced"]["latency_ms"]["p50"] == engine.paced.latency.p50.value_ms
    assert row["sustained"] == {"seconds": 60, "slowdown": 1.04, "throttled": False, "hottest_c": 51}
    ledger = result.ledger
    assert row["metric"]["change"] == pytest.approx(ledger.row("device").metric - ledger.row("student").metric)


def test_what_a_profile_lacks_says_why():
    lacking = profile()
    known = replace(lacking.engines[-1], not_measured={"energy": "not measured: no rail", "layers": "not measured: no"})
    row = report_json(build(target(profile=replace(lacking, engines=(*lacking.engines[:-1], known)))))["rows"][0]
    reasons = row["not_measured"]
    assert reasons["energy_mj"] == reasons["energy_rail"] == "not measured: no rail"
    assert reasons["branches_ms"] == "not measured: no"
    assert reasons["paced"] == reasons["compute_ms"] == "not measured: the profile was not asked for it"


def test_a_system_that_does_not_tell_of_throttling_is_not_taken_for_a_cool_one():
    quiet = further(profile().engines[-1])
    windows = tuple(replace(window, temperature_c=None) for window in quiet.sustained.windows)
    quiet = replace(quiet, sustained=replace(quiet.sustained, throttled=None, windows=windows))
    row = report_json(build(target(profile=replace(profile(), engines=(quiet,)))))["rows"][0]
    for name in ("throttled", "hottest_c"):
        assert row["sustained"][name] is None
        assert row["not_measured"][f"sustained.{name}"] == "not measured: the system does not tell"


def test_p99_of_too_few_samples_is_null_with_a_reason():
    row = report_json(build(target(profile=profile(n=200))))["rows"][0]
    assert row["latency_ms"]["p90"] is not None
    assert row["latency_ms"]["p99"] is None
    assert row["not_measured"]["latency_ms.p99"] == "withheld: 200 samples are too few for its 95 % interval"


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(target(profile=profile(n=200)), id="few samples"),
        pytest.param(target(profile_reason="not measured: no device"), id="no profile"),
        pytest.param(without_a_graph_of_the_teacher(), id="no graph of the teacher"),
        pytest.param(target(ledger=ledger(pruned=False)), id="not pruned"),
        pytest.param(target(ledger=ledger(metrics=(("device", math.nan),))), id="metric is NaN"),
        pytest.param(target(sizes={"shipped": 10}, deploy_logit_error=math.inf), id="no baselines, infinite error"),
    ],
)
def test_every_null_has_a_reason_and_every_reason_a_null(result):
    row = report_json(build(result))["rows"][0]
    assert nulls(row) == set(row["not_measured"]) != set()
    assert all(row["not_measured"].values())


def test_without_a_profile_nothing_reads_as_measured():
    report = build(target(profile_reason="not measured: no device was given"))
    row = report_json(report)["rows"][0]
    assert row["not_measured"]["latency_ms.p50"] == "not measured: no device was given"
    assert row["latency_ms"]["n"] is None
    assert row["peak_rss_bytes"] is None
    page = report_markdown(report)
    assert "not measured: no device was given" in page
    assert not re.search(r" 0\.0+ ", page)


def test_a_profile_that_is_absent_without_a_reason_is_refused():
    with pytest.raises(ValueError, match="reason"):
        target(profile=None)


def test_a_metric_that_is_not_a_number_is_null_everywhere_and_fails():
    report = build(target(ledger=ledger(metrics=(("device", math.nan),))))
    content = report_json(report)
    json.dumps(content, allow_nan=False)
    assert content["rows"][0]["not_measured"]["metric.device"] == "not a number: the measured value was nan"
    assert content["not_finite"]["targets.0.ledger.rows.5.metric"] == "nan"
    assert content["verdict"] == "fail"


def test_the_gram_verdict_is_of_the_drift_and_the_row_verdict_of_everything():
    row = report_json(build(target(ledger=ledger(metrics=(("device", 0.5),)))))["rows"][0]
    assert (row["gram"]["verdict"], row["verdict"]) == ("pass", "fail")


@pytest.mark.parametrize(
    ("budgets", "verdict"),
    [
        (Budgets(latency_ms=5, size_mb=1, memory_mb=200), "pass"),
        (Budgets(latency_ms=0.001), "warn"),
        (Budgets(size_mb=0.2), "warn"),
        (Budgets(memory_mb=10), "warn"),
    ],
)
def test_a_missed_budget_warns(budgets, verdict):
    result = target(budgets=budgets)
    assert result.verdict == verdict
    assert report_json(build(result))["rows"][0]["verdict"] == verdict
    assert ("**not kept**" in report_markdown(build(result))) == (verdict == "warn")


def test_an_unmeasured_budget_is_not_kept():
    result = target(profile_reason="not measured: no device", budgets=Budgets(latency_ms=5))
    assert result.reasons == ("latency p50 not measured, budget 5 ms",)
    assert "- **open**: latency p50 not measured, budget 5 ms" in report_markdown(build(result))


def test_reasons_of_a_failure_do_not_mix_with_what_only_warns():
    result = target(ledger=LEDGERS["fail"](), budgets=Budgets(size_mb=0.1))
    assert result.verdict == "fail"
    (reason,) = result.reasons
    assert reason.startswith("the metric is ")
    assert [warning.split()[0] for warning in result.warnings] == ["Gram", "size"]
    row = report_json(build(result))["rows"][0]
    assert (row["reasons"], row["warnings"]) == (list(result.reasons), list(result.warnings))


def test_a_missed_budget_is_a_reason_where_nothing_is_worse_and_a_warning_where_something_is():
    missed = Budgets(size_mb=0.1)
    assert target(budgets=missed).reasons == ("size 0.232 MB, budget 0.1 MB",)
    undecided = target(ledger=LEDGERS["undecided"](), budgets=missed)
    assert undecided.verdict == "undecided"
    assert undecided.reasons == undecided.ledger.reasons
    assert undecided.warnings == ("size 0.232 MB, budget 0.1 MB",)


@pytest.mark.parametrize("state", LEDGERS)
def test_the_row_has_the_answers_and_every_question(state):
    kept = LEDGERS[state]()
    content = report_json(build(target(ledger=kept)))
    row, answers = content["rows"][0], kept.rows[-1].first
    assert row["questions"] == {answered.question: answered.verdict for answered in kept.questions}
    assert (row["verdict"], row["released"], content["released"]) == (state, state != "fail", state != "fail")
    assert row["answers"]["divergence_bound"] == answers.divergence.high
    assert row["answers"]["max_divergence"] == 0.02
    assert row["answers"]["changed"] == answers.changed.mean
    details = content["targets"][0]["questions"]
    assert [question["question"] for question in details] == ["learned", "behaviour", "structure"]
    figures = {figure["name"]: figure for figure in details[1]["figures"]}
    assert (figures["loss"]["limit"], figures["divergence"]["high"]) == (0.015, answers.divergence.high)
    assert details[1]["verdict"] == row["questions"]["behaviour"]
    assert details[1]["asked"] == "Does the compressed network still answer the same?"


@pytest.mark.parametrize("state", LEDGERS)
def test_the_page_answers_three_questions_apart(state):
    kept = LEDGERS[state]()
    page = report_markdown(build(target(ledger=kept)))
    for answered in kept.questions:
        assert f"### {QUESTIONS[answered.question]} {answered.verdict.upper()}\n\n| figure" in page
    assert f"- **{state.upper()}** cpu: " in page
    assert ("no bundle was released; what was rejected is `cpu/rejected`" in page) == (state == "fail")
    assert ("released all the same, since gate.undecided is 'release'" in page) == (state == "undecided")


def test_a_figure_behind_a_question_is_no_worse_than_the_answer():
    def states(kept):
        found = evidence_of(kept, kept.questions[1])
        return {figure.name: figure.verdict for figure in found}

    assert states(LEDGERS["pass"]()) == {"divergence": "pass", "changed": "pass", "loss": "pass", "error": None}
    undecided = {"divergence": "pass", "changed": "undecided", "loss": "undecided", "error": None}
    assert states(LEDGERS["undecided"]()) == undecided
    assert states(LEDGERS["fail"]()) == {"divergence": "fail", "changed": "fail", "loss": "fail", "error": None}
    excused = ledger(0.03, answers=40)  # the metric holds
    assert excused.questions[1].verdict == "warn"
    assert states(excused) == {"divergence": "warn", "changed": "warn", "loss": "pass", "error": None}


def test_bounds_that_a_few_samples_do_not_give_are_null_with_a_reason(tmp_path):
    kept = ledger(surely=math.inf)
    content = report_json(build(target(ledger=kept)))
    json.dumps(content, allow_nan=False)
    assert content["not_finite"]["targets.0.ledger.rows.5.loss.low"] == "-inf"
    shown = {row[0]: row[2] for row in question_table(kept, kept.questions[1]).rows}
    assert shown["macro-F1 worse by"] == "too few samples"
    write_report(build(target(ledger=kept)), tmp_path)
    (entry,) = read_run(tmp_path)
    assert entry.ledger.row("device").loss == kept.row("device").loss


def test_the_worst_target_decides():
    assert build(target(), target("b", ledger=ledger(0.2))).verdict == "fail"
    assert build(target(), target("b", ledger=ledger(0.024))).verdict == "warn"
    assert build(target(), target("b")).verdict == "pass"


def test_an_engine_that_is_no_faster_says_so_with_the_times_that_it_compares():
    level = target(profile=profile(times=(0.4, 0.2, 0.2)))
    assert level.remark.startswith("INT8 is not clearly faster than the float student on this device: p50 0.199 (")
    assert level.remark.endswith(" ms, and the intervals overlap")
    assert level.remark in report_markdown(build(level))
    slow = target(profile=profile(times=(0.4, 0.2, 0.4)))
    assert slow.remark.startswith("INT8 is slower than the float student on this device: p50 0.")
    as_float = replace(slow, precision="float32")
    assert as_float.remark.startswith("float32 is slower than the float student on this device")
    engines = tuple(
        replace(engine, name="float" if engine.name == "student" else engine.name) for engine in level.profile.engines
    )
    imported = replace(level, baselines=("float",), profile=replace(level.profile, engines=engines))
    assert "the imported float network" in imported.remark
    assert replace(imported, precision="float32").remark is None
    assert target().remark is None


def test_files_are_written_and_nothing_else(tmp_path):
    report = build()
    write_report(report, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
        "training",
    ]
    read = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert read == report_json(report)
    assert read["schema_version"] == 4
    assert [stage["name"] for stage in read["stages"]] == [stage.name for stage in report.stages]


def test_reports_need_no_terminal_library():
    source = (
        "import sys, edgekd.report.build.files; sys.exit(not {'rich', 'torch', 'onnxruntime'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


def test_the_page_says_what_was_measured_how_and_where():
    page = report_markdown(build())
    for told in ("# gestures: PASS", "Xeon", "batch 1", "2000", "taking turns of 50", "order statistics", "torch"):
        assert told in page
    assert "nan" not in page.lower().split()


def test_the_python_of_the_page_is_offered_only_for_a_released_bundle():
    assert 'with edgekd.load("gestures-cpu") as engine:' in report_markdown(build())
    assert "edgekd.load" not in report_markdown(build(target(ledger=ledger(0.2))))
    assert "edgekd.load" not in report_markdown(build(target(bundle=None)))


def test_the_training_shows_the_last_epoch_and_the_weight_that_held_each_scope():
    page = report_markdown(build())
    training = page[page.index("### Training") : page.index("### Versions")]
    cells = {
        row.split("|")[1].strip(): [c.strip() for c in row.split("|")[2:-1]]
        for row in training.splitlines()
        if "|" in row
    }
    assert cells["figure"] == ["teacher", "student"]
    assert cells["loss"] == ["0.25", "0.5"]
    assert cells["weight.intra"] == ["–", "36.54"]
    assert "teacher 2 of 2, student 1 of 1" in training
    assert len(report_json(build())["training"]["teacher"]) == 2
