"""How long a training is, and which names of optimizers, schedules and loggers there are."""

import msgspec
import pytest

from edgekd.config.loading import load_recipe
from edgekd.config.recipe import PruneConfig, QatConfig, Recipe, TaskConfig, TeacherConfig, Training
from edgekd.errors import RecipeError
from edgekd.training.loop.settings import check_training, count_epochs, describe_length, own_training_sources


@pytest.mark.parametrize(
    ("config", "samples", "epochs"),
    [
        (Training(), 10_000, 30),  # 157 steps an epoch
        (Training(), 830, 93),  # 13 steps, 1,209 of them
        (Training(), 60, 300),  # one step an epoch: ten times as long, and no longer
        (Training(epochs=30), 830, 30),
        (Training(min_steps=0), 830, 30),
        (Training(batch_size=16), 830, 30),
        (PruneConfig(), 830, 31),
        (QatConfig(), 10_000, 10),
    ],
)
def test_a_small_split_is_gone_through_more_often_and_a_number_is_taken_as_it_is(config, samples, epochs):
    assert count_epochs(config, samples) == epochs


def test_what_is_longer_than_usual_is_said():
    assert describe_length(Training(), 830) == (
        "93 epochs instead of 30, since 830 samples make few steps: 1,209 of them"
    )
    assert describe_length(Training(), 10_000) == describe_length(Training(epochs=93), 830) == ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.optimizer='adamv'", "teacher.optimizer: there is no 'adamv'; did you mean 'adam'"),
        ("distill.schedule='cosin'", "distill.schedule: there is no 'cosin'; did you mean 'cosine'"),
        ("quantize.qat.optimizer='no.py:f'", "quantize.qat.optimizer: {cwd}/no.py: no such file"),
        (
            "prune.schedule='nowhere.at:all'",
            "prune.schedule: nowhere.at: no such module; one in a file is 'file.py:name'",
        ),
        ("log='wandb'", "log: there is no 'wandb': write 'tensorboard', or a function of your own"),
        ("log='no.py:f'", "log: {cwd}/no.py: no such file"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_before_anything_runs(tmp_path, monkeypatch, override, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as refused:
        check_training(load_recipe("digits", (override,)))
    assert message.format(cwd=tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices_are_read(device):
    assert Recipe(task=TaskConfig(name="digits"), device=device).device == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA", ""])
def test_a_device_of_no_known_kind_is_refused(device):
    with pytest.raises(RecipeError, match=rf"device: there is no '{device}': write 'auto', 'cpu', 'cuda', 'cuda:1'"):
        load_recipe("digits", (f"device='{device}'",))


def test_the_users_own_code_belongs_to_what_a_training_depends_on(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def make(parameters, rate, decay): ...")
    config = TeacherConfig(optimizer=f"{file}:make", schedule=f"{file}:fall")
    before = own_training_sources(config)
    assert list(before["own_training"]) == [str(file)]
    file.write_text("def make(parameters, rate, decay): return None")
    assert own_training_sources(config) != before
    assert own_training_sources(Training()) == {}


def test_what_decides_the_weights_is_in_the_sections_and_what_does_not_is_beside_them():
    """The sections are the keys of the stages that train; threads and device are added to the teacher's by name."""
    sections = set(msgspec.to_builtins(TeacherConfig()))
    assert {
        "optimizer",
        "schedule",
        "warm_up",
        "momentum",
        "clip_norm",
        "ema",
        "keep",
        "patience",
        "min_steps",
    } <= sections
    assert not {"workers", "log", "device", "threads"} & sections
