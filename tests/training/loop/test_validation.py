import numpy as np
import pytest
import torch
from small import TAPS, Remembers, SmallTask, TwoTowers, Unlabelled, loaded, reporter

from edgekd.errors import TaskError
from edgekd.stages.trained import Trained
from edgekd.training.loop.validation import (
    check_finite,
    labelled_ground_truth,
    sampling_error,
    score,
    warn_of_another_story,
)
from edgekd.training.loop.weights import build
from edgekd.training.task.loading import LoadedTask
from edgekd.training.task.protocol import ArraySplit

MODEL = build(TwoTowers, 0)


def grouped(groups):
    task = SmallTask(counts=(20, 60, 20, 20))
    splits = task.splits()
    val = splits["val"]
    names = [f"g{index % groups}" for index in range(len(val))]
    return LoadedTask(task, {**splits, "val": ArraySplit(val.ids, val.inputs, val.labels, names)}, ())


def test_the_error_of_an_accuracy_is_the_binomials():
    task = loaded(counts=(20, 400, 20, 20))
    p = score(task, MODEL, TAPS)
    assert sampling_error(task, MODEL, TAPS) == pytest.approx(np.sqrt(p * (1 - p) / 400), rel=0.15)


def test_whole_groups_are_drawn_where_there_are_any():
    assert sampling_error(grouped(1), MODEL, TAPS) is None
    assert sampling_error(grouped(3), MODEL, TAPS) > 0


def test_a_split_without_labels_is_refused():
    task = Unlabelled()
    with pytest.raises(TaskError, match="has no labels"):
        labelled_ground_truth(LoadedTask(task, task.splits(), ()))
    assert len(labelled_ground_truth(grouped(3)).groups) == 60


def test_a_metric_that_is_no_number_is_refused():
    with pytest.raises(TaskError, match="accuracy is nan on split 'val'"):
        check_finite(loaded(), float("nan"))


def warned(test_labels_shift, validation=None, counts=(20, 300, 20, 300), groups=None):
    """Return what is warned of a model that predicts class 0, where so many test labels in ten are of another one."""
    task = SmallTask(counts=counts)
    splits = task.splits()
    for name, others in (("val", 2), ("test", 2 + test_labels_shift)):
        given = splits[name]
        labels = (torch.arange(len(given)) % 10 < others).long()
        names = None if groups is None else [f"{name}{index % groups}" for index in range(len(given))]
        splits[name] = ArraySplit(given.ids, given.inputs, labels, names)
    model = build(TwoTowers, 0)
    with torch.no_grad():
        model.head[-1].weight.zero_()
        model.head[-1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    observer, loaded_task = Remembers(), LoadedTask(task, splits, ())
    test = (8 - test_labels_shift) / 10
    history = [{"validation": 0.8 if validation is None else validation, "kept": 1.0}]
    warn_of_another_story(loaded_task, model, TAPS, Trained(test, 1, history), reporter(observer))
    return observer.warnings


def test_a_test_split_of_another_kind_is_told_with_both_figures():
    (warning,) = warned(3)
    assert warning.startswith(
        "the accuracy is 0.8000 on split 'val' and 0.5000 on 'test', further apart than so many samples differ by "
    )
    assert "(standard errors 0.02" in warning


@pytest.mark.parametrize(
    "given",
    [
        {"test_labels_shift": 0},
        {"test_labels_shift": 1},  # 0.1 at a standard error of 0.035
        {"test_labels_shift": 3, "counts": (20, 20, 20, 20)},
        {"test_labels_shift": 3, "groups": 4},
        {"test_labels_shift": 3, "validation": float("nan")},
    ],
    ids=["same", "near", "few samples", "few groups", "no number"],
)
def test_what_the_sizes_explain_is_no_other_story(given):
    assert warned(**given) == []
