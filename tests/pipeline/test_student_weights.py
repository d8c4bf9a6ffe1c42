"""A student that was trained elsewhere is not distilled: it is pruned, quantized, checked and shipped."""

import json

import pytest
import torch
from commands import SETTINGS, edgekd
from safetensors.torch import load_file, save_file

from edgekd.config.loading import load_recipe
from edgekd.tasks.digits import Digits
from edgekd.training.loop.weights import build, seed_all

TASK = """
from edgekd.tasks.digits import Digits


class Digits2:
    '''Two views of digits, as one has them who trains elsewhere.'''

    def __init__(self, teacher=False):
        self._digits = Digits(views=("fou", "zer"))
        self.modalities, self.student_taps = self._digits.modalities, self._digits.student_taps
        self.files = self._digits.files
        if teacher:
            self.teacher, self.teacher_taps = self._digits.teacher, self._digits.teacher_taps

    def splits(self):
        return self._digits.splits()

    def student(self):
        return self._digits.student()
"""

RECIPE = """
[task]
name = "task.py:Digits2"

[student]
weights = "student.safetensors"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a recipe, a task without a teacher, and a student that knows a little."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "task.py").write_text(TASK)
    (folder / "edgekd.toml").write_text(RECIPE)
    digits = Digits(views=("fou", "zer"))
    train = digits.splits()["train"]
    student = build(digits.student, 7)
    seed_all(0)
    optimizer = torch.optim.Adam(student.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(student(*train.inputs.values()), train.labels).backward()
        optimizer.step()
    save_file(student.state_dict(), folder / "student.safetensors")
    return folder


def arguments(*changes, output="out"):
    settings = {**SETTINGS, "prune.epochs": 1, "quantize.repair": "off", "profile.iterations": 50}
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    sets = [word for pair in (*pairs, *changes) for word in ("--set", pair)]
    return ["build", "--target", "cpu", "--output", output, "--cache", "cache", *sets]


def test_it_ships_without_a_teacher(project):
    process = edgekd(*arguments(), cwd=project)
    assert process.returncode == 0, process.stderr
    report = json.loads((project / "out" / "report.json").read_text())
    (target,) = report["targets"]
    stages = [stage["name"] for stage in report["stages"]]
    assert "teacher" not in stages
    assert stages.index("distill") < stages.index("prune") < stages.index("bundle cpu")
    assert [row["stage"] for row in target["ledger"]["rows"]][:2] == ["student", "cut"]
    assert "student" not in report["training"]
    assert "pruned" in report["training"]
    assert "teacher" not in target["sizes_bytes"]
    (distilled,) = (project / "cache").glob("distill-*/model.safetensors")
    kept, given = (load_file(path) for path in (distilled, project / "student.safetensors"))
    assert all(torch.equal(kept[name], value) for name, value in given.items())
    assert not list((project / "cache").glob("teacher-*"))


def test_weights_are_found_from_the_recipe_s_folder(project):
    assert load_recipe(project / "edgekd.toml").student.weights == str(project / "student.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "student.safetensors: no such file"),
        ({"encoders.fou.1.0.weight": None}, "lacks 'encoders.fou.1.0.weight' (is it its 'tower.fou.1.0.weight'?)"),
        ({"head.1.bias": torch.nan}, "'head.1.bias' holds NaN"),
    ],
    ids=["file", "names", "NaN"],
)
def test_what_is_wrong_with_weights_is_said_before_anything_is_trained(project, tmp_path, change, message):
    state = load_file(project / "student.safetensors")
    ((name, value),) = change.items()
    if name in state and value is None:
        state[name.replace("encoders", "tower")] = state.pop(name)
    elif name in state:
        state[name][0] = value
    for file in ("task.py", "edgekd.toml"):
        (tmp_path / file).write_text((project / file).read_text())
    if name != "name":
        save_file(state, tmp_path / "student.safetensors")
    process = edgekd(*arguments(), cwd=tmp_path)
    assert process.returncode == 8
    assert message in process.stderr


def test_a_task_without_a_teacher_needs_a_trained_student(project, tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "edgekd.toml").write_text(RECIPE.partition("[student]")[0])
    process = edgekd(*arguments(), cwd=tmp_path)
    assert process.returncode == 4
    assert "the task has no teacher(), from which a student could be distilled" in process.stderr


@pytest.mark.parametrize("command", ["search", "advise"])
def test_searches_have_nothing_to_distil(project, tmp_path, command):
    process = edgekd(command, "--recipe", project, cwd=tmp_path)
    assert process.returncode == 3
    assert "[student] weights" in process.stderr


@pytest.mark.parametrize("command", ["search", "advise"])
def test_searches_need_a_teacher(tmp_path, command):
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "edgekd.toml").write_text(RECIPE.partition("[student]")[0])
    process = edgekd(command, cwd=tmp_path)
    assert process.returncode == 4
    (line,) = process.stderr.splitlines()
    assert "the task has no teacher(), from which the trials' students could be distilled" in line
