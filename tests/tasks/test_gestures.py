import io
import os
import pickle

import numpy as np
import pytest
import torch

from edgekd.config.loading import load_recipe
from edgekd.errors import DataError
from edgekd.tasks import gestures
from edgekd.tasks.catalogue import GESTURES, SEGLEARN
from edgekd.tasks.gestures import STEP, WINDOW, Gestures, cut_windows, read_recordings
from edgekd.tasks.packages import fetch, read_member
from edgekd.training.taps.taps import TappedModel, resolve_taps
from edgekd.training.task.loading import load_task
from edgekd.training.task.protocol import SPLITS, Task


@pytest.fixture(scope="module")
def task():
    return Gestures()


@pytest.fixture(scope="module")
def raw():
    return read_member(fetch(SEGLEARN), "seglearn/data/watch_dataset.npy")


def test_the_shipped_recipe_loads(task):
    loaded = load_task(load_recipe("gestures").task)
    assert loaded.files == (fetch(SEGLEARN),)
    assert [modality.name for modality in loaded.task.modalities] == list(GESTURES.modalities)
    assert isinstance(task, Task)
    assert sum(len(split) for split in loaded.splits.values()) == GESTURES.samples


def test_no_subject_is_in_two_splits(task):
    subjects = {name: set(task.splits()[name].groups) for name in SPLITS}
    assert {name: len(found) for name, found in subjects.items()} == {"train": 5, "val": 1, "calibration": 1, "test": 3}
    assert len(set.union(*subjects.values())) == 10


def test_every_split_has_every_class(task):
    assert len(task.classes) == 7
    for split in task.splits().values():
        assert np.bincount(split.labels, minlength=7).min() >= 50


def test_a_sample_is_the_window_that_its_id_names(task, raw):
    content = read_recordings(raw)
    for name in SPLITS:
        split = task.splits()[name]
        assert len(set(split.ids)) == len(split)
        for index in (0, len(split) // 2, len(split) - 1):
            sample = split[index]
            _, subject, recording, window = sample.id.split("-")
            number, start = int(recording[1:]), int(window[1:]) * STEP
            columns = content["X"][number][start : start + WINDOW].astype(np.float32).T
            np.testing.assert_array_equal(sample.inputs["accel"], columns[:3])
            np.testing.assert_array_equal(sample.inputs["gyro"], columns[3:])
            assert sample.group == f"subject-{subject[1:]}"
            assert content["subject"][number] == int(subject[1:])
            assert content["y"][number] == sample.label


def test_the_split_never_changes(task):
    assert task.splits()["test"].ids[:2] == ["gestures-s09-r047-w006", "gestures-s10-r122-w004"]


def test_windows_overlap_by_half_and_leave_the_rest():
    recording = np.arange(6 * 249).reshape(249, 6)
    windows = cut_windows(recording)
    assert windows.shape == (3, 6, 100)
    np.testing.assert_array_equal(windows[1, 2], recording[50:150, 2])
    assert len(cut_windows(recording[:199])) == 2


def test_channels_and_units(task):
    """Gravity is 1 g; and only the gyroscope averages to nothing, since an arm that turns turns back."""
    inputs = task.splits()["train"].inputs
    assert 0.9 < inputs["accel"].norm(dim=1).median() < 1.2
    assert inputs["gyro"].mean((0, 2)).abs().max() < 0.1
    assert inputs["accel"].mean((0, 2)).abs().max() > 0.2


def test_networks_and_taps(task):
    split = task.splits()["val"]
    batch = split.__getitems__(list(range(8))).inputs
    for network, taps, width in ((task.teacher(), task.teacher_taps, 64), (task.student(), task.student_taps, 32)):
        with TappedModel(network.eval(), resolve_taps("teacher", {}, taps, list(batch))) as tapped:
            answers, embeddings = tapped(list(batch.values()))
        assert answers["logits"].shape == (8, 7)
        assert {name: z.shape for name, z in embeddings.items()} == {"accel": (8, width), "gyro": (8, width)}


def test_networks_take_raw_values_whatever_their_scale(task, monkeypatch):
    def embed(task):
        torch.manual_seed(0)
        student = task.student().eval()
        return {name: student.encoders[name](x) for name, x in task.splits()["val"].inputs.items()}

    expected = embed(task)
    monkeypatch.setattr(gestures, "cut_windows", lambda recording: cut_windows(recording) * 64 + 3)
    for name, z in embed(Gestures()).items():
        torch.testing.assert_close(z, expected[name], rtol=1e-2, atol=1e-3)


def test_statistics_are_of_the_train_split(task):
    for name, x in task.splits()["train"].inputs.items():
        torch.testing.assert_close(task.student().encoders[name][0].mean, x.mean((0, 2)))


def test_channels_suit_devices_and_sizes_are_options(task):
    for size in (gestures.TEACHER, gestures.STUDENT):
        assert all(width % 8 == 0 for width in (*size.channels, size.width, size.head))
    assert Gestures(student={"width": 16}).student().encoders["gyro"](torch.zeros(2, 3, 100)).shape == (2, 16)


def _npy(pickled: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    return stream.getvalue() + pickled


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    marker = tmp_path / "was-here"
    evil = pickle.dumps(_Evil(marker), protocol=protocol)
    with pytest.raises(DataError, match=r"asks for 'posix\.mkdir', which is no part of an array"):
        read_recordings(_npy(evil))
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists()


@pytest.mark.parametrize("name", ["builtins eval", "numpy load", "numpy.core.multiarray scalar", "_codecs lookup"])
def test_only_what_an_array_needs_is_known(name):
    module, attribute = name.split()
    with pytest.raises(DataError, match=f"asks for '{module}.{attribute}'"):
        read_recordings(_npy(f"c{module}\n{attribute}\n.".encode()))


def test_only_one_codec_is_known():
    with pytest.raises(DataError, match="encoding 'rot13'"):
        read_recordings(_npy(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR."))


@pytest.mark.parametrize("damage", [lambda raw: raw[:1000], lambda raw: b"PK" + raw[2:], lambda raw: b""])
def test_a_damaged_file_is_a_data_error(raw, damage):
    with pytest.raises(DataError, match="damaged"):
        read_recordings(damage(raw))
