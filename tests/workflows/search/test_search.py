"""Searches as a user runs them: real trainings on real digits, made tiny; workers are killed on the way."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import optuna
import pytest
from commands import edgekd, edgekd_begun, events, python, signal_at

from edgekd.workflows.search.study import open_storage

TINY = {
    'task.options.views': '["mor","zer"]',
    "task.options.teacher": "{hidden=[16],width=16,head=16}",
    "teacher.epochs": 1,
    "distill.epochs": 1,
    "prune.epochs": 1,
    "search.space.task.options.student.width": "{low=8,high=32,step=8}",
    "search.space.prune.ratio": "[0.0,0.5]",
    # So brief a fine-tune keeps none of the usual limits.
    "gate.tau_fail": 1,
    "gate.max_flips": 1,
    "gate.max_metric_drop": 1,
}  # fmt: skip


def arguments(*more, **changes):
    settings = {**TINY, **{key.replace("__", "."): value for key, value in changes.items()}}
    return ["search", "--recipe", "digits", "--output", "out", "--cache", "cache",
            *(f"--set={key}={value}" for key, value in settings.items()), *more]  # fmt: skip


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """One study, interrupted at its first trial, then killed at it, then gone on with by two workers; one is killed."""
    folder = tmp_path_factory.mktemp("searched")
    command = arguments("--trials", 4, "--workers", 2, "--json")
    with edgekd_begun(*command, cwd=folder) as process:
        signal_at(process, ("start", "trial 0", None), signal.SIGINT)
        interrupted = (process.wait(), process.stderr.read())
    assert interrupted == (130, "interrupted; the same command goes on from here\n")
    assert (folder / "out" / "search.json").is_file()
    with edgekd_begun(*command, cwd=folder) as process:
        at_first = next(json.loads(line) for line in process.stdout if json.loads(line)["event"] == "start")
        signal_at(process, ("advance", at_first["stage"], 1), signal.SIGKILL)
    killed, lines = False, []
    with edgekd_begun(*command, cwd=folder) as process:
        for line in process.stdout:
            lines.append(line)
            if not killed and json.loads(line)["event"] == "advance":
                with suppress(ProcessLookupError):
                    os.kill(children(process.pid)[0], signal.SIGKILL)
                killed = True
        code = process.wait()
        errors = process.stderr.read()
    assert code == 0, errors
    return folder, events("".join(lines))


def test_a_killed_search_goes_on_and_a_killed_worker_costs_no_trial(searched):
    _, told = searched
    found = told[-1]["search"]
    counted = [trial for trial in found["trials"] if trial["state"] != "lost"]
    assert [trial["state"] for trial in counted] == ["done"] * 4
    assert sum(trial["state"] == "lost" for trial in found["trials"]) >= 1
    assert [trial["own"] for trial in counted].count(True) == 1
    own = next(trial for trial in counted if trial["own"])
    assert own["settings"] == []
    assert any("its worker ended (SIGKILL)" in event.get("summary", "") for event in told)


def test_the_figures_are_of_the_validation_split_and_the_teacher_is_trained_once(searched):
    folder, told = searched
    trials = [trial for trial in told[-1]["search"]["trials"] if trial["appraisal"]]
    for trial in trials:
        known = trial["appraisal"]
        assert known["metric"] * 200 == pytest.approx(
            round(known["metric"] * 200)
        )  # 200 samples; the test split has 400
        assert known["latency"] == pytest.approx(known["p50_ms"] / known["reference_ms"], abs=0.006)
        assert 0 <= known["drift"] <= 2
    assert len([path for path in (folder / "cache").glob("teacher-*") if path.is_dir()]) == 1
    widths = {setting for trial in trials for setting in trial["settings"] if "width" in setting}
    assert len({trial["appraisal"]["parameters"] for trial in trials}) > 1 or len(widths) <= 1


def test_json_and_picture_are_written_and_say_the_same(searched):
    folder, told = searched
    found = told[-1]["search"]
    assert json.loads((folder / "out" / "search.json").read_text()) == found
    picture = ElementTree.parse(folder / "out" / "search.svg")
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}g")) == 4
    (machine,) = found["machines"].values()
    assert {"cpu", "torch", "optuna", "edgekd", "onnxruntime"} <= machine.keys()


def test_a_finished_study_is_shown_again_with_a_command_that_builds_its_best(searched):
    folder, told = searched
    again = edgekd(*arguments("--trials", 4), cwd=folder, COLUMNS="80")
    assert again.returncode == 0, again.stderr
    assert "trial 0: started" not in again.stdout
    assert "4 trials done; accuracy" in again.stdout
    assert told[-1]["search"]["study"] in again.stdout
    line = next(line for line in again.stdout.splitlines() if line.startswith("edgekd build --recipe digits --set "))
    assert line in {trial["command"] for trial in told[-1]["search"]["trials"] if trial["front"]}


def test_where_every_trial_fails_the_first_reason_is_the_error(tmp_path):
    found = edgekd(*arguments("--trials", 2, "-q", prune__budget="{ macs = 0.001 }"), cwd=tmp_path)
    assert found.returncode == 8, found.stderr
    error = found.stderr.splitlines()[-1]
    assert "all 2 trials failed; the first: [prune] budget = 0.1% of the MACs cannot be met" in error
    content = json.loads((tmp_path / "out" / "search.json").read_text())
    assert [trial["state"] for trial in content["trials"]] == ["failed", "failed"]


def test_where_the_gate_rejects_every_trial_nothing_is_recommended_and_the_exit_code_says_so(tmp_path):
    tight = {"gate__tau_pass": 1e-6, "gate__tau_fail": 1e-6, "gate__structure": "strict", "prune__repair": "off"}
    command = arguments("--trials", 2, prune__ratio=0.5, search__space__prune__ratio="[0.4,0.5]", **tight)
    found = edgekd(*command, cwd=tmp_path)
    assert found.returncode == 20, found.stderr
    assert "Nothing to build: the gate rejects every trial." in found.stdout
    assert "edgekd build" not in found.stdout
    assert "the gate rejects all 2 trials; the nearest, trial " in found.stderr
    content = json.loads((tmp_path / "out" / "search.json").read_text())
    assert [(one["state"], one["front"], one["rejected"]) for one in content["trials"]] == [("done", False, True)] * 2
    assert all(one["appraisal"]["reasons"] for one in content["trials"])
    (journal,) = (tmp_path / "cache" / "search").glob("*.journal")
    study = optuna.load_study(study_name=None, storage=open_storage(str(journal)))
    assert [trial.constraints for trial in study.trials] == [{"gate": 1.0}] * 2, "the sampler is to know it too"


def test_without_optuna_one_line_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['optuna'] = None\nfrom edgekd.cli import main\nmain()"
    found = python("-c", code, *arguments(), cwd=tmp_path)
    assert found.returncode == 7
    assert found.stderr == (
        "error: this needs the package 'optuna', which is not installed: pip install \"edgekd[search]\"\n"
    )


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--set=search.space.prune.rati=[0.1,0.2]"], 3, "[prune] has no key 'rati'; did you mean 'ratio'"),
        (["--budget", "soon"], 2, "'soon' is no time above 0: write it as 90s, 30m or 1h30m"),
        (["--budget", "0s"], 2, "is no time above 0"),
        (["--trials", "0"], 2, "0 is not in the range"),
    ],
)
def test_a_wrong_command_line_ends_before_anything_is_trained(more, code, said, tmp_path):
    found = edgekd(*arguments(*more), cwd=tmp_path)
    assert found.returncode == code
    assert said in found.stderr
    assert not list((tmp_path / "cache").glob("teacher-*"))
