"""What is wrong with a task or its recipe is said before anything is trained."""

import copy
import dataclasses
import re

import msgspec
import pytest
import torch
from small import CLASSES, TAPS, Remembers, TwoTowers, loaded, mlp, reporter
from torch import nn

from edgekd.config.recipe import LossConfig, PruneConfig, Recipe, Tap, TaskConfig
from edgekd.errors import TaskError
from edgekd.training.loop.weights import build
from edgekd.training.preflight import check as preflight
from edgekd.training.taps.taps import Taps
from edgekd.training.task.protocol import UNLABELLED, ArraySplit

RECIPE = Recipe(task=TaskConfig(name="small"))


class TwoWidths(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({"a": mlp(6, 8, 4), "b": mlp(5, 8, 6)})
        self.head = nn.Linear(10, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.encoders["a"](a), self.encoders["b"](b)], 1))


def check(task=None, student=None, taps=None, recipe=RECIPE):
    task = task or loaded()
    if student:
        task.task.student = student
    preflight.check(task, taps or Taps(TAPS, TAPS), recipe, reporter())


def with_labels(split, label):
    labels = split.labels.clone()
    labels[3] = label
    return dataclasses.replace(split, labels=labels)


def test_what_is_right_passes():
    check()


def test_a_wrong_tap_of_either_side_is_named():
    wrong = {**TAPS, "b": Tap(module="encoders.bb")}
    for name, taps in (("teacher", Taps(wrong, TAPS)), ("student", Taps(TAPS, wrong))):
        with pytest.raises(TaskError, match=rf"^{name}: tap of 'b': TwoTowers has no module 'encoders.bb'; did"):
            check(taps=taps)


def recipe(prune=0.0, repair="off", **extra):
    """A recipe with these losses; nothing is pruned or tuned unless it is said."""
    config = {"distill": {"loss": {"extra": extra}}, "prune": {"ratio": prune, "loss": {"extra": extra}}}
    return msgspec.convert({"task": {"name": "small"}, **config, "quantize": {"repair": repair}}, Recipe)


@pytest.mark.parametrize("loss", ["sample", "cross", "joint", "affinity"])
def test_embeddings_of_two_widths_are_refused_where_a_loss_compares_modalities(loss):
    message = (
        rf"\[distill.loss\] loss '{loss}': '{loss}' takes inner products between modalities.*must share a width, but "
        "are a 4, b 6; give the encoders one width, or choose losses that do without: intra, fd, sp, rkd, pkt"
    )
    with pytest.raises(TaskError, match=message):
        check(student=TwoWidths, recipe=recipe(**{"intra": 1.0, loss: 1.0}))


def test_embeddings_of_two_widths_will_do_for_losses_within_modalities():
    check(student=TwoWidths, recipe=recipe(intra=1.0, fd=1.0, fitnet=1.0, sp=1.0, rkd=1.0, pkt=1.0, dkd=1.0))
    check(student=TwoWidths, recipe=recipe())


def test_later_trainings_are_checked_where_they_may_come():
    with pytest.raises(TaskError, match=r"\[quantize.qat.loss\] loss 'sample'.*must share a width"):
        check(student=TwoWidths, recipe=recipe(repair="auto", intra=1.0))
    with pytest.raises(TaskError, match=r"\[prune\] importance = 'gram'.*share a width, but are a 4, b 6.*'taylor'"):
        check(student=TwoWidths, recipe=recipe(prune=0.25, intra=1.0))
    pruned = PruneConfig(ratio=0.25, importance="taylor", loss=LossConfig(extra={"sample": 1.0}))
    with pytest.raises(TaskError, match=r"\[prune.loss\] loss 'sample'.*must share a width"):
        check(student=TwoWidths, recipe=msgspec.structs.replace(recipe(), prune=pruned))


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"loss": "intra", "modalities": ["c"]}, "'c' is no modality of the task"),
        ({"loss": "cross", "pairs": ["b-a"]}, "there is no pair 'b-a' of its modalities; known: a-b"),
        ({"loss": "fd", "student": {"a": "head"}, "teacher": {"a": "hed"}}, "has no module 'hed'; did you mean 'head'"),
        (
            {"loss": "ickd", "student": {"a": "encoders.a"}, "teacher": {"a": "encoders.a"}},
            r"'ickd' is of feature maps \[B, C, ...\], but 'a' gives \[2, 8\]",
        ),
    ],
)
def test_a_loss_that_cannot_be_computed_is_said_before_anything_is_trained(term, said):
    with pytest.raises(TaskError, match=rf"\[distill.loss\] .*{said}"):
        check(recipe=recipe(x=term))


def test_a_sample_that_lacks_what_is_no_modality_is_refused():
    with pytest.raises(TaskError, match="split 'val': samples are said to lack 'bb', which is no modality of the task"):
        check(with_split("val", present={"bb": [True] * 20}))
    check(with_split("train", present={"b": [True] * 45 + [False] * 45}))


def test_a_network_that_does_not_take_the_samples_is_named_with_their_shapes():
    class Narrow(TwoTowers):
        def __init__(self):
            super().__init__()
            self.encoders["a"] = mlp(7, 8, 8)

    with pytest.raises(TaskError, match=r"the student, Narrow, cannot take the task's samples.*\(4, 6\), \(4, 5\)"):
        check(student=Narrow)


def test_two_numbers_of_classes_are_refused():
    class More(TwoTowers):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, CLASSES + 1)

    with pytest.raises(TaskError, match="disagree on the number of classes: 3 and 4"):
        check(student=More)


@pytest.mark.parametrize("label", [CLASSES, -1])
def test_a_label_out_of_range_is_named_with_its_split(label):
    task = loaded()
    task = dataclasses.replace(task, splits={**task.splits, "val": with_labels(task.splits["val"], label)})
    with pytest.raises(TaskError, match=rf"split 'val' has the label {label}, but the networks give 3 classes"):
        check(task)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda split: with_labels(split, 67), r"has the label 67, but the networks give 3 classes"),
        (
            lambda split: dataclasses.replace(split, targets=split.labels[:, None].float()),
            r"target of output 'logits' is torch\.float32, must be classes .* `outputs` that say kind 'regression'",
        ),
    ],
    ids=["out of range", "numbers"],
)
def test_what_the_first_batch_has_no_classes_of_is_told_before_a_loss_fails_with_it(change, said):
    task = loaded()
    task = dataclasses.replace(task, splits={name: change(split) for name, split in task.splits.items()})
    with pytest.raises(TaskError, match=rf"^split 'train'.* ?{said}"):
        check(task)


def test_samples_without_a_label_are_no_error():
    task = loaded()
    check(dataclasses.replace(task, splits={**task.splits, "train": with_labels(task.splits["train"], UNLABELLED)}))


def test_an_ignored_module_that_does_not_exist_is_named():
    recipe = Recipe(task=TaskConfig(name="small"), prune=PruneConfig(ignore=["hed"]))
    with pytest.raises(TaskError, match=r"has no module 'hed'; did you mean 'head'"):
        check(recipe=recipe)


def with_split(name, **columns):
    task = loaded()
    return dataclasses.replace(task, splits={**task.splits, name: dataclasses.replace(task.splits[name], **columns)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["train", "test"])
def test_an_input_that_is_not_finite_is_named_with_its_sample(name, bad):
    inputs = {key: x.clone() for key, x in loaded().splits[name].inputs.items()}
    inputs["b"][7, 2] = bad
    with pytest.raises(TaskError, match=rf"split '{name}': input 'b' of sample '{name}-7' holds NaN or infinite"):
        check(with_split(name, inputs=inputs))


def test_every_sample_is_read_once():
    reads = []

    class Counting(list):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    for name in ("val", "test"):
        task, reads[:] = loaded(), []
        split = task.splits[name]
        check(dataclasses.replace(task, splits={**task.splits, name: Counting(split[i] for i in range(len(split)))}))
        assert reads == list(range(len(split)))


def test_a_batch_whose_modalities_are_in_another_order_is_refused():
    class Swapped(ArraySplit):
        def __getitems__(self, indices):
            batch = super().__getitems__(indices)
            return dataclasses.replace(batch, inputs=dict(reversed(batch.inputs.items())))

    task = loaded()
    for name in ("train", "calibration"):
        split = task.splits[name]
        swapped = Swapped(split.ids, split.inputs, split.labels)
        with pytest.raises(TaskError, match=rf"split '{name}': .* in the order \['b', 'a'\]"):
            check(dataclasses.replace(task, splits={**task.splits, name: swapped}))


def with_groups(**groups):
    task = loaded()
    splits = {
        name: dataclasses.replace(split, groups=groups[name](len(split)) if name in groups else None)
        for name, split in task.splits.items()
    }
    return dataclasses.replace(task, splits=splits)


def test_a_group_is_in_one_split_only():
    check(with_groups(train=lambda n: ["s1"] * n, test=lambda n: ["s2"] * n, val=lambda n: [""] * n))
    with pytest.raises(TaskError, match="group 's1' is in split 'train' and in 'test'"):
        check(with_groups(train=lambda n: ["s1"] * n, test=lambda n: ["s2"] * (n - 1) + ["s1"]))


def test_a_split_has_groups_for_all_samples_or_for_none():
    with pytest.raises(TaskError, match="split 'test': sample 'test-0' has no group, but others have"):
        check(with_groups(test=lambda n: [""] + ["s2"] * (n - 1)))


def test_a_test_split_without_labels_is_refused():
    with pytest.raises(TaskError, match="split 'test' has no labels, and the metric needs them"):
        check(with_split("test", labels=[UNLABELLED] * 30))


def test_a_metric_that_raises_is_placed():
    def metric(logits, labels):
        return logits[labels, labels, labels]

    task = loaded()
    task.task.metric = metric
    with pytest.raises(TaskError, match=r"the task's metric: IndexError: .*test_preflight\.py:\d+\)"):
        check(task)


def test_a_metric_that_is_not_finite_is_refused():
    task = loaded()
    task.task.metric = lambda logits, labels: float("nan")
    with pytest.raises(TaskError, match="the task's metric is nan for an untrained student's answers for split 'val'"):
        check(task)


def test_another_number_of_names_than_of_logits_is_refused():
    task = loaded()
    task.task.classes = ["x", "y"]
    with pytest.raises(TaskError, match="the task names 2 classes, but its networks give 3 in 'logits'"):
        check(task)


def test_a_network_that_cannot_be_built_is_placed():
    def student():
        return nn.Linear("many", 2)

    with pytest.raises(TaskError, match=r"student\(\): TypeError: .*\.py:\d+\)$"):
        check(student=student)


@pytest.mark.parametrize("name", ["teacher", "student"])
@pytest.mark.parametrize(
    ("network", "said"), [(None, "returned None.*is its 'return' missing"), (3, "returned an int")]
)
def test_what_is_no_network_is_refused(name, network, said):
    task = loaded()
    setattr(task.task, name, lambda: network)
    with pytest.raises(TaskError, match=rf"^{name}\(\) {said}"):
        check(task)


def remembering():
    """Return an observer, and a reporter that passes its events on to it."""
    observer = Remembers()
    return observer, reporter(observer)


def warned(student, recipe=RECIPE):
    task = loaded()
    task.task.student = student
    observer, report = remembering()
    preflight.check(task, Taps(TAPS, TAPS), recipe, report)
    return observer.warnings


class Dropping(TwoTowers):
    def forward(self, a, b):
        return super().forward(nn.functional.dropout(a, 0.5), b)


class Squeezing(TwoTowers):
    def forward(self, a, b):
        return super().forward(a.squeeze(), b)


class OneMoreInTraining(TwoTowers):
    def forward(self, a, b):
        if self.training:
            raise ValueError("no weights for that")
        return super().forward(a, b)


class RootOfNothing(TwoTowers):
    def forward(self, a, b):
        logits = super().forward(a, b)
        return logits + (logits * 0).sqrt()


class LookingAround(TwoTowers):
    def forward(self, a, b):
        return super().forward(a - a.mean(0), b)


class WithIdle(TwoTowers):
    def __init__(self):
        super().__init__()
        self.aside = nn.Linear(4, 4)


class InAList(TwoTowers):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(6, 6)]

    def forward(self, a, b):
        return super().forward(self.layers[0](a), b)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (
            Dropping,
            r"the student, Dropping, gives two results for one input in evaluation mode, first dropout \(.*:\d+\): .*F",
        ),
        (Squeezing, r"Squeezing, does not run on a single sample, .*\(1, 6\).*small\.py:\d+\)$"),
        (
            OneMoreInTraining,
            r"cannot be trained for one step, on 45 .*: ValueError: no weights .*preflight\.py:\d+",
        ),
        (RootOfNothing, r"cannot be trained: in its first step .*, first that of \w+ \(.*test_preflight\.py:\d+\)"),
    ],
)
def test_what_a_later_stage_would_stop_at_is_said_before(student, said):
    with pytest.raises(TaskError, match=said):
        check(student=student)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (LookingAround, "answers a sample otherwise when another is in its batch"),
        (WithIdle, r"parameters that no loss reaches, so they stay as they are: 'aside.weight', 'aside.bias'"),
        (InAList, r"runs 'layers\[0\]', a Linear that is not registered in it, so it is never trained"),
    ],
)
def test_what_no_later_stage_would_stop_at_is_a_warning(student, said):
    (warning,) = warned(student, recipe())
    assert re.search(said, warning)


def test_a_network_that_is_as_it_should_be_is_not_warned_of():
    assert warned(TwoTowers, recipe()) == []


def unforgettable(model):
    """Return a network that cannot be copied, since a function that it holds reads it."""
    model.read = lambda: model.head
    return model


def warned_of(task):
    observer = Remembers()
    preflight.check(task, Taps(TAPS, TAPS), recipe(), reporter(observer))
    return observer.warnings


def test_what_student_and_teacher_hold_in_common_is_copied_and_named():
    stem, window = mlp(6, 16, 8), torch.ones(6)

    class Sharing(TwoTowers):
        def __init__(self):
            super().__init__()
            self.encoders["a"] = stem

    task = loaded()
    task.task.student = task.task.teacher = Sharing
    each_time, in_both = warned_of(task)
    assert re.match(r"student\(\) returns the same 'encoders.a.0.weight' \(and 3 more\) in each call: every", each_time)
    assert re.match(r"'encoders.a.0.weight' of the student and 'encoders.a.0.weight' of the teacher are one", in_both)
    before = copy.deepcopy(stem.state_dict())
    student = build(task.task.student, 0)
    assert student.encoders["a"][0].weight is not stem[0].weight
    assert all(map(torch.equal, student.encoders["a"].state_dict().values(), before.values()))

    task.task.student = task.task.teacher = lambda: unforgettable(Sharing())
    with pytest.raises(TaskError, match=r"student\(\) returns the same 'encoders.a.0.weight' \(and 3 more\) in each"):
        check(task)

    class Halves(TwoTowers):
        """Its first layer is a view of the teacher's."""

        def __init__(self, of=None):
            super().__init__()
            if of is not None:
                self.encoders["a"][0].weight = nn.Parameter(of.encoders["a"][0].weight.detach()[:])

    teacher = TwoTowers()
    task.task.teacher, task.task.student = lambda: teacher, lambda: Halves(teacher)
    assert [warning.split(" in each")[0] for warning in warned_of(task)[:1]] == [
        "student() returns the same 'encoders.a.0.weight'"
    ]

    class Aside(TwoTowers):
        """It runs the teacher's stem, and has not registered it."""

        def __init__(self):
            super().__init__()
            self.held = [stem]

        def forward(self, a, b):
            return super().forward(a, b) + 0 * self.held[0](a).sum()

    task.task.teacher, task.task.student = Sharing, Aside
    each_time, in_both, _ = warned_of(task)
    assert each_time.startswith("student() returns the same 'held[0].0.weight' (and 3 more)")
    assert in_both.startswith("'held[0].0.weight' of the student and 'encoders.a.0.weight' of the teacher")

    class Windowed(TwoTowers):
        def __init__(self):
            super().__init__()
            self.register_buffer("window", window)

    task.task.teacher = task.task.student = Windowed
    check(task, recipe=recipe())  # nothing changes a constant


def test_what_only_one_of_two_students_shares_with_the_teacher_is_found():
    shared, made = TwoTowers(), []

    def student():
        made.append(TwoTowers())
        if len(made) == 1:
            made[0].encoders["a"] = shared.encoders["a"]
        return made[-1]

    task = loaded()
    task.task.student, task.task.teacher = student, lambda: shared
    (warning,) = warned_of(task)
    assert warning.startswith("'encoders.a.0.weight' of the student and 'encoders.a.0.weight' of the teacher are one")
    made.clear()
    task.task.student, task.task.teacher = lambda: unforgettable(student()), lambda: unforgettable(shared)
    with pytest.raises(TaskError, match=r"'encoders.a.0.weight' of the student and 'encoders.a.0.weight' of the"):
        check(task)


def test_a_network_may_tie_its_own_layers():
    class Tied(TwoTowers):
        def __init__(self):
            super().__init__()
            self.encoders["a"][2].weight = self.encoders["b"][2].weight

    check(student=Tied, recipe=recipe())


def test_networks_are_as_they_were_after_the_check():
    teacher = TwoTowers(norm=True)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task = loaded()
    task.task.teacher = lambda: teacher
    check(task, recipe=recipe(intra=1.0))
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
