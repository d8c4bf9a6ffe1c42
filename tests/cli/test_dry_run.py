"""`edgekd build --dry-run`: what each stage said, for every target, with the build's exit code, and nothing left."""

import json

import pytest
from commands import ROOT, build_arguments, edgekd, events

import edgekd as api
from edgekd import errors

#: A task whose mistakes are options of it.
TASK = """
import numpy as np, torch
from torch import nn
import edgekd

def mlp(inputs, hidden=16, width=8):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, width))

class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.encoders = nn.ModuleDict({"a": mlp(6), "b": mlp(5)})
        self.head = nn.Linear(16, 3)
    def forward(self, a, b):
        z = torch.cat([self.encoders["a"](a), self.encoders["b"](b)], 1)
        if self.kind == "dropout":
            z = nn.functional.dropout(z, 0.5)
        if self.kind == "unexportable":
            z = z * torch.linalg.svdvals(z[:, :, None])
        if self.kind == "softmax":
            return self.head(z).softmax(1)
        return self.head(z)

class Task:
    modalities = [edgekd.Modality("a", (6,)), edgekd.Modality("b", (5,))]
    teacher_taps = student_taps = {"a": "encoders.a", "b": "encoders.b"}
    def __init__(self, kind="", metric=""):
        self.kind = kind
        if metric:
            self.metric = lambda outputs, labels: getattr(np, metric)(outputs, labels)
    def splits(self):
        random, splits = np.random.default_rng(0), {}
        for name, count in {"train": 60, "val": 24, "calibration": 24, "test": 24}.items():
            inputs = {"a": random.normal(size=(count, 6)), "b": random.normal(size=(count, 5))}
            inputs = {key: x.astype("float32") for key, x in inputs.items()}
            ids = [f"{name}-{i}" for i in range(count)]
            splits[name] = edgekd.ArraySplit(ids, inputs, np.arange(count) % 3)
        return splits
    def teacher(self):
        return Net("")
    def student(self):
        return Net(self.kind)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the task, and the cache that the tests share."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "task.py").write_text(TASK)
    (folder / "edgekd.toml").write_text('[task]\nname = "task.py:Task"\n[prune]\nratio = 0.5\nround_to = 4\n')
    return folder


@pytest.fixture
def project(folder, monkeypatch):
    """The same, as the working directory."""
    monkeypatch.chdir(folder)
    return folder


def outcomes(tried):
    return {stage.name: stage.outcome for stage in tried.stages}


def test_every_stage_is_tried_and_nothing_but_the_cache_is_left(project):
    before = {path.name for path in project.iterdir()}
    tried = api.dry_run(output="some/where", cache="cache")
    assert tried.ok
    stages = ["preflight", "preflight_export", "rehearsal", "preflight_target cpu"]
    assert outcomes(tried) == dict.fromkeys(stages, "ok")
    assert tried.stages[2].text.endswith("teacher, distill, prune, prune_check, export, robustness, qat")
    assert {path.name for path in project.iterdir()} - before <= {"cache", "__pycache__"}
    finished = {path.name.rpartition("-")[0] for path in (project / "cache").iterdir() if path.is_dir()}
    assert finished == {"preflight", "preflight_export", "rehearsal", "preflight_target"}
    kept = {path.name for path in (project / "cache").glob("rehearsal-*/*")}
    assert not any(name.endswith((".safetensors", ".pt")) for name in kept)


def test_what_is_refused_is_said_at_its_stage_and_later_ones_are_not_run(project):
    tried = api.dry_run(overrides=["task.options.kind=unexportable", "prune.ratio=0"], cache="cache")
    assert isinstance(tried.error, errors.ModelError)
    assert outcomes(tried) == {
        "preflight": "ok",
        "preflight_export": "refused",
        "rehearsal": "not run",
        "preflight_target cpu": "not run",
    }
    assert "task.py:" in tried.stages[1].text


def test_what_only_a_later_stage_would_refuse_is_refused_with_its_name(project):
    (project / "weights.pt").write_bytes(b"no weights")
    tried = api.dry_run(overrides=["teacher.weights=weights.pt"], cache="cache")
    assert isinstance(tried.error, errors.ModelError)
    assert tried.stages[2].outcome == "refused"
    assert tried.stages[2].text.startswith("stage 'teacher', tried before anything is trained: ")
    assert "weights.pt" in str(tried.error)


def test_a_warning_is_said_again_where_its_stage_is_up_to_date(project):
    # What comes after the preflight is refused, and costs nothing.
    kinds = ["task.options.kind=softmax", "teacher.weights=weights.pt", "prune.ratio=0"]
    (project / "weights.pt").write_bytes(b"no weights")
    first, again = (api.dry_run(overrides=kinds, cache="cache").stages[0] for _ in range(2))
    assert (first.outcome, again.outcome) == ("warning", "warning")
    assert first.warnings == again.warnings
    assert any("gives probabilities" in warning for warning in first.warnings)


def test_a_target_that_refuses_hides_no_other(project):
    text = (ROOT / "targets" / "cpu.toml").read_text()
    (project / "odd.py").write_text(
        "from edgekd.errors import ModelError\n"
        "def open_engine(engine, threads, name, **options):\n    raise ModelError('this library has no Gemm')\n"
    )
    (project / "odd.toml").write_text(text.replace('runtime = "onnxruntime"', 'runtime = "odd.py:open_engine"'))
    found = edgekd("build", "--dry-run", "--target=./odd.toml", "--target=cpu", "--cache=cache", cwd=project)
    assert found.returncode == errors.TargetRefused.exit_code, found.stdout + found.stderr
    assert "this library has no Gemm" in found.stdout
    assert "  ok       preflight_target cpu" in found.stdout
    assert "  refused  preflight_target odd" in found.stdout
    assert "The build can begin for all but odd" in found.stdout
    assert not (project / "build").exists()


def test_the_command_ends_as_the_build_would_and_fits_80_columns(project):
    found = edgekd("build", "--dry-run", "--set=task.options.kind=dropout", "--cache=cache", cwd=project, COLUMNS="80")
    assert found.returncode == errors.TaskError.exit_code
    summary = found.stdout.partition("dry run\n")[2]
    assert max(map(len, summary.splitlines())) <= 80
    assert "  refused  preflight\n" in summary
    assert "first dropout" in summary
    assert "Nothing was trained." in summary
    assert found.stderr.startswith("error: the student, Net, gives two results for one input")


def test_json_has_a_dry_run_in_place_of_a_report(project):
    found = edgekd("build", "--dry-run", "--set=task.options.metric=no_such", "--json", "--cache=cache", cwd=project)
    assert found.returncode == errors.TaskError.exit_code
    last = events(found.stdout)[-1]
    assert last["event"] == "dry_run"
    assert last["dry_run"]["ok"] is False
    assert last["dry_run"]["stages"][0]["outcome"] == "refused"
    assert "no_such" in last["dry_run"]["error"]
    assert json.dumps(last["dry_run"]["stages"][1]["warnings"]) == "[]"


def test_an_output_folder_that_is_not_edgekds_is_refused_at_once(project):
    (project / "out").mkdir()
    (project / "out" / "report.json").write_text("mine")
    with pytest.raises(errors.OutputError, match=r"edgekd did not write report\.json"):
        api.dry_run(output="out", cache="another")
    assert not (project / "another").exists()


def test_a_build_that_is_finished_has_nothing_left_to_try(built):
    arguments = build_arguments("out", built.cache)
    found = edgekd(*arguments, "--dry-run", cwd=built.output.parent)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("up to date") == 4
