"""Stage details in a whole build: what it says is what the ledger measured, and it can be switched off."""

import json

import pytest
from commands import build_arguments, copy_cache, edgekd


@pytest.fixture(scope="module")
def details(built):
    (target,) = built.report()["targets"]
    return target["details"]["logits"]


def test_the_shares_that_are_right_are_the_metrics_of_the_ledger(built, details):
    (target,) = built.report()["targets"]
    metrics = {row["stage"]: row["metric"] for row in target["ledger"]["rows"]}
    expected = {"shipped": metrics["device"], "student": metrics["student"], "teacher": metrics["teacher"]}
    assert details["mean_score"] == pytest.approx(expected)
    last = target["ledger"]["rows"][-1]
    (answers,) = last["answers"].values()
    assert details["changes"]["count"] / details["samples"] == pytest.approx(answers["changed"]["mean"])


def test_classes_have_their_names_and_samples_their_pictures(details):
    rows = details["classes"]["rows"]
    assert [row["name"] for row in rows] == list("0123456789")
    assert sum(row["support"] for row in rows) == details["labelled"] == sum(map(sum, details["classes"]["confusion"]))
    assert all(sample["said"].keys() == {"shipped", "student", "teacher"} for sample in details["worst"])
    assert any(sample["pictures"] for sample in details["worst"] + details["flips"])


def test_samples_are_left_out_where_the_recipe_says_so_and_nothing_is_trained_for_it(built, details, tmp_path):
    cache = copy_cache(built.cache, tmp_path / "cache")
    process = edgekd(*build_arguments("out", cache), "--set", "report.samples=false", "--json", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    events = map(json.loads, process.stdout.splitlines())
    ran = {event["stage"].split()[0] for event in events if event["event"] == "start"}
    assert ran == {"details"}
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    found = report["targets"][0]["details"]["logits"]
    assert (found["shown"], found["worst"], found["flips"]) == (False, [], [])
    assert found["classes"] == details["classes"]
