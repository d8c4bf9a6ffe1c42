"""What nothing would stop at, and nobody wants: each kind of mistake is said in one sentence, and nothing else is."""

import dataclasses

import msgspec
import numpy as np
import pytest
import torch
from small import CONV_TAPS, TAPS, ConvTowers, Remembers, TwoTowers, loaded, reporter
from torch import nn

from edgekd.config.recipe import GateConfig, PruneConfig, Recipe, Tap, TaskConfig
from edgekd.stages.labels import UNLABELLED
from edgekd.training.preflight import check as preflight
from edgekd.training.preflight.random_line import first_random
from edgekd.training.preflight.room import describe_room, needed_bytes
from edgekd.training.taps.taps import NetworkTaps, Taps
from edgekd.training.task.protocol import Output

RECIPE = Recipe(task=TaskConfig(name="small"), prune=PruneConfig(ratio=0))


def warned(task=None, student=None, teacher=None, taps=None, recipe=RECIPE):
    """Return what the preflight warns of."""
    task = task or loaded()
    task.task.student = student or task.task.student
    task.task.teacher = teacher or task.task.teacher
    observer = Remembers()
    preflight.check(task, taps or Taps(TAPS, TAPS), recipe, reporter(observer))
    return observer.warnings


def with_splits(**changes):
    task = loaded()
    splits = {name: dataclasses.replace(split, **changes.get(name, {})) for name, split in task.splits.items()}
    return dataclasses.replace(task, splits=splits)


class BehindFusion(TwoTowers):
    def __init__(self):
        super().__init__()
        self.mixed = nn.Linear(16, 8)

    def forward(self, a, b):
        one, other = self.encoders["a"](a), self.encoders["b"](b)
        return self.head(torch.cat([self.mixed(torch.cat([one, other], 1)), other], 1))


class Ignoring(TwoTowers):
    def forward(self, a, b):
        z = self.encoders["a"](a)
        return self.head(torch.cat([z, 0 * self.encoders["b"](b)], 1))


class Constant(TwoTowers):
    def forward(self, a, b):
        return 0 * super().forward(a, b) + 1


class Detached(TwoTowers):
    """It learns nothing by one of its inputs, but uses it."""

    def forward(self, a, b):
        return super().forward(a, b.detach())


class Softmaxed(TwoTowers):
    def forward(self, a, b):
        return super().forward(a, b).softmax(1)


class ZeroGated(TwoTowers):
    """Its gate begins at zero, as those of adapters do."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, a, b):
        z = torch.cat([self.encoders["a"](a), self.gate * self.encoders["b"](b)], 1)
        return self.head(z)


class DeadTap(TwoTowers):
    def __init__(self):
        super().__init__()
        self.constant = nn.Linear(4, 8)

    def forward(self, a, b):
        self.constant(a.new_ones(len(a), 4))
        return super().forward(a, b)


def small():
    return TwoTowers(hidden=8)


SWAPPED = {"a": TAPS["b"], "b": TAPS["a"]}


@pytest.mark.parametrize(
    ("student", "taps", "said"),
    [
        (TwoTowers, SWAPPED, "the student's taps of 'a' and 'b' are swapped: 'encoders.b' changes with the input of"),
        (BehindFusion, {**TAPS, "a": Tap(module="mixed")}, "tap of 'a', 'mixed', changes with the input of 'b' too"),
        (DeadTap, {**TAPS, "a": Tap(module="constant")}, "tap of 'a', 'constant', gives the same for all samples"),
        (small, {**TAPS, "a": Tap(module="encoders.b.0")}, "changes with the input of 'b' and not with that of 'a'"),
        (Ignoring, TAPS, "the student, Ignoring, answers the same whatever the input of 'b' is"),
        (Constant, TAPS, "the student, Constant, answers the same whatever is put in"),
        (Softmaxed, TAPS, "the student, Softmaxed, gives probabilities, and the losses take logits"),
    ],
    ids=["swapped", "behind the fusion", "dead tap", "another's", "ignored", "constant", "softmax"],
)
def test_a_mistake_in_a_network_is_said_once(student, taps, said):
    warnings = warned(student=student, taps=Taps(TAPS, taps))
    assert sum(said in warning for warning in warnings) == 1
    assert len([warning for warning in warnings if "no loss reaches" not in warning]) == 1


def test_the_teacher_is_looked_at_too():
    (warning,) = warned(teacher=Softmaxed)
    assert warning.startswith("the teacher, Softmaxed, gives probabilities")
    (warning,) = warned(taps=Taps(SWAPPED, TAPS))
    assert warning.startswith("the teacher's taps of 'a' and 'b' are swapped")


class Drowned(TwoTowers):
    """What one modality says is small beside the other."""

    def forward(self, a, b):
        z = torch.cat([1e6 * self.encoders["a"](a), self.encoders["b"](b)], 1)
        return self.head(z)


@pytest.mark.parametrize(
    "student", [TwoTowers, ZeroGated, Drowned, Detached, lambda: TwoTowers(norm=True, dropout=0.5)]
)
def test_what_is_right_is_not_warned_of(student):
    assert warned(student=student) == []


def test_maps_that_are_pooled_are_not_warned_of():
    assert warned(student=ConvTowers, taps=Taps(TAPS, CONV_TAPS)) == []


def test_raw_values_without_standardisation_are_warned_of():
    inputs = {name: {"inputs": {"a": 3e4 + 1e4 * x["a"], "b": x["b"]}} for name, x in
              ((name, split.inputs) for name, split in loaded().splits.items())}  # fmt: skip
    warnings = warned(with_splits(**inputs))
    assert [warning.split(",")[0] for warning in warnings] == ["the teacher", "the student"]
    assert all("edgekd.Standardize" in warning for warning in warnings)

    class Standardised(TwoTowers):
        def forward(self, a, b):
            return super().forward((a - 3e4) / 1e4, b)

    assert warned(with_splits(**inputs), student=Standardised, teacher=Standardised) == []


def labelled(name, labels):
    return with_splits(**{name: {"labels": torch.as_tensor(labels)}})


def test_labels_of_one_class_are_warned_of():
    (warning,) = warned(labelled("train", [1] * 90))
    assert warning == "all labels of split 'train' are of class '1': there is nothing to learn"


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_targets_that_are_the_same_everywhere_are_warned_of(kind):
    task = with_splits(train={"targets": torch.ones(90, 3)}, val={"targets": draw(20)}, test={"targets": draw(30)})
    task = dataclasses.replace(task, splits={**task.splits, "calibration": task.splits["val"]})
    task.task.outputs = [Output("what", kind)]
    taps = NetworkTaps(TAPS, task.outputs)
    (warning,) = (said for said in warned(task, taps=Taps(taps, taps)) if "the target" in said)
    assert warning == (
        "the target of output 'what' is the same in all samples of split 'train': there is nothing to learn"
    )


def test_a_modality_that_every_sample_of_a_split_lacks_is_warned_of():
    (warning,) = warned(with_splits(val={"present": {"a": torch.zeros(20)}}))
    assert warning == "every sample of split 'val' lacks 'a', so what ships is chosen without it"


def draw(count):
    return (torch.arange(count * 3).reshape(count, 3) % 2).float()


@pytest.mark.parametrize(
    ("name", "count", "lesson"), [("train", 90, "no network can learn it"), ("test", 30, "nothing is measured of it")]
)
def test_a_class_that_a_split_lacks_is_named(name, count, lesson):
    task = labelled(name, [0, 2] * (count // 2))
    task.task.classes = ["up", "down", "still"]
    (warning,) = warned(task)
    assert warning == f"no sample of split '{name}' is of class 'down': {lesson}"


def test_samples_without_labels_are_not_taken_for_a_class():
    assert warned(labelled("val", [UNLABELLED] * 20)) == []


@pytest.mark.parametrize("name", ["calibration", "val", "test"])
def test_a_split_of_one_sample_is_warned_of(name):
    split = loaded().splits[name]
    one = {"ids": split.ids[:1], "labels": split.labels[:1], "inputs": {key: x[:1] for key, x in split.inputs.items()}}
    assert any(
        warning.startswith(f"split '{name}' has 1 sample, and ") for warning in warned(with_splits(**{name: one}))
    )


def test_inputs_that_are_in_two_splits_are_warned_of():
    splits = loaded().splits
    leaking = {key: torch.cat([splits["train"].inputs[key][:3], x[3:]]) for key, x in splits["test"].inputs.items()}
    (warning,) = warned(with_splits(test={"inputs": leaking}))
    assert warning.startswith(
        "3 of the 30 samples of split 'test' have the very inputs of samples of 'train', as 'test-0'"
    )
    calibration = {key: x[:20] for key, x in splits["train"].inputs.items()}
    assert warned(with_splits(calibration={"inputs": calibration})) == []


def test_an_input_that_never_changes_is_warned_of():
    same = {"inputs": {"a": loaded().splits["train"].inputs["a"], "b": torch.ones(90, 5)}}
    (warning,) = warned(with_splits(train=same))
    assert warning.startswith("the input of 'b' is the same in every sample of split 'train'")


def test_a_test_split_of_one_subject_is_warned_of():
    (warning,) = warned(with_splits(test={"groups": ["ann"] * 30}))
    assert warning.startswith("all samples of split 'test' are of one group, 'ann'")


def percent(logits, labels):
    return 100.0 * (logits.argmax(1) == labels).mean()


def test_a_metric_in_percent_is_held_against_the_limit():
    task = loaded()
    task.task.metric, task.task.metric_name = percent, "top-1"
    (warning,) = warned(task)
    assert warning.startswith(
        "the task's top-1 goes up to 100 or more, and [gate] max_metric_drop = 0.015 is in its unit"
    )
    assert "gate.max_metric_drop = 1.5" in warning
    own = msgspec.structs.replace(RECIPE, gate=GateConfig(max_metric_drop=1.5))
    assert warned(task, recipe=own) == []


def test_a_metric_without_a_value_for_a_constant_answer_is_warned_of():
    task = loaded()
    task.task.metric = lambda logits, labels: float(np.corrcoef(logits[:, 0], labels)[0, 1])
    with np.errstate(invalid="ignore"):
        (warning,) = warned(task)
    assert "has no value where every answer is the same (it is not a number)" in warning


def test_a_logarithmic_loss_may_be_infinite_for_a_constant_answer():
    task = loaded()
    task.task.higher_is_better = False
    task.task.metric = lambda logits, labels: float(
        -np.log(np.clip(logits[np.arange(len(labels)), labels], 0.1, 1)).mean()
    )
    assert warned(task) == []


class Rolling(TwoTowers):
    def forward(self, a, b):
        return super().forward(a + 0.1 * torch.randn_like(a), b)


def test_a_teacher_that_says_two_things_is_warned_of_with_the_line():
    (warning,) = warned(teacher=Rolling)
    assert "the teacher, Rolling, gives two results for one input in evaluation mode, first randn_like (" in warning
    assert "test_suspicions.py:" in warning


def test_a_network_that_says_one_thing_has_no_random_operation():
    assert first_random(TwoTowers(dropout=0.5).eval(), [torch.ones(2, 6), torch.ones(2, 5)], None) == ""


def test_a_disk_without_room_for_the_build_is_said_before_it():
    needed = needed_bytes(
        TwoTowers(), TwoTowers(), [torch.zeros(2, 250_000)], {"val": 100, "calibration": 100, "test": 800}
    )
    assert 2.0e9 < needed < 2.01e9, "two copies of a thousand samples of a megabyte, and next to nothing of weights"
    assert describe_room(needed, needed, "cache") == ()
    (warning,) = describe_room(needed, 10**8, "cache")
    assert warning.startswith("the build will write about 2.0 GB into cache, where 0.1 GB are free: make room there")
