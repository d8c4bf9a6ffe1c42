import numpy as np
import pytest
import torch

from edgekd.tasks.catalogue import EMOJI
from edgekd.tasks.data.words import word_tokens
from edgekd.tasks.emoji import Emoji, EmojiSign, found_names, matching_loss
from edgekd.training.task.protocol import SPLITS


@pytest.fixture(scope="module")
def task():
    return Emoji()


def sign(code):
    return EmojiSign(code, "", "", 0, 0)


def test_variants_of_an_emoji_are_one_family():
    cooks = ["1F468-200D-1F373", "1F469-200D-1F373", "1F9D1-200D-1F373", "1F373"]
    assert {sign(code).family for code in cooks} == {"1F373"}
    assert sign("1F46E-200D-2640-FE0F").family == sign("1F46E").family == "1F46E"
    assert sign("1F1E9-1F1EA").family != sign("1F1E9-1F1F0").family
    assert sign("1F468").family == sign("1F469").family == "person"


def test_no_family_is_in_two_splits_and_only_the_training_has_two_makers(task):
    splits = task.splits()
    families = [set(splits[name].groups) for name in SPLITS]
    assert sum(map(len, families)) == len(set.union(*families))
    assert sum(len(split) for split in splits.values()) == EMOJI.samples
    for name in SPLITS:
        makers = {sample_id.rsplit("-", 1)[1] for sample_id in splits[name].ids}
        assert makers == ({"twitter", "google"} if name == "train" else {"twitter"})
        assert np.bincount(splits[name].labels, minlength=9).min() >= 5


def test_a_sample_is_the_emoji_that_its_id_names(task):
    places = {
        name.rsplit("-", 1)[0]: (split, row) for split in task.splits().values() for row, name in enumerate(split.ids)
    }
    split, row = places["emoji-1F1EF-1F1F5"]  # Japan's flag
    sample = split[row]
    assert task.groups[sample.label] == "Flags"
    np.testing.assert_array_equal(sample.inputs["words"], word_tokens("Japan Flag", 8, 512))
    picture = sample.inputs["picture"]
    red, green, _ = picture[:, 16, 16]
    assert red > 0.8
    assert green < 0.4  # the sun
    np.testing.assert_allclose(picture[:, 0, 0], 1)  # white beside the flag


def test_the_metric_is_the_mean_of_accuracy_and_of_names_found(task):
    vectors = np.random.RandomState(0).normal(size=(40, 32)).astype(np.float32)
    right = {"group": np.eye(9)[np.arange(40) % 9], "picture_vector": vectors, "words_vector": 3 * vectors}
    targets = {"group": np.arange(40) % 9, "emoji": np.arange(40)}
    assert task.metric(right, targets) == 1
    half = right | {"words_vector": -vectors}
    assert task.metric(half, targets) == 0.5
    assert found_names(vectors, np.roll(vectors, 1, axis=0)) < 0.5


def test_the_loss_of_matching_is_low_where_pictures_find_their_names():
    vectors = torch.nn.functional.normalize(torch.randn(30, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    emojis = torch.arange(30)
    assert matching_loss(vectors, vectors, emojis) < 0.1
    assert matching_loss(vectors, vectors.roll(1, 0), emojis) > 3
    twins = torch.arange(30) // 2  # two drawings with one name each
    both = vectors[twins]
    assert matching_loss(both, both, twins) == pytest.approx(np.log(2), abs=0.1)


def test_networks_give_a_group_and_two_vectors(task):
    inputs = [x[:4] for x in task.splits()["test"].inputs.values()]
    for network in (task.teacher(), task.student()):
        answers = network.eval()(*inputs)
        assert {name: tuple(x.shape) for name, x in answers.items()} == {
            "group": (4, 9), "picture_vector": (4, 32), "words_vector": (4, 32),
        }  # fmt: skip
        assert list(answers) == [output.name for output in task.outputs]


def test_the_split_never_changes(task):
    assert task.splits()["test"].ids[:2] == IDS


IDS = ["emoji-1F1E7-1F1FF-twitter", "emoji-1F469-200D-1F469-200D-1F467-200D-1F466-twitter"]
