import ast

import numpy as np
import pytest
import torch
from torch.nn import functional

import edgekd.cli.init
from edgekd.cli.init import TEMPLATES, init
from edgekd.config.loading import load_recipe
from edgekd.errors import RecipeError
from edgekd.training.taps.taps import TappedModel, resolve_taps
from edgekd.training.task.loading import load_task


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project") / "new"
    init(folder)
    return load_recipe(folder)


def test_writes_both_files(tmp_path):
    written = init(tmp_path / "a" / "b")
    assert written == [tmp_path / "a" / "b" / "edgekd.toml", tmp_path / "a" / "b" / "task.py"]
    assert sorted((tmp_path / "a" / "b").iterdir()) == written


def test_an_existing_folder_with_other_files_will_do(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert len(init(tmp_path)) == 2


@pytest.mark.parametrize("name", ["edgekd.toml", "task.py"])
def test_refuses_to_overwrite_and_then_writes_nothing(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RecipeError, match=f"{name}: exists already"):
        init(tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "mine")]


def test_refuses_a_path_that_is_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, file / "inside"):
        with pytest.raises(RecipeError, match="cannot be written"):
            init(folder)
    assert file.read_text() == "mine"


def test_writes_both_or_neither(tmp_path, monkeypatch):
    write = edgekd.cli.init.write_text

    def full_disk(path, text):
        if path.name == "task.py":
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr("edgekd.cli.init.write_text", full_disk)
    with pytest.raises(RecipeError, match="No space left on device"):
        init(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_task_loads_and_its_metric_is_its_own(project):
    loaded = load_task(project.task)
    assert {name: len(split) for name, split in loaded.splits.items()} == {
        "train": 1200,
        "val": 200,
        "calibration": 200,
        "test": 400,
    }
    assert loaded.metric_name == "balanced accuracy"
    labels = torch.tensor([0, 0, 0, 1]).numpy()
    assert loaded.metric(torch.eye(10)[[0, 0, 0, 0]].numpy(), labels) == 0.5
    assert loaded.files is not None
    assert [file.is_file() for file in loaded.files] == [True]


@pytest.mark.parametrize(("kind", "width"), [("teacher", 64), ("student", 32)])
def test_one_step_of_training(project, kind, width):
    torch.manual_seed(0)
    task = load_task(project.task).task
    network = getattr(task, kind)()
    batch = task.splits()["train"].__getitems__(list(range(0, 1200, 20)))
    taps = resolve_taps(kind, getattr(project, kind).taps, {}, [modality.name for modality in task.modalities])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    with TappedModel(network, taps) as tapped:
        for _ in range(2):
            answers, embeddings = tapped(list(batch.inputs.values()))
            assert {name: z.shape for name, z in embeddings.items()} == {"outline": (60, width), "moments": (60, width)}
            loss = functional.cross_entropy(answers["logits"], batch.labels)
            optimizer.zero_grad()
            loss.backward()
            assert all(parameter.grad is not None for parameter in network.parameters())
            optimizer.step()
            losses.append(loss.item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_made_of_public_names_and_its_recipe_is_valid(tmp_path, template):
    init(tmp_path, template)
    assert load_recipe(tmp_path).task.name.endswith("task.py:MyTask")
    tree = ast.parse((tmp_path / "task.py").read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if name.startswith("edgekd")} == {"edgekd"}


def test_a_template_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no template 'regresion'; did you mean 'regression'"):
        init(tmp_path, "regresion")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def detection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection")
    init(folder, "detection")
    return load_task(load_recipe(folder).task).task


def test_the_detector_of_the_template_finds_what_it_is_told(detection):
    """A network that is right has the metric 1, one that finds nothing 0, and a box that moves is a change."""
    split = detection.splits()["test"]
    targets = {name: x.numpy() for name, x in split.targets.items()}
    digits = np.eye(10)[np.maximum(0, targets["digit"])]
    objectness = np.where(targets["digit"] >= 0, 1.0, -1.0)[..., None]
    right = np.concatenate([objectness, targets["box"], digits], axis=-1).transpose(0, 3, 1, 2)
    assert detection.metric(right, targets) == 1
    assert detection.metric(-right, targets) < 0.2
    moved = right.copy()
    moved[0, 1] += 5
    changed = detection.same(moved, right)
    assert changed[0] == 1
    assert changed[1:].max() == 0


def test_the_losses_of_the_template_pull_a_detector_to_what_is_right(detection):
    torch.manual_seed(0)
    batch = detection.splits()["train"].__getitems__(list(range(32)))
    teacher, student = detection.teacher(), detection.student()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        answers = student(batch.inputs["image"])
        told = detection.distill(answers, teacher(batch.inputs["image"]).detach())
        loss = detection.loss(answers, batch.targets) + told
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
