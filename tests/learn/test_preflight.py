"""What is wrong with a task or its recipe is said before anything is trained."""

import dataclasses

import pytest
import torch
from small import CLASSES, TAPS, TwoTowers, loaded, mlp
from torch import nn

from edgekd.errors import TaskError
from edgekd.learn import preflight
from edgekd.learn.taps import Taps
from edgekd.learn.task import UNLABELLED
from edgekd.recipe import PruneConfig, Recipe, Tap, TaskConfig

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
    preflight.check(task, taps or Taps(TAPS, TAPS), recipe)


def with_labels(split, label):
    labels = split.labels.clone()
    labels[3] = label
    return dataclasses.replace(split, labels=labels)


def test_what_is_right_passes():
    check()


def test_a_wrong_tap_of_either_side_is_named():
    wrong = {**TAPS, "b": Tap(module="encoders.bb")}
    for taps in (Taps(wrong, TAPS), Taps(TAPS, wrong)):
        with pytest.raises(TaskError, match=r"tap of 'b': TwoTowers has no module 'encoders.bb'; did you mean"):
            check(taps=taps)


def test_embeddings_of_two_widths_are_refused():
    with pytest.raises(TaskError, match=r"taps of the student: .*must share a width.*a 4, b 6; give"):
        check(student=TwoWidths)


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


def test_samples_without_a_label_are_no_error():
    task = loaded()
    check(dataclasses.replace(task, splits={**task.splits, "train": with_labels(task.splits["train"], UNLABELLED)}))


def test_an_ignored_module_that_does_not_exist_is_named():
    recipe = Recipe(task=TaskConfig(name="small"), prune=PruneConfig(ignore=["hed"]))
    with pytest.raises(TaskError, match=r"has no module 'hed'; did you mean 'head'"):
        check(recipe=recipe)
