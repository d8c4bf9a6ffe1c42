"""Check a task and its recipe on a few samples, before anything is trained: a wrong tap must not cost a night."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekd.errors import TaskError
from edgekd.gram.matrix import stack
from edgekd.learn.evaluate import batches, truth
from edgekd.learn.prune import ignored_layers
from edgekd.learn.taps import Tapped
from edgekd.learn.task import UNLABELLED
from edgekd.learn.weights import build

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from edgekd.learn.taps import Taps
    from edgekd.learn.task import LoadedTask
    from edgekd.recipe import Recipe, Tap

_SAMPLES = 4


def check(task: LoadedTask, taps: Taps, recipe: Recipe) -> None:
    """Run both untrained networks on a few training samples.

    Raises:
        TaskError: a tap is wrong, a network does not take the samples, the two disagree on the classes, a label is out
            of range, one side's embeddings differ in width, or ``prune.ignore`` names no module.
    """
    samples = next(iter(batches(task.splits["train"]))).inputs
    inputs = [x[:_SAMPLES] for x in samples.values()]
    student = build(task.task.student, recipe.seed)
    teacher_logits, teacher_embeddings = _run("teacher", build(task.task.teacher, recipe.seed), taps.teacher, inputs)
    logits, embeddings = _run("student", student, taps.student, inputs)
    if logits.shape != teacher_logits.shape:
        raise TaskError(
            f"teacher and student disagree on the number of classes: {teacher_logits.shape[1]} and {logits.shape[1]}"
        )
    _check_widths("teacher", teacher_embeddings)
    _check_widths("student", embeddings)
    ignored_layers(student, recipe.prune.ignore)
    _check_labels(task, logits.shape[1])


def _run(
    name: str, model: nn.Module, taps: Mapping[str, Tap], inputs: list[Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    model.eval()
    with torch.inference_mode(), Tapped(model, taps) as tapped:
        try:
            return tapped(inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shapes = ", ".join(f"{tuple(x.shape)}" for x in inputs)
            raise TaskError(
                f"the {name}, {type(model).__name__}, cannot take the task's samples, one batch for each modality in "
                f"order ({shapes}): {str(error).splitlines()[0]}"
            ) from error


def _check_widths(name: str, embeddings: dict[str, Tensor]) -> None:
    try:
        stack(embeddings)
    except ValueError as error:
        raise TaskError(f"taps of the {name}: {error}") from error


def _check_labels(task: LoadedTask, classes: int) -> None:
    for name, split in task.splits.items():
        labels = truth(split).labels
        wrong = labels[((labels < 0) & (labels != UNLABELLED)) | (labels >= classes)]
        if len(wrong):
            raise TaskError(
                f"split '{name}' has the label {wrong[0]}, but the networks give {classes} classes: labels go from 0 "
                f"to {classes - 1}, or {UNLABELLED} for none"
            )
