import gzip

import numpy as np
import pytest

from edgekd.errors import DataError, TaskError
from edgekd.tasks import tissue
from edgekd.tasks.catalogue import NILEARN, TISSUE
from edgekd.tasks.packages import fetch
from edgekd.tasks.tissue import GAP, SIDE, Tissue, noisy, read_brain
from edgekd.training.task.protocol import SPLITS


@pytest.fixture(scope="module")
def task():
    return Tissue()


@pytest.fixture(scope="module")
def brain():
    return read_brain(fetch(NILEARN))


def place(name):
    return [int(part[1:]) for part in name.split("-")[1:]]


def test_slices_of_two_splits_are_apart(task):
    splits = task.splits()
    assert list(splits) == list(SPLITS)
    assert sum(len(split) for split in splits.values()) == TISSUE.samples
    heights = {name: {place(sample_id)[0] for sample_id in splits[name].ids} for name in SPLITS}
    for name, other in [(a, b) for a in SPLITS for b in SPLITS if a < b]:
        assert min(abs(here - there) for here in heights[name] for there in heights[other]) > GAP


def test_the_other_half_of_the_brain_is_left_out(task, brain):
    """It is the same one mirrored: what is learned on one side would be known of the other."""
    assert brain[0].shape == (98, 233, 189)
    assert max(place(sample_id)[2] for split in task.splits().values() for sample_id in split.ids) + SIDE <= 98


def test_a_sample_is_the_patch_that_its_id_names(brain):
    clean = Tissue(noise=0).splits()["test"]
    for index in (0, len(clean) - 1):
        sample = clean[index]
        height, column, row = place(sample.id)
        patch = brain[0][row : row + SIDE, column : column + SIDE, height]
        np.testing.assert_array_equal(sample.inputs["detail"][0], patch)
        np.testing.assert_array_equal(sample.target, brain[1][row : row + SIDE, column : column + SIDE, height])
        middle = patch[15:18, 15:18]  # the middle of the surroundings is that of the patch
        shrunk = sample.inputs["surroundings"][0, 10:22, 10:22]
        assert shrunk.min() <= middle.mean() <= shrunk.max()


def test_tissues_are_told_by_their_brightness(brain):
    brightness, tissues = brain
    means = [brightness[tissues == index].mean() for index in range(4)]
    assert means[0] == 0
    assert means[3] < means[1] < means[2]  # fluid is dark in such a scan, white matter bright


def test_noise_is_that_of_a_scanner():
    noise = noisy(np.zeros((200, 200), np.uint8), 40, np.random.RandomState(0))
    assert noise.min() >= 0
    assert noise.mean() == pytest.approx(40 * np.sqrt(np.pi / 2), rel=0.02)  # Rayleigh
    bright = noisy(np.full((200, 200), 200, np.uint8), 40, np.random.RandomState(0))
    assert bright.std() == pytest.approx(40, rel=0.03)


def test_networks_answer_at_every_pixel(task):
    inputs = [x[:2] for x in task.splits()["test"].inputs.values()]
    for network in (task.teacher(), task.student()):
        assert network.eval()(*inputs).shape == (2, 4, SIDE, SIDE)


def test_noise_out_of_range_and_a_damaged_brain_are_said_to_be(monkeypatch, tmp_path):
    with pytest.raises(TaskError, match="noise = -1; it is from 0 to 255"):
        Tissue(noise=-1)
    monkeypatch.setattr(tissue, "read_members", lambda _archive, names: [gzip.compress(b"few")] * len(names))
    with pytest.raises(DataError, match="the brain in it is damaged"):
        read_brain(tmp_path / "nilearn.whl")


def test_the_samples_never_change(task):
    split = task.splits()["test"]
    assert split.ids[:2] == IDS
    assert split.inputs["detail"][0, 0, 16, 16] == PIXEL


IDS = ["tissue-z086-y112-x064", "tissue-z082-y096-x016"]
PIXEL = 178
