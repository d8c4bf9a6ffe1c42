"""Each kind of output has breaks that only it can have, and each is caught; noise of no account passes in all."""

import numpy as np
import pytest

from edgekd.errors import TaskError
from edgekd.gram.answers import compare_answers, compare_outputs, sample_divergences
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap, Estimate
from edgekd.gram.measures.guess import guess_kind
from edgekd.gram.measures.tokens import collapse, edit_distance
from edgekd.gram.measures.turnover import ClassTurnover
from edgekd.gram.output_kind import MAX_DIVERGENCE, OutputKind
from edgekd.gram.probe import Probe
from edgekd.gram.verdict import GateLimits, Measured, judge_behaviour

RANDOM = np.random.default_rng(7)
SAMPLES, SIZE = 80, 24
LIMITS = GateLimits(0.02, 0.04, 0.05, 0.015)
FAR = 5.0


def scores_of(classes, count, axis, far=FAR):
    """Return logits that are sure of these classes, and differ a little everywhere."""
    scores = far * np.moveaxis(np.eye(count, dtype=np.float32)[classes], -1, axis)
    return (scores + 0.3 * RANDOM.standard_normal(scores.shape)).astype(np.float32)


def masks():
    """Maps of a background 0, a disc of class 1, and in every other map a spot of class 2: 1 % of all positions."""
    y, x = np.mgrid[:SIZE, :SIZE]
    found = np.zeros((SAMPLES, SIZE, SIZE), int)
    for mask in found:
        (a, b), (c, d) = RANDOM.integers(8, 16, 2), RANDOM.integers(1, 3, 2)
        mask[(y - a) ** 2 + (x - b) ** 2 < 25] = 1
        mask[c : c + 3, d : d + 4] = 2
    found[::2][found[::2] == 2] = 0
    return found


def steps():
    """Frames that say 8 tokens of 5 letters, each in 3 frames with a blank after it: the fifth is said twice."""
    tokens = RANDOM.integers(1, 6, (SAMPLES, 8))
    tokens[:, 5] = tokens[:, 4]
    return np.concatenate([np.repeat(tokens[..., None], 3, 2), np.zeros((SAMPLES, 8, 1), int)], 2).reshape(SAMPLES, -1)


def clusters(width=16):
    """Unit vectors about 20 directions."""
    found = RANDOM.standard_normal((20, width))[np.arange(SAMPLES * 4) % 20]
    found = found + 0.4 * RANDOM.standard_normal(found.shape)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


MASKS, STEPS, TAGS = masks(), steps(), RANDOM.random((400, 12)) < np.r_[np.full(11, 0.4), 0.03]
WORDS = RANDOM.integers(0, 30, (SAMPLES, 12))
ROTATION = np.linalg.qr(RANDOM.standard_normal((16, 16)))[0].astype(np.float32)
KINDS = {
    "dense": (OutputKind("dense-classes"), scores_of(MASKS, 3, 1)),
    "unsure dense": (OutputKind("dense-classes"), scores_of(MASKS, 3, 1, 1.2)),
    "tokens": (OutputKind("sequence-classes"), scores_of(WORDS, 30, -1)),
    "ctc": (OutputKind("sequence-classes", blank=0), scores_of(STEPS, 6, -1)),
    "multilabel": (OutputKind("multilabel"), (4.0 * (2 * TAGS - 1)).astype(np.float32)),
    "regression": (OutputKind("regression"), RANDOM.standard_normal((200, 3)).astype(np.float32) * [1, 1e-3, 1e3]),
    "to a float index": (OutputKind("embedding"), clusters()),
    "to its own index": (OutputKind("embedding", index="own"), clusters()),
    "custom": (OutputKind("custom"), RANDOM.standard_normal((200, 10, 4)).astype(np.float32)),
}


def probe_of(outputs):
    return Probe(np.arange(len(outputs)).astype(str), {"logits": np.asarray(outputs, np.float32)}, {})


def compared(name, outputs, groups=None, changed=None):
    kind, reference = KINDS[name]
    bootstrap = Bootstrap(resamples=200)
    return compare_answers(probe_of(outputs), probe_of(reference), "logits", kind, groups, bootstrap, changed)


def judged(answers, loss=None):
    kept = Probe(
        np.arange(320).astype(str), {"logits": np.zeros((320, 2), np.float32)}, {"a": KINDS["to a float index"][1]}
    )
    drift = measure_drift(kept, kept, None, Bootstrap(resamples=50))
    return judge_behaviour(Measured({"y": answers}, loss, drift), LIMITS, 0.95)


def vanished(scores, label):
    """No position is of this class any more; what was, is of the next best."""
    changed = scores.copy()
    at = np.moveaxis(changed, 1, -1)
    lost = at.argmax(-1) == label
    at[..., label] = np.where(lost, at.min(-1), at[..., label])
    return changed


def shifted(scores, axis):
    return np.roll(scores, 1, axis)


def without_blanks(scores):
    """The blanks between two letters that are the same are lost, so that both become one."""
    changed, classes = scores.copy(), scores.argmax(-1)
    twice = (classes[:, 1:-1] == 0) & (classes[:, :-2] == classes[:, 2:])
    changed[:, 1:-1][twice] = scores[:, :-2][twice]
    return changed


def inserted(scores):
    """In the first frame of each sequence another letter is said, which goes before all others."""
    changed = scores.copy()
    first = scores[:, 0].argmax(-1)
    changed[np.arange(len(scores)), 0, first % 5 + 1] = 2 * FAR
    return changed


def without_rare_label(scores):
    changed = scores.copy()
    changed[:, 11] = -4
    return changed


def hub(z):
    """All embeddings lean to one of them, which so becomes a nearest one of them all."""
    leaning = 0.5 * z + 0.8 * z[:1]
    return leaning / np.linalg.norm(leaning, axis=1, keepdims=True)


def distorted(z):
    stretched = z * np.geomspace(0.2, 3, z.shape[1], dtype=np.float32)
    return stretched / np.linalg.norm(stretched, axis=1, keepdims=True)


#: By kind: what breaks it, and words of the reason for which it fails.
BREAKS = {
    ("dense", "a small class vanished"): (lambda z: vanished(z, 2), "class 2"),
    ("unsure dense", "a small class vanished"): (lambda z: vanished(z, 2), "class 2"),
    ("dense", "the mask moved by a pixel"): (lambda z: shifted(z, 2), "KL divergence, nats a position"),
    ("tokens", "one step late"): (lambda z: shifted(z, 1), "elsewhere"),
    ("tokens", "a word of 30 is never said"): (
        lambda z: np.moveaxis(vanished(np.moveaxis(z, -1, 1), 17), 1, -1),
        "class 17",
    ),
    ("ctc", "letters that are said twice are said once"): (without_blanks, "of the answers changed"),
    ("ctc", "a letter is inserted"): (inserted, "of the answers changed"),
    ("multilabel", "a rare label is lost"): (without_rare_label, "label 11"),
    ("multilabel", "all labels are lost"): (lambda z: -np.abs(z), "of the labels that hold"),
    ("regression", "one element of several"): (
        lambda z: z * np.float32([1, -1, 1]),
        "element 1 of the output is broken",
    ),
    ("regression", "a scale"): (lambda z: z * np.float32(1.3), "squared error"),
    ("to a float index", "rotated"): (lambda z: z @ ROTATION, "other vectors"),
    ("to its own index", "a hub"): (hub, "other vectors"),
    ("to its own index", "collapsed"): (lambda z: 0.02 * z + z[:1], "other vectors"),
    ("to its own index", "distorted"): (distorted, "other vectors"),
    ("custom", "noise"): (lambda z: z + 0.3 * RANDOM.standard_normal(z.shape), "squared error"),
}


@pytest.mark.parametrize(("name", "broken"), BREAKS)
def test_a_break_that_only_this_kind_can_have_fails(name, broken):
    change, said = BREAKS[name, broken]
    found = judged(compared(name, change(KINDS[name][1])))
    assert found.verdict == "fail"
    assert any(said in reason for reason in found.reasons), found.reasons


@pytest.mark.parametrize("name", KINDS)
def test_noise_as_small_as_that_of_rounding_passes(name):
    outputs = KINDS[name][1]
    noise = 0.02 * outputs.std(0) * RANDOM.standard_normal(outputs.shape)
    assert judged(compared(name, outputs + noise)).verdict == "pass"
    same = compared(name, outputs)
    assert (same.error.mean, same.divergence.mean) == (0, pytest.approx(0, abs=1e-12))
    assert same.worst_class_changed is None or same.worst_class_changed.mean == 0


def test_a_rotation_is_none_to_an_index_of_ones_own():
    kind, z = KINDS["to its own index"]
    found = compared("to its own index", z @ ROTATION)
    assert judged(found).verdict == "pass"
    assert found.divergence.high < 1e-5
    assert found.error.high < 1e-5
    assert found.changed.mean < 0.01
    alone = compare_answers(probe_of(z[:1] @ ROTATION), probe_of(z[:1]), "logits", kind, None, Bootstrap())
    assert (alone.divergence.mean, alone.changed) == (0, None)


@pytest.mark.parametrize("change", [hub, lambda z: 0.02 * z + z[:1], distorted], ids=["hub", "collapsed", "distorted"])
def test_what_brings_far_embeddings_near_moves_cosines(change):
    found = compared("to its own index", change(KINDS["to its own index"][1]))
    assert found.divergence.low > MAX_DIVERGENCE["embedding"]


def test_a_mean_over_positions_hides_the_class_that_vanished():
    """So it is looked at by itself: the network passes by all other figures."""
    found = compared("unsure dense", vanished(KINDS["unsure dense"][1], 2))
    assert found.changed.mean < 0.02
    assert found.worst_class == 2
    assert found.worst_class_changed.low > 0.8


def test_a_class_in_few_samples_and_one_of_stray_pixels_are_not_lost():
    kind, scores = KINDS["dense"]
    few = scores.copy()
    few[4:] = vanished(few[4:], 2)
    found = compare_answers(probe_of(vanished(few, 2)), probe_of(few), "logits", kind, None, Bootstrap(resamples=200))
    assert found.worst_class_changed is None or found.worst_class_changed.low < 0.5
    stray = np.array(vanished(scores, 2))
    stray[::9, 2, 0, 0] = 3 * FAR
    found = compare_answers(
        probe_of(vanished(stray, 2)), probe_of(stray), "logits", kind, None, Bootstrap(resamples=200)
    )
    assert found.worst_class != 2


def test_ties_that_fall_to_the_other_side_lose_no_class():
    """A map whose classes 1 and 2 are as likely as each other at every position of class 1."""
    scores = scores_of(np.minimum(MASKS, 1), 3, 1)
    scores[:, 2] = scores[:, 1]
    ours, theirs = (scores + 1e-3 * RANDOM.standard_normal(scores.shape) for _ in range(2))
    kind = OutputKind("dense-classes")
    found = compare_answers(probe_of(ours), probe_of(theirs), "logits", kind, None, Bootstrap(resamples=200))
    assert found.changed.mean > 0.04
    assert found.worst_class_changed.mean == 0
    labels = 1e-3 * RANDOM.standard_normal((2, 300, 4))
    found = compare_answers(*map(probe_of, labels), "logits", OutputKind("multilabel"), None, Bootstrap(resamples=200))
    assert found.worst_class_changed.mean == 0


def test_of_many_rare_labels_one_is_always_lost_by_chance():
    """1,000 labels, each of 6 samples, of which noise moves one in three: of a few labels it moves all."""
    labels = np.where(np.arange(1000)[None] % 167 == np.arange(200)[:, None] % 167, 1.0, -6.0)
    moved = np.where((labels > 0) & (RANDOM.random(labels.shape) < 0.33), -1.0, labels)
    kind = OutputKind("multilabel")
    found = compare_answers(probe_of(moved), probe_of(labels), "logits", kind, None, Bootstrap(resamples=200))
    assert found.worst_class_changed.mean > 0.9
    assert found.worst_class_changed.low < 0.5


def test_of_labels_at_every_position_of_a_map_the_most_frequent_are_looked_at():
    counts = np.ones(100_000)
    counts[[7, 90_000]] = 2
    classes = ClassTurnover(counts, 10).classes
    assert len(classes) < 5000
    assert {7, 90_000} <= set(classes.tolist())


def test_of_many_samples_and_groups_the_classes_are_counted_in_blocks():
    kind, scores = KINDS["tokens"]
    many = np.tile(scores, (8, 1, 1))
    broken = np.concatenate([np.moveaxis(vanished(np.moveaxis(scores, -1, 1), 3), 1, -1), many[80:]])
    found = compare_answers(probe_of(broken), probe_of(many), "logits", kind, None, Bootstrap(resamples=100))
    assert (found.worst_class, found.worst_class_changed.mean) == (3, pytest.approx(1 / 8))
    groups = np.arange(640) % 600
    grouped = compare_answers(probe_of(broken), probe_of(many), "logits", kind, groups, Bootstrap(resamples=100))
    assert grouped.worst_class_changed.mean == pytest.approx(1 / 8)


@pytest.mark.parametrize("name", ["dense", "tokens", "ctc", "multilabel", "to its own index", "custom"])
def test_chunks_do_not_matter(name, monkeypatch):
    outputs = KINDS[name][1] + 0.5 * RANDOM.standard_normal(KINDS[name][1].shape)
    whole = compared(name, outputs)
    monkeypatch.setattr("edgekd.gram.probe._CHUNK_VALUES", 1000)
    chunked = compared(name, outputs)
    assert chunked.divergence.mean == pytest.approx(whole.divergence.mean)
    assert chunked.changed == whole.changed or chunked.changed.mean == pytest.approx(whole.changed.mean)
    assert chunked.worst_class == whole.worst_class
    assert chunked.worst_element == whole.worst_element


def test_the_task_says_what_the_same_answer_is():
    outputs = KINDS["custom"][1]
    assert compared("custom", outputs).changed is None
    lost = np.arange(200) % 5 == 0
    found = compared("custom", outputs, changed=lost)
    assert found.changed.mean == pytest.approx(0.2)
    assert judged(found).verdict == "pass"  # the very same numbers, whatever the task says
    found = judged(compared("custom", outputs + 0.05 * RANDOM.standard_normal(outputs.shape), changed=lost))
    assert found.verdict == "fail"
    assert any("20% [" in reason and "of the answers changed" in reason for reason in found.reasons)


def test_the_tasks_word_is_asked_once_of_all_outputs_and_must_be_shares():
    probe = Probe(np.arange(50).astype(str), {"boxes": np.ones((50, 4)), "scores": np.ones((50, 1))}, {})
    kinds = {"boxes": OutputKind("custom"), "scores": OutputKind("regression")}

    def found(same):
        return compare_outputs(probe, probe, kinds, None, Bootstrap(resamples=50), same)

    asked = found(lambda ours, theirs: (ours["boxes"][:, 0] == theirs["scores"][:, 0]) * 0.5)
    assert {name: answers.changed.mean for name, answers in asked.items()} == {"boxes": 0.5, "scores": 0.5}
    assert {name: answers.changed for name, answers in found(None).items()} == {"boxes": None, "scores": None}
    for wrong in (0.5, np.zeros((50, 2)), np.full(50, 1.5), np.full(50, -1), np.full(50, "a")):
        with pytest.raises(TaskError, match=r"from 0 to 1 of shape \(50,\), but it returned"):
            found(lambda _ours, _theirs, wrong=wrong: wrong)


def test_what_the_task_calls_the_same_passes_whatever_its_numbers_are():
    boxes = KINDS["custom"][1]
    assert judged(compared("custom", boxes[:, ::-1])).verdict == "fail"
    found = compared("custom", boxes[:, ::-1], changed=np.zeros(200))
    assert judged(found).verdict == "pass"
    assert (found.by_task, found.worst_element) == (True, None)
    few = compared("custom", boxes[:, ::-1], changed=np.arange(200) % 20 == 0)
    undecided = judged(few)
    assert undecided.verdict == "undecided"
    assert judged(few, Estimate(0.0, -0.01, 0.01)).verdict == "pass"
    assert judged(compared("custom", boxes[:, ::-1], changed=np.arange(200) % 5 == 0)).verdict == "fail"
    kind, _ = KINDS["regression"]
    other = compare_answers(*[probe_of(boxes * x) for x in (1.5, 1)], "logits", kind, None, Bootstrap(), np.zeros(200))
    assert judged(other).verdict == "fail"  # of a kind that edgekd knows the numbers count, too


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (np.full((9, 3, 4, 4), 1 / 3), OutputKind("dense-classes", True)),
        (np.full((9, 3, 7), 1 / 3), OutputKind("dense-classes", True)),
        (np.full((9, 7, 4), 1 / 4), OutputKind("sequence-classes", True)),
        (np.ones((9, 1, 4, 4)), OutputKind("regression")),
        (np.full((9, 2, 4, 4), 0.25), OutputKind("regression")),  # rows of attention, say
        (np.zeros(9), OutputKind("regression")),
    ],
)
def test_maps_and_sequences_are_guessed_where_they_are_distributions(outputs, expected):
    assert guess_kind(outputs, True) == expected


def test_the_divergence_of_a_map_is_the_mean_of_its_positions():
    reference = np.log(np.array([[[0.5, 0.9], [0.5, 0.1]]]))
    ours = np.log(np.array([[[0.25, 0.9], [0.75, 0.1]]]))
    kl = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert sample_divergences(ours, reference, OutputKind("dense-classes")) == pytest.approx([kl / 2])
    turned = (x.swapaxes(1, 2) for x in (ours, reference))
    assert sample_divergences(*turned, OutputKind("sequence-classes")) == pytest.approx([kl / 2])


@pytest.mark.parametrize(
    ("classes", "tokens"),
    [([0, 3, 3, 0, 3, 2, 2], [3, 3, 2]), ([0, 0], []), ([], []), ([1, 1, 1], [1])],
)
def test_repeated_classes_are_one_token_and_blanks_none(classes, tokens):
    assert collapse(np.array(classes, int), 0).tolist() == tokens
    assert collapse(np.array(classes, int), None).tolist() == classes


def levenshtein(a, b):
    costs = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, costs[0] = costs[0], i
        for j, y in enumerate(b, 1):
            before, costs[j] = costs[j], min(costs[j] + 1, costs[j - 1] + 1, before + (x != y))
    return costs[-1]


def test_the_edit_distance_is_that_of_the_textbook():
    for seed in range(200):
        random = np.random.default_rng(seed)
        a, b = (random.integers(0, 3, random.integers(0, 9)) for _ in range(2))
        assert edit_distance(a, b) == levenshtein(a.tolist(), b.tolist())
