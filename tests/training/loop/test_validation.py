import numpy as np
import pytest
from small import TAPS, SmallTask, TwoTowers, Unlabelled, loaded

from edgekd.errors import TaskError
from edgekd.training.loop.validation import check_finite, labelled_ground_truth, sampling_error, score
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
