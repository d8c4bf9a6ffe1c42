"""A network that is no better than a constant answer is warned of right after its training."""

import dataclasses

import numpy as np
import pytest
import torch
from small import CLASSES, loaded

from edgekd import Output
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import Probe
from edgekd.stages.artifacts import PROBE
from edgekd.stages.metrics import default_metric
from edgekd.stages.trained import Trained
from edgekd.training.loop.lesson import describe_lesson


def lesson(tmp_path, task, *validation):
    """Return what is said of a network with these figures of the validation split."""
    outputs = {"logits": np.zeros((30, CLASSES), np.float32)}
    Probe(np.array([f"test-{index}" for index in range(30)]), outputs, {}).save(tmp_path / PROBE)
    history = [{"loss": 1.0, "validation": value} for value in validation]
    return describe_lesson(task, "student", Trained(0.0, 1, history), tmp_path)


def share_of_the_largest():
    labels = loaded().splits["val"].labels.numpy()
    return np.bincount(labels).max() / len(labels), int(np.bincount(labels).argmax())


def test_a_network_that_always_answers_the_same_has_learned_nothing(tmp_path):
    share, label = share_of_the_largest()
    task = loaded()
    task.task.classes = ["up", "down", "still"]
    (said,) = lesson(tmp_path, task, share)
    assert said.startswith(
        f"the student has learned nothing: its accuracy on the validation split, {share:.4g} at best"
    )
    assert f"always answering '{task.task.classes[label]}', {share:.4g}" in said


@pytest.mark.parametrize("figures", [(0.95,), (0.1, 0.9, 0.3), ()])
def test_a_network_that_was_ever_better_or_not_trained_is_not_warned_of(tmp_path, figures):
    assert lesson(tmp_path, loaded(), *figures) == ()


def test_a_metric_of_which_smaller_is_better_is_read_the_right_way(tmp_path):
    task = loaded()
    task.task.higher_is_better = False
    task.task.metric = lambda outputs, labels: float((outputs.argmax(1) != labels).mean())
    share, _ = share_of_the_largest()
    assert lesson(tmp_path, task, 1 - share)
    assert lesson(tmp_path, task, 0.02) == ()


def test_a_metric_that_fails_on_constant_answers_says_nothing(tmp_path):
    def metric(outputs, labels):
        raise ValueError("no variance")

    task = loaded()
    task.task.metric = metric
    assert lesson(tmp_path, task, 0.1) == ()


@pytest.mark.parametrize(
    ("outputs", "answer"),
    [(("place",), "the mean"), (("place", "class"), "the same")],
    ids=["numbers", "several outputs"],
)
def test_whatever_the_outputs_are_their_constant_answer_is_what_is_to_be_beaten(tmp_path, outputs, answer):
    kinds = {"place": OutputKind("regression"), "class": OutputKind()}
    kinds = {name: kinds[name] for name in outputs}
    split = loaded().splits["val"]
    labels = split.labels
    numbers = torch.stack([labels.float() ** 2, labels.float() + 5], 1)
    targets = numbers if len(outputs) == 1 else {"place": numbers, "class": labels}
    splits = {**loaded().splits, "val": dataclasses.replace(split, labels=None, targets=targets)}
    metric = default_metric(kinds)
    task = dataclasses.replace(loaded(), splits=splits)
    task.task.outputs = tuple(Output(name, kind.name) for name, kind in kinds.items())
    task.task.metric, task.task.metric_name = metric.compute, metric.name
    given = {"place": np.zeros((4, 2), np.float32), "class": np.zeros((4, CLASSES), np.float32)}
    Probe(np.arange(4).astype(str), {name: given[name] for name in outputs}, {}).save(tmp_path / PROBE)
    for value, warns in ((-6.5, True), (0.9, False)):
        said = describe_lesson(task, "student", Trained(0.0, 1, [{"loss": 1.0, "validation": value}]), tmp_path)
        assert bool(said) is warns
        assert not said or f"no better than that of always answering {answer}, " in said[0]
