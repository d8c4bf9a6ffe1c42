import csv
import io

import numpy as np
import pytest
import torch
from commands import SETTINGS, edgekd

from edgekd import load
from edgekd.errors import DataError
from edgekd.tasks.catalogue import PVLIB, SOLAR
from edgekd.tasks.packages import fetch, read_member
from edgekd.tasks.solar import AHEAD, PAST, STATIONS, WEEK, Solar, read_year
from edgekd.training.task.protocol import SPLITS


@pytest.fixture(scope="module")
def task():
    return Solar()


def test_no_week_is_in_two_splits_and_no_sample_reaches_into_another(task):
    splits = task.splits()
    weeks = [set(splits[name].groups) for name in SPLITS]
    assert [len(found) for found in weeks] == [62, 10, 10, 22]
    assert len(set.union(*weeks)) == 104
    assert sum(len(split) for split in splits.values()) == SOLAR.samples
    for split in splits.values():
        for name, group in zip(split.ids, split.groups, strict=True):
            station, hour = name.removeprefix("solar-").rsplit("-h", 1)
            week = int(group.removeprefix(f"{station}-week-"))
            assert week * WEEK <= int(hour) - PAST
            assert int(hour) + AHEAD <= (week + 1) * WEEK


def test_a_sample_is_the_hours_that_its_id_names(task):
    split = task.splits()["test"]
    for index in (0, len(split) - 1):
        sample = split[index]
        station, hour = sample.id.removeprefix("solar-").rsplit("-h", 1)
        text = read_member(fetch(PVLIB), f"pvlib/data/{STATIONS[station]}").decode("latin1")
        rows = list(csv.DictReader(io.StringIO(text.split("\n", 1)[1])))[int(hour) - PAST : int(hour) + AHEAD]
        light = [float(row["GHI (W/m^2)"]) for row in rows]
        assert sample.inputs["sky"][0].tolist() == light[:PAST]
        assert sample.target.tolist() == light[PAST:]
        assert sample.inputs["sun"].tolist() == [float(row["ETR (W/m^2)"]) for row in rows]
        assert sample.inputs["sun"][PAST] > 0


def test_networks_answer_in_watts(task):
    torch.manual_seed(0)
    inputs = [x[:64] for x in task.splits()["train"].inputs.values()]
    for network in (task.teacher(), task.student()):
        answers = network.eval()(*inputs).detach()
        assert answers.shape == (64, 3)
        assert answers.mean() == pytest.approx(task.splits()["train"].targets.mean().item(), abs=150)


def test_a_damaged_year_is_said_to_be():
    with pytest.raises(DataError, match="is damaged"):
        read_year(b"station\nETR (W/m^2)\n1\n")


def test_the_split_never_changes(task):
    assert task.splits()["test"].ids[:2] == IDS
    np.testing.assert_array_equal(task.splits()["test"].targets[0], TARGETS)


IDS = ["solar-greensboro-h4404", "solar-sand-point-h4020"]
TARGETS = [276.0, 260.0, 241.0]


def test_the_recipe_builds_a_bundle_whose_output_is_in_watts(tmp_path):
    quick = {
        **SETTINGS,
        "teacher.epochs": 1,
        "distill.epochs": 1,
        "prune.epochs": 1,
        "profile.iterations": 100,
        "profile.layers": "false",
        "robustness.measure": "false",
        "gate.undecided": "release",
    }
    sets = [f"--set={key}={value}" for key, value in quick.items()]
    built = edgekd("build", "--recipe", "solar", "--target", "cpu", *sets, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    with load(tmp_path / "build" / "solar" / "cpu" / "bundle") as engine:
        hours = {modality.name: np.zeros((1, *modality.shape), np.float32) for modality in Solar.modalities}
        assert engine.run(hours)["sunlight"].shape == (1, 3)
