"""The details of every kind of output, against a count by hand."""

import base64
import itertools
import struct
import warnings
from dataclasses import replace

import numpy as np
import pytest
from outputs import COUNT, EVERY, GROUPS, IDS, NAMES, classes, dense, embedding, labels, maps, numbers, pictures, tokens

from edgekd.gram.output_kind import OutputKind
from edgekd.report.details.classes import PairCounts
from edgekd.report.details.compared import ComparedOutput
from edgekd.report.details.content import InputPicture
from edgekd.report.details.make import MOST_SAMPLES, output_details
from edgekd.report.details.pictures import SIDE, input_picture, read_pictures
from edgekd.report.details.sequences import decode

MODELS = ("shipped", "student", "teacher")


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def described(made, **changes):
    return output_details(replace(made(), **changes), pictures)


def by_hand(true, said, label):
    """Return precision, recall and intersection over union of one class."""
    both = sum(t == label == s for t, s in zip(true, said, strict=True))
    held, spoken = (sum(one == label for one in ones) for ones in (true, said))
    return both / spoken, both / held, both / (held + spoken - both)


@pytest.mark.parametrize(("made", "axis"), [(classes, -1), (dense, 1), (tokens, -1)])
def test_precision_recall_and_overlap_are_those_counted_by_hand(made, axis):
    compared, found = made(), described(made)
    true = compared.targets.ravel()
    for model, (index, row) in itertools.product(MODELS, enumerate(found.classes.rows)):
        said = compared.outputs[model].argmax(axis).ravel()
        expected = by_hand(true[true >= 0].tolist(), said[true >= 0].tolist(), index)
        assert (row.precision[model], row.recall[model], row.overlap[model]) == pytest.approx(expected)
        assert row.support == (true == index).sum()
    counts = np.array(found.classes.confusion)
    assert counts.sum() == (true >= 0).sum()
    assert counts.trace() == ((compared.outputs["shipped"].argmax(axis).ravel() == true) & (true >= 0)).sum()
    pair = found.classes.confused[0]
    assert pair.counts["shipped"] == (counts - np.diag(counts.diagonal())).max()
    names = [row.name for row in found.classes.rows]
    assert pair.counts["shipped"] == counts[names.index(pair.true), names.index(pair.said)]


def test_pairs_of_many_classes_are_counted_as_those_of_few():
    random = np.random.default_rng(0)
    true, said = random.integers(0, 4, (2, 500))
    few, many = PairCounts(4), PairCounts(5000)
    for counts in (few, many):
        counts.add(true[:200], said[:200])
        counts.add(true[200:], said[200:])
        counts.add(np.array([-100, -100]), np.array([1, 2]))
    assert few.confused(3) == many.confused(3)
    assert [few.of(a, b) for a in range(4) for b in range(4)] == [many.of(a, b) for a in range(4) for b in range(4)]
    assert few.said.tolist() == many.said[:4].tolist()
    assert many.of(7, 8) == 0


def test_of_many_classes_the_table_shows_those_that_are_found_least_and_no_picture_is_drawn():
    random = np.random.default_rng(0)
    true = np.arange(600)
    right = (np.eye(600) * 9 + random.normal(size=(600, 600)) * 0.1).astype(np.float32)
    spoilt = right.copy()
    spoilt[590:] = -spoilt[590:]
    outputs = {"shipped": spoilt, "student": right}
    found = output_details(ComparedOutput(OutputKind(), outputs, "student", true.astype(str), true), pictures)
    assert (found.classes.count, len(found.classes.rows), found.classes.confusion) == (600, 200, ())
    assert {str(name) for name in range(590, 600)} <= {row.name for row in found.classes.rows}
    assert len(found.worst) == len(found.flips) == 10


def test_changed_answers_are_told_by_who_is_right():
    compared, found = classes(), described(classes)
    said = {model: outputs.argmax(1) for model, outputs in compared.outputs.items()}
    known, changed = compared.targets >= 0, said["shipped"] != said["student"]
    mine, theirs = (said[model] == compared.targets for model in ("shipped", "student"))
    told = found.changes
    assert told.count == changed.sum() > 0
    assert told.broken == (changed & known & theirs).sum() > 0
    assert told.mended == (changed & known & mine).sum()
    assert told.unknown == (changed & ~known).sum()
    assert told.broken + told.mended + told.alike + told.unknown == told.count
    for sample in found.flips:
        row = int(np.flatnonzero(sample.id == IDS)[0])
        assert changed[row]
        assert sample.said["shipped"].startswith(NAMES[said["shipped"][row]])
        assert sample.true == (NAMES[compared.targets[row]] if known[row] else "")
        assert sample.group == GROUPS[row]


def test_the_worst_samples_are_wrong_and_the_surest_come_first():
    found = described(classes)
    figures = [sample.figure for sample in found.worst]
    assert figures == sorted(figures, reverse=True)
    assert min(figures) > 0
    assert all(sample.score["shipped"] == 0 for sample in found.worst)


def test_one_mistake_made_many_times_does_not_fill_the_list():
    true = np.zeros(60, int)
    scores = np.zeros((60, 3), np.float32)
    scores[:40, 1], scores[40:, 1] = 9 + np.arange(40), 1
    groups = np.where(np.arange(60) < 40, "one recording", np.arange(60).astype(str))
    outputs = {"shipped": scores, "student": scores}
    found = output_details(ComparedOutput(OutputKind(), outputs, "student", np.arange(60), true, groups), pictures)
    assert len(found.worst) == MOST_SAMPLES
    assert sum(sample.group == "one recording" for sample in found.worst) == 3


def test_without_labels_what_ships_is_held_against_the_reference():
    for made in (classes, labels, numbers, dense, tokens):
        found = described(made, targets=None)
        assert (found.truth, found.labelled, found.models, found.worst, found.groups) == (
            *("reference", 0, ("shipped",), (), None),
        )
        assert found.flips
        assert set(found.flips[0].said) == set(MODELS)
        assert found.changes.broken == found.changes.mended == 0
    assert described(classes, targets=None).changes == replace_unknown(described(classes))


def replace_unknown(found):
    """Return the changes of samples of which no truth is known."""
    told = found.changes
    return type(told)(told.count, told.mean, 0, 0, 0, told.count)


def test_a_network_that_is_not_finite_says_nothing_and_is_worst():
    compared = classes()
    compared.outputs["shipped"][7] = np.nan
    found = output_details(compared, pictures)
    assert found.worst[0].id == IDS[7]
    assert (found.worst[0].said["shipped"], found.worst[0].figure) == ("not a finite number", None)
    assert np.array(found.classes.confusion).sum() == (compared.targets >= 0).sum() - 1
    assert found.classes.rows[compared.targets[7]].recall["shipped"] < 1


@pytest.mark.parametrize("made", EVERY.values(), ids=EVERY)
def test_broken_outputs_of_any_kind_are_described_without_a_warning(made):
    compared = made()
    compared.outputs["shipped"][:] = np.nan
    assert output_details(compared, pictures).samples == COUNT


# --- labels


def test_average_precision_is_the_sum_by_hand():
    compared, found = labels(), described(labels)
    for index, row in enumerate(found.classes.rows):
        known = compared.targets[:, index] >= 0
        is_so = compared.targets[known, index] > 0
        order = np.argsort(-compared.outputs["shipped"][known, index])
        hits = is_so[order]
        ranks = np.flatnonzero(hits) + 1
        assert row.average_precision["shipped"] == pytest.approx(np.mean(np.arange(1, len(ranks) + 1) / ranks))
        assert row.support == is_so.sum()
    curve = found.curves["shipped"]
    assert curve.x[-1] == 1
    assert list(curve.x) == sorted(curve.x)


def test_only_samples_with_a_wrong_label_are_among_the_worst():
    found = described(labels)
    assert all(sample.score["shipped"] < 1 for sample in found.worst)
    wrong = (1 - found.mean_score["shipped"]) * 4 * found.labelled
    assert sum(sample.figure for sample in found.worst) == pytest.approx(wrong, abs=0.4)


# --- numbers


def test_errors_of_numbers_are_those_by_hand_and_unknown_ones_do_not_count():
    compared, found = numbers(), described(numbers)
    known = ~np.isnan(compared.targets)
    for index, row in enumerate(found.numbers.rows):
        error = (compared.outputs["shipped"] - compared.targets)[known[:, index], index]
        assert row.error["shipped"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
        assert row.bias["shipped"] == pytest.approx(error.mean(), rel=1e-3, abs=1e-5)
        variance = compared.targets[known[:, index], index].var()
        assert row.r2["shipped"] == pytest.approx(1 - np.mean(error**2) / variance, rel=1e-4)
    assert found.labelled == COUNT - 1
    assert sum(found.numbers.histogram["shipped"]) == known.sum()
    assert len(found.numbers.points["shipped"].x) == known[:, 0].sum()
    assert not found.higher_is_better
    assert found.changes.count is None


def test_a_number_that_is_never_known_has_no_figures():
    compared = numbers()
    compared.targets[:, 1] = np.nan
    row = output_details(compared, pictures).numbers.rows[1]
    assert (row.deviation, row.error["shipped"], row.bias["shipped"], row.r2["shipped"]) == (0, None, None, None)


def test_a_threshold_makes_decisions_of_numbers():
    found = described(numbers, kind=OutputKind("regression", threshold=0.0))
    compared = numbers()
    sides = [compared.outputs[model] >= 0 for model in ("shipped", "student")]
    assert found.changes.count == (sides[0] != sides[1]).any(1).sum() > 0


def test_rounding_is_no_change():
    compared = numbers()
    compared.outputs["shipped"] = compared.outputs["student"] * np.float32(1 + 1e-6)
    found = output_details(compared, pictures)
    assert (found.flips, found.changes.mean) == ((), 0)


def test_maps_of_numbers_are_shown_side_by_side():
    found = described(maps)
    assert (found.numbers.rows, found.numbers.points) == ((), {})
    assert [one.name for one in found.worst[0].pictures] == ["accel", "true", "student", "shipped"]


def test_a_number_that_never_varies_has_no_share_of_its_variance():
    true = np.full((COUNT, 1), 5.0)
    outputs = {"shipped": np.full((COUNT, 1), 6.0), "student": np.full((COUNT, 1), 5.0)}
    found = output_details(ComparedOutput(OutputKind("regression"), outputs, "student", IDS, true), pictures)
    assert found.numbers.rows[0].r2 == {"shipped": None, "student": None}
    assert found.mean_score == {"shipped": pytest.approx(0.2), "student": 0}


# --- embeddings


def test_recall_is_that_of_a_search_by_hand():
    compared, found = embedding(), described(embedding)
    unit = {model: z / np.linalg.norm(z, axis=1, keepdims=True) for model, z in compared.outputs.items()}
    for model, index in (("shipped", "student"), ("student", "student"), ("teacher", "teacher")):
        near = unit[model] @ unit[index].T
        np.fill_diagonal(near, -2)
        order = np.argsort(-near, 1)[:, :5]
        right = compared.targets[order] == compared.targets[:, None]
        assert found.retrieval[0].first[model] == pytest.approx(right[:, 0].mean())
        assert found.retrieval[0].five[model] == pytest.approx(right.any(1).mean())
    first = found.worst[0].retrieved["shipped"]
    assert len(first) == 5
    assert not first[0].right
    assert found.worst[0].id not in {one.id for one in first}
    assert found.retrieval[0].name == "all"


def test_a_sample_alone_in_its_class_is_no_query():
    compared = embedding()
    compared.targets[0] = 5
    found = output_details(replace(compared, classes=(*NAMES, "yak")), pictures)
    assert found.labelled == COUNT - 1


# --- sequences


def test_tokens_are_decoded_as_ctc_does_and_edits_are_the_fewest():
    assert decode(np.array([0, 1, 1, 0, 1, 2, 2, 0]), 0).tolist() == [1, 1, 2]
    words = {"shipped": [1, 2, 0, 3, 3, 0], "student": [1, 2, 0, 3, 0, 4]}
    outputs = {model: np.eye(5, dtype=np.float32)[None, steps] for model, steps in words.items()}
    kind = OutputKind("sequence-classes", blank=0)
    true = np.array([[1, 3, 4, -100]])
    compared = ComparedOutput(kind, outputs, "student", np.array(["a"]), true, classes=tuple("_abcd"))
    found = output_details(compared, pictures)
    assert found.tokens.inserted == {"shipped": 0, "student": 1}
    assert found.tokens.deleted == {"shipped": 0, "student": 0}
    assert found.tokens.substituted == {"shipped": 2, "student": 0}
    assert found.mean_score == {"shipped": pytest.approx(1 / 3), "student": pytest.approx(2 / 3)}
    assert (found.worst[0].true, found.worst[0].said["shipped"]) == ("acd", "abc")
    assert sum(row.support for row in found.classes.rows) == 3


# --- groups, privacy, pictures


def test_groups_are_listed_from_the_worst():
    found = described(classes)
    scores = [row.score["shipped"] for row in found.groups.rows]
    assert scores == sorted(scores)
    assert found.groups.count == 6
    assert sum(row.samples for row in found.groups.rows) == found.labelled


@pytest.mark.parametrize("made", EVERY.values(), ids=EVERY)
def test_where_samples_are_left_out_nothing_of_one_is_there(made):
    found = output_details(made(), None)
    assert not found.shown
    assert (found.worst, found.flips) == ((), ())
    text = str(found)
    assert "person" not in text
    assert not any(name in text for name in IDS)
    assert found.numbers is None or found.numbers.points == {}


def pixels(picture):
    data = base64.b64decode(picture.png.partition(",")[2])
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3, 28, 28), (28, 28)),
        ((1, 81, 60), (20, 27)),
        ((200, 100, 3), (20, 40)),
        ((40, 24), (24, 40)),
        ((1, 8, 8), (8, 8)),
    ],
)
def test_images_become_small_pictures(shape, size):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    assert pixels(input_picture("image", values, values)) == size
    assert max(size) <= SIDE


def test_series_become_a_few_numbers_that_keep_the_peaks():
    values = np.zeros((2, 1000), np.float32)
    values[0, 500], values[1, 10] = 5, -5
    drawn = input_picture("accel", values, values)
    channels = [list(map(int, channel.split())) for channel in drawn.series]
    assert [len(channel) for channel in channels] == [63, 63]
    assert (max(channels[0]), min(channels[1])) == (100, 0)


@pytest.mark.parametrize(
    "values", [np.zeros(6, np.float32), np.arange(100), np.zeros((2, 3, 4, 5), np.float32), np.zeros((0,), np.float32)]
)
def test_what_is_no_picture_has_none(values):
    assert input_picture("tokens", values, values) is None


def test_pictures_are_read_row_by_row_and_what_is_absent_has_none(tmp_path):
    image = np.arange(200 * 64, dtype=np.float32).reshape(200, 1, 8, 8)
    path = tmp_path / "samples.npz"
    arrays = {"input.image": image, "input.code": np.zeros((200, 3), np.float32)}
    np.savez(path, **arrays, **{"present.image": np.arange(200) != 150})
    found = read_pictures(path, [199, 150, 0])
    assert [one.name for one in found[199]] == ["image"]
    assert found[150] == ()
    assert found[0] != found[199]


def test_pictures_end_where_there_is_no_more_room():
    def noise(rows):
        return {row: (InputPicture("image", png="x" * 9000),) for row in rows}

    found = output_details(classes(), noise)
    assert [bool(sample.pictures) for sample in found.worst[:4]] == [True, True, False, False]


@pytest.mark.parametrize(("kind", "shape"), [("embedding", (1, 8)), ("regression", (3, 0)), ("custom", (2, 0, 4))])
def test_what_has_nothing_to_compare_with_is_described_by_its_change_alone(kind, shape):
    ours = np.ones(shape, np.float32)
    outputs = {"shipped": ours + np.float32(0.5), "student": ours}
    ids = np.array([str(row) for row in range(shape[0])])
    found = output_details(ComparedOutput(OutputKind(kind), outputs, "student", ids), pictures)
    assert found.changes.count is None
    assert found.changes.mean == pytest.approx(0.5 if ours.size else 0.0)
