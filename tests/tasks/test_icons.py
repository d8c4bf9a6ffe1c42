import numpy as np
import pytest

from edgekd.errors import DataError
from edgekd.tasks.catalogue import ICONS, MDI
from edgekd.tasks.data.words import word_tokens
from edgekd.tasks.icons import LEAST_ICONS, Icons, chosen_icons, draw_icons, read_icons
from edgekd.tasks.packages import fetch
from edgekd.training.task.protocol import SPLITS


@pytest.fixture(scope="module")
def task():
    return Icons()


@pytest.fixture(scope="module")
def icons():
    return {icon.name: icon for icon in read_icons(fetch(MDI))}


def test_an_icon_and_its_variants_are_in_one_split(task, icons):
    splits = task.splits()
    families = [set(splits[name].groups) for name in SPLITS]
    assert sum(map(len, families)) == len(set.union(*families))
    assert icons["account-alert-outline"].family == "account"
    assert sum(len(split) for split in splits.values()) == ICONS.samples


def test_every_tag_is_learned_and_tested(task):
    splits = task.splits()
    assert len(task.tags) == 39
    assert splits["train"].targets.sum(0).min() >= 20
    assert splits["test"].targets.sum(0).min() >= 1
    assert sum(split.targets.sum(0) for split in splits.values()).min() >= LEAST_ICONS


def test_a_sample_is_the_icon_that_its_id_names(task, icons):
    split = task.splits()["test"]
    for index in (0, len(split) - 1):
        sample = split[index]
        icon = icons[sample.id.removeprefix("icons-")]
        assert {tag for tag, there in zip(task.tags, sample.target, strict=True) if there} == icon.tags & set(task.tags)
        np.testing.assert_array_equal(sample.inputs["picture"], draw_icons(fetch(MDI), [icon])[0])
        words = " ".join((icon.name, *icon.others)).replace("-", " ")
        np.testing.assert_array_equal(sample.inputs["words"], word_tokens(words, 8, 1024))


def test_a_picture_is_the_icon(icons):
    (square,) = draw_icons(fetch(MDI), [icons["square"]])[:, 0]
    assert square[4:20, 4:20].min() == 1
    assert square[:3].max() == square[-3:].max() == 0


def test_icons_without_a_frequent_tag_are_left_out(icons):
    tags, chosen = chosen_icons(list(icons.values()))
    assert all(icon.tags & set(tags) for icon in chosen)
    assert len(chosen) < len(icons)


def test_the_split_never_changes(task):
    assert task.splits()["test"].ids[:2] == IDS


def test_an_archive_without_icons_is_said_to_be(tmp_path):
    with pytest.raises(DataError):
        read_icons(tmp_path / "none.tgz")


IDS = ["icons-google-earth", "icons-meter-gas"]
