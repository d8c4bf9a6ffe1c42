import json
import os
import sys

import pytest

import edgekd.training.task.loading
from edgekd.config.recipe import TaskConfig
from edgekd.errors import TaskError
from edgekd.pipeline.project import Project

TASK = """
import torch
from pathlib import Path
from torch import nn
from edgekd.training.task.models import LateFusion
from edgekd.training.task.protocol import ArraySplit, Modality
from neighbour import COUNT

DATA = Path(__file__).parent / "data.txt"

class Mine:
    modalities = [Modality("a", (3,), ""), Modality("b", (2,), "")]
    classes = ["x", "y"]
    files = [DATA]

    def __init__(self, factor=1.0):
        self.offset = float(DATA.read_text()) * factor

    def splits(self):
        torch.manual_seed(0)
        return {
            name: ArraySplit(
                ids=[f"{name}-{i}" for i in range(COUNT)],
                inputs={"a": torch.randn(COUNT, 3) + self.offset, "b": torch.randn(COUNT, 2)},
                labels=torch.arange(COUNT) % 2,
            )
            for name in ("train", "val", "calibration", "test")
        }

    def teacher(self):
        return LateFusion({"a": nn.Linear(3, 4), "b": nn.Linear(2, 4)}, 4, 4, 2)

    student = teacher
"""


@pytest.fixture
def folder(tmp_path):
    """A task of three files, in a folder of its own."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "task.py").write_text(TASK)
    (tmp_path / "work" / "neighbour.py").write_text("COUNT = 8\n")
    (tmp_path / "work" / "late.py").write_text("WIDTH = 4\n")
    (tmp_path / "work" / "data.txt").write_text("1.0")
    return tmp_path


@pytest.fixture
def identity(folder, monkeypatch):
    """Return the task's identity, and whether the task had to be loaded for it, as a new process would find it."""
    loads = []
    load = edgekd.training.task.loading.load_task

    def counting(config):
        loads.append(config)
        return load(config)

    monkeypatch.setattr(edgekd.training.task.loading, "load_task", counting)
    monkeypatch.chdir(folder / "work")

    def identity(**options):
        monkeypatch.delitem(sys.modules, "neighbour", raising=False)
        before = len(loads)
        found = Project(TaskConfig(name=f"{folder}/work/task.py:Mine", options=options), folder).identity
        return found, len(loads) > before

    return identity


def test_what_is_known_of_a_task_needs_no_loading(folder, identity):
    first, loaded = identity()
    assert loaded
    assert identity() == (first, False)
    (memory,) = folder.glob("task-*.json")
    sources = json.loads(memory.read_text())["sources"]
    assert set(sources) == {"task.py", "neighbour.py", "late.py"}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("task.py", TASK + "\n# changed"),
        ("neighbour.py", "COUNT = 10\n"),
        ("data.txt", "2.0  "),
        ("data.txt", "1.0 "),
        ("late.py", "WIDTH = 5"),
        ("inner/new.py", ""),
    ],
)
def test_a_changed_file_makes_it_another_task(folder, identity, file, text):
    first, _ = identity()
    (folder / "work" / file).parent.mkdir(exist_ok=True)
    (folder / "work" / file).write_text(text)
    changed, loaded = identity()
    assert loaded
    assert changed != first


def test_files_that_swap_their_contents_make_it_another_task(folder, identity):
    (folder / "work" / "one.py").write_text("A = 1")
    (folder / "work" / "late.py").write_text("A = 2")
    first, _ = identity()
    (folder / "work" / "one.py").write_text("A = 2")
    (folder / "work" / "late.py").write_text("A = 1")
    assert identity()[0] != first


def test_a_removed_neighbour_makes_it_another_task(folder, identity):
    first, _ = identity()
    (folder / "work" / "late.py").unlink()
    changed, loaded = identity()
    assert loaded
    assert changed != first


def test_files_that_a_listed_folder_holds_are_the_tasks(folder, identity):
    (folder / "work" / "task.py").write_text(TASK.replace("files = [DATA]", "files = [DATA.parent / 'data']"))
    (folder / "work" / "data").mkdir()
    first, _ = identity()
    assert identity() == (first, False)
    (folder / "work" / "data" / "more.bin").write_text("1")
    assert identity()[0] != first


def test_a_listed_file_that_is_missing_is_a_task_error(folder, identity):
    (folder / "work" / "task.py").write_text(TASK.replace("files = [DATA]", "files = ['no.bin']"))
    with pytest.raises(TaskError, match=r"names no\.bin in its files, which cannot be read: No such file"):
        identity()


def test_samples_that_differ_from_run_to_run_are_refused(folder, identity):
    (folder / "work" / "task.py").write_text(TASK.replace("torch.manual_seed(0)", "torch.seed()"))
    identity()
    project = Project(TaskConfig(name=f"{folder}/work/task.py:Mine"), folder)
    assert project.identity
    with pytest.raises(TaskError, match=r"gives other samples than when the task was last loaded.*seed what is random"):
        _ = project.loaded


def test_samples_that_are_the_same_again_are_loaded(folder, identity):
    identity()
    project = Project(TaskConfig(name=f"{folder}/work/task.py:Mine"), folder)
    assert project.identity
    assert len(project.loaded.splits["train"]) == 8


def test_data_that_is_only_touched_is_read_again_and_found_the_same(folder, identity):
    first, _ = identity()
    os.utime(folder / "work" / "data.txt", (1, 1))
    assert identity() == (first, True)


def test_options_make_it_another_task(identity):
    first, _ = identity()
    assert identity(factor=2.0)[0] != first
    assert identity() == (first, False)


def test_a_task_that_does_not_name_its_files_is_always_read(folder, identity):
    (folder / "work" / "task.py").write_text(TASK.replace("files = [DATA]", ""))
    first, _ = identity()
    assert identity() == (first, True)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sources": {}, "files": 3}', '{"sources": {}, "files": {}}'])
def test_a_damaged_memory_is_forgotten(folder, identity, text):
    first, _ = identity()
    (memory,) = folder.glob("task-*.json")
    memory.write_text(text)
    assert identity() == (first, True)


def test_a_removed_file_is_a_task_error(folder, identity):
    identity()
    (folder / "work" / "task.py").unlink()
    with pytest.raises(TaskError, match="no such task file"):
        _ = Project(TaskConfig(name=f"{folder}/work/task.py:Mine"), folder).identity
