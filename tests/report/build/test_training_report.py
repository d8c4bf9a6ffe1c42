"""What training did, and what a lost modality costs, in a whole build's report: real digits, few epochs."""

import json
import shutil
from xml.etree import ElementTree

import numpy as np
import onnxruntime
import pytest
from commands import build_arguments, copy_cache, edgekd, events, stage_folder, started

from edgekd.runtime.corruption import add_noise, load_statistics

VIEWS = ("fou", "mor", "zer")


def test_every_epoch_of_every_training_is_in_the_report(built):
    training = built.report()["training"]
    assert {name: len(epochs) for name, epochs in training.items()} == {"teacher": 4, "student": 4, "pruned": 3}
    assert set(training["teacher"][0]) == {"loss", "validation", "kept"}
    assert [epoch["kept"] for epoch in training["student"]] == [0, 0, 0, 1]  # the recipe keeps the last
    added = {f"{what}.{name}" for what in ("loss", "weight", "share") for name in ("intra", "sample")}
    every = {"loss", "ce", "kd", "validation", "drift", "kept", *added}
    for name in ("student", "pruned"):
        assert all(set(epoch) == every for epoch in training[name])
    assert training["student"][-1]["share.intra"] == pytest.approx(1.0, rel=0.1)
    assert training["student"][-1]["share.sample"] == pytest.approx(0.1, rel=0.1)
    assert 0 < training["student"][-1]["drift"] < 1


def test_the_progress_tells_loss_validation_and_drift(built, tmp_path):
    cache = copy_cache(built.cache, tmp_path / "cache", without=("distill", "prune"))
    found = edgekd(*build_arguments(tmp_path / "out", cache), "--json", cwd=tmp_path)
    told = [e["note"] for e in events(found.stdout) if e["event"] == "advance" and e["stage"] == "distill"]
    last = built.report()["training"]["student"][-1]
    expected = f"loss {last['loss']:.3f}, validation {last['validation']:.3f}, drift {last['drift']:.4f}"
    assert told[-1] == expected


def test_each_picture_is_svg_and_shown_in_the_page(built):
    page = (built.output / "report.md").read_text("utf-8")
    for name in ("teacher", "student", "pruned"):
        assert f"(training/{name}.svg)" in page
        root = ElementTree.parse(built.output / "training" / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def figures(built):
    return built.report()["robustness"]


def test_clean_figures_are_those_of_the_ledger(built):
    (row,) = built.report()["rows"]
    found = figures(built)
    assert {name: found["networks"][name]["clean"] for name in ("teacher", "student")} == {
        name: row["metric"][name] for name in ("teacher", "student")
    }
    assert found["networks"]["pruned"]["clean"] == row["metric"]["finetuned"]
    assert found["engines"]["cpu"]["clean"] == pytest.approx(row["metric"]["shipped"], abs=0.01)
    for one in (*found["networks"].values(), *found["engines"].values()):
        assert set(one["dropped"]) == set(one["noisy"]) == set(VIEWS)


def test_the_engines_figures_are_those_of_its_own_file(built):
    with np.load(stage_folder(built.cache, "export") / "test.npz") as test:
        feeds = {name: test[f"input.{name}"] for name in VIEWS}
        labels = test["labels"]
    known = load_statistics(stage_folder(built.cache, "robustness") / "channels.npz")
    session = onnxruntime.InferenceSession(built.bundle / "deploy.onnx", providers=["CPUExecutionProvider"])

    def score(**changed):
        return float((session.run(["logits"], {**feeds, **changed})[0].argmax(1) == labels).mean())

    found = figures(built)["engines"]["cpu"]
    assert found["clean"] == score()
    for index, name in enumerate(VIEWS):
        assert found["dropped"][name] == score(**{name: np.tile(known[name].mean, (len(labels), 1))})
        assert found["noisy"][name] == score(**{name: add_noise(known[name], 1.0, (0, index))(feeds[name])})


def test_the_terminal_tells_the_worst_alone_and_verbose_all(built, tmp_path):
    (line,) = [line for line in built.process.stdout.splitlines() if line.strip().startswith("Robustness: ")]
    cases = figures(built)["engines"]["cpu"]
    worst = min(*cases["dropped"].values(), *cases["noisy"].values())
    assert f"{worst:.4f} instead of {cases['clean']:.4f}" in line
    said = edgekd(*build_arguments(tmp_path, built.cache), "-v", cwd=tmp_path).stdout
    for view in VIEWS:
        assert f"without {view}" in said
        assert f"{view} noisy" in said


def test_a_report_from_the_cache_is_the_same(built, tmp_path):
    found = edgekd(*build_arguments(tmp_path / "again", built.cache), "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert started(found.stdout) == []
    again = json.loads((tmp_path / "again" / "report.json").read_text("utf-8"))
    first = built.report()
    assert {key: again[key] for key in ("training", "robustness", "rows")} == {
        key: first[key] for key in ("training", "robustness", "rows")
    }
    for picture in (built.output / "training").iterdir():
        assert picture.read_bytes() == (tmp_path / "again" / "training" / picture.name).read_bytes()


def test_it_can_be_switched_off(built, tmp_path):
    shutil.copytree(built.output, tmp_path / "out")
    cache = copy_cache(built.cache, tmp_path / "cache")
    found = edgekd(*build_arguments(tmp_path / "out", cache, robustness__measure="false"), "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    planned = events(found.stdout)[0]["stages"]
    assert not {"robustness", "robustness_shipped cpu"} & set(planned)
    report = events(found.stdout)[-1]["report"]
    assert report["robustness"]["networks"] is report["robustness"]["engines"] is None
    assert report["robustness"]["reason"] == "not measured: robustness.measure is false in the recipe"
    assert "robustness.measure is false" in (tmp_path / "out" / "report.md").read_text("utf-8")


def test_checking_measures_no_robustness(built, tmp_path):
    arguments = ["check", *build_arguments(tmp_path, built.cache)[1:]]
    found = edgekd(*arguments, "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert not {"robustness", "robustness_shipped cpu"} & set(events(found.stdout)[0]["stages"])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("robustness.noise=0", "robustness.noise: expected a number above 0 and up to 1,000, got 0"),
        ("robustness.nois=1", "[robustness] has no key 'nois'; did you mean 'noise'?"),
        ("distill.modality_dropout=1.5", "distill.modality_dropout: expected"),
        ("distill.modality_dropout=-0.1", "distill.modality_dropout: expected"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(tmp_path, setting, said):
    found = edgekd("recipe", "show", "--recipe", "digits", "--set", setting, cwd=tmp_path)
    assert found.returncode == 3
    (line,) = found.stderr.splitlines()
    assert said in line


def test_what_is_tuned_for_int8_has_a_picture_too(built, tmp_path):
    cache = copy_cache(built.cache, tmp_path / "cache")
    # The float network is rejected itself, so what is left is to tune it.
    change = {
        "gate__structure": "strict", "gate__tau_pass": 1e-7, "gate__tau_fail": 2e-7,
        "quantize__repair": "auto", "quantize__qat__epochs": 2,
    }  # fmt: skip
    found = edgekd(*build_arguments(tmp_path / "out", cache, **change), cwd=tmp_path)
    assert found.returncode == 20, found.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert [set(epoch) >= {"loss", "share.sample", "drift"} for epoch in report["training"]["qat cpu"]] == [True] * 2
    ElementTree.parse(tmp_path / "out" / "training" / "qat-cpu.svg")
    assert "(training/qat-cpu.svg)" in (tmp_path / "out" / "report.md").read_text("utf-8")
