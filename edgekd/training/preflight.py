"""Check a task and its recipe before anything is trained, since a wrong tap must not cost a night."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekd.errors import RecipeError, TaskError, nearest
from edgekd.stages.labels import UNLABELLED
from edgekd.stages.progress import Silent, StageReporter
from edgekd.training.distillation.half_precision import tapped_teacher
from edgekd.training.distillation.loss_registry import loss_sections
from edgekd.training.distillation.own_losses import find_loss
from edgekd.training.distillation.setup import DistillationNetworks, distillation_objective
from edgekd.training.loop.evaluate import batches, example_batch, ground_truth, probe
from edgekd.training.loop.loop import compute_device
from edgekd.training.loop.weights import build
from edgekd.training.pruning.stage import ignored_layers
from edgekd.training.taps.taps import TappedModel
from edgekd.training.task.checks import check_shapes
from edgekd.training.task.protocol import SPLITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from edgekd.config.recipe import Recipe, Tap, Term
    from edgekd.training.loop.evaluate import GroundTruth
    from edgekd.training.taps.taps import TapOutputs, Taps
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.protocol import Batch

_SAMPLES = 4


def check(task: LoadedTask, taps: Taps, recipe: Recipe) -> None:
    """Read every sample, run both untrained networks on a few, and call the metric.

    Raises:
        TaskError: A tap is wrong, a network does not take the samples, the two disagree on the classes or with the
            task's names of them, an input is not finite, a label is out of range, a group spans splits, the metric
            fails, a network or every tap is frozen, a loss cannot be computed of what the networks give, or
            ``prune.ignore`` names no module.
        ModelError: The teacher cannot run in its precision.
    """
    with task.running("reading split 'train'"):
        first = next(iter(batches(task.splits["train"])))
        _check_shapes("split 'train'", task, first)
    inputs = [x[:_SAMPLES] for x in first.inputs.values()]
    teacher = _network("teacher", task.task.teacher, task, recipe.seed)
    student = _network("student", task.task.student, task, recipe.seed)
    if not recipe.teacher.weights:
        _check_trainable("teacher", teacher, "unfreeze it, or give its trained weights as [teacher] weights")
    _check_trainable("student", student, "unfreeze its head at least")
    with _network_named("teacher"):
        tapped = TappedModel(teacher, taps.teacher)
    reference = _run_once("teacher", tapped, inputs, task)
    with _network_named("student"):
        tapped = TappedModel(student, taps.student)
    reading = _run_once("student", tapped, inputs, task)
    _check_reached(reading, recipe)
    logits, teacher_logits = reading.logits, reference.logits
    if logits.shape != teacher_logits.shape:
        raise TaskError(
            f"teacher and student disagree on the number of classes: {teacher_logits.shape[1]} and {logits.shape[1]}"
        )
    task.class_names(logits.shape[1])
    _check_importance(recipe, reading.embeddings)
    ignored_layers(student, recipe.prune.ignore)
    _check_losses(task, teacher, student, replace(taps, precision="float32"), recipe)
    if taps.precision != "float32":
        device = compute_device()  # what can be computed in half differs between devices
        _run_once(
            "teacher",
            tapped_teacher(teacher.to(device), taps.teacher, taps.precision),
            [x.to(device) for x in inputs],
            task,
        )
    truths = {name: _read(task, name, logits.shape[1]) for name in SPLITS}
    _check_groups(truths)
    _check_metric(task, student.to(compute_device()), taps.student, truths["test"])


def _network(name: str, factory: Callable[[], nn.Module], task: LoadedTask, seed: int) -> nn.Module:
    with task.running(f"{name}()"):
        return build(factory, seed, f"{name}()")


def _run_once(name: str, tapped: TappedModel, inputs: list[Tensor], task: LoadedTask) -> TapOutputs:
    tapped.model.eval()
    shapes = ", ".join(f"{tuple(x.shape)}" for x in inputs)
    what = (
        f"the {name}, {type(tapped.model).__name__}, cannot take the task's samples, one batch for each modality in "
        f"order ({shapes})"
    )
    with tapped, task.running(what), _network_named(name):
        return tapped.read(inputs)


@contextmanager
def _network_named(name: str) -> Iterator[None]:
    """Say of a tap's error which network's it is, since both may have taps of one name and be of one class."""
    try:
        yield
    except TaskError as error:
        raise TaskError(f"{name}: {error}") from error


def _check_trainable(name: str, model: nn.Module, advice: str) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TaskError(f"the {name}, {type(model).__name__}, has no trainable parameter: nothing to train; {advice}")


def _check_reached(student: TapOutputs, recipe: Recipe) -> None:
    """Check that losses of embeddings can train something: that not every tap lies behind frozen layers alone."""
    if any(output.requires_grad for output in student.outputs.values()):
        return
    asking = [
        f"{section}.loss.extra = {{}}"
        for section, loss in loss_sections(recipe).items()
        if any(_reads_embeddings(term) for term in loss.terms.values())
    ]
    if asking:
        raise TaskError(
            "the student's taps all lie behind frozen layers, where no loss of embeddings can train anything: tap "
            f"modules after trainable layers, or set {', '.join(asking)}"
        )


def _reads_embeddings(term: Term) -> bool:
    """Whether a loss reads the embeddings at the student's own taps."""
    return find_loss(term.loss or "").kind != "logits" and not term.student


def _check_importance(recipe: Recipe, embeddings: Mapping[str, Tensor]) -> None:
    widths = {name: z.shape[1] for name, z in embeddings.items()}
    if recipe.prune.active and recipe.prune.importance == "gram" and len(set(widths.values())) > 1:
        raise TaskError(
            "[prune] importance = 'gram' takes inner products between modalities, so the student's embeddings must "
            "share a width, but are "
            + ", ".join(f"{name} {width}" for name, width in widths.items())
            + "; give the encoders one width, or choose another importance, e.g. 'taylor'"
        )


def _check_losses(task: LoadedTask, teacher: nn.Module, student: nn.Module, taps: Taps, recipe: Recipe) -> None:
    """Bind the losses of every training that the recipe may need to the untrained networks, and try the user's own."""
    batch = example_batch(task, torch.device("cpu"))
    for section, config in loss_sections(recipe).items():
        anchor = None if section == "distill" else student
        networks, report = DistillationNetworks(student, teacher, anchor), StageReporter(Silent(), section)
        with _naming(section), distillation_objective(task, networks, taps, config, report) as objective:
            objective.prepare(batch, recipe.seed)
            objective.try_own_losses(batch)


@contextmanager
def _naming(section: str) -> Iterator[None]:
    """Name the section whose losses an error is about."""
    try:
        yield
    except (TaskError, RecipeError) as error:
        raise type(error)(f"[{section}.loss] {error}") from error


def _read(task: LoadedTask, name: str, classes: int) -> GroundTruth:
    """Check every sample of a split, in one pass, and return their ground truth."""
    where = f"split '{name}'"

    def check_batch(batch: Batch) -> None:
        _check_shapes(where, task, batch)
        _check_finite(where, batch)
        _check_present(where, batch)
        _check_labels(where, batch, classes)

    with task.running(f"reading {where}"):
        return ground_truth(task.splits[name], check_batch)


def _check_shapes(where: str, task: LoadedTask, batch: Batch) -> None:
    check_shapes(where, task.task, {key: tuple(x.shape[1:]) for key, x in batch.inputs.items()})


def _check_groups(truths: Mapping[str, GroundTruth]) -> None:
    owner: dict[str, str] = {}
    for name, known in truths.items():
        if known.groups is None:
            continue
        lone = known.ids[known.groups == ""]
        if len(lone):
            raise TaskError(f"split '{name}': sample '{lone[0]}' has no group, but others have; give all one, or none")
        for group in np.unique(known.groups).tolist():
            if group in owner:
                raise TaskError(
                    f"group '{group}' is in split '{owner[group]}' and in '{name}'; samples of one group are alike, so "
                    "it must be in one split only, or every measured number is too good"
                )
            owner[group] = name


def _check_metric(task: LoadedTask, student: nn.Module, taps: Mapping[str, Tap], test: GroundTruth) -> None:
    if not (test.labels != UNLABELLED).any():
        raise TaskError("split 'test' has no labels, and the metric needs them")
    logits = probe(student, taps, task.splits["test"]).logits
    with task.running(f"the task's {task.metric_name}"):
        value = task.metric(logits, test.labels)
    if not math.isfinite(value):
        raise TaskError(
            f"the task's {task.metric_name} is {value} for the untrained student's logits of split 'test'; it must be "
            "a finite number"
        )


def _check_finite(where: str, batch: Batch) -> None:
    for name, x in batch.inputs.items():
        wrong = (~torch.isfinite(x)).flatten(1).any(1).nonzero()
        if len(wrong):
            raise TaskError(
                f"{where}: input '{name}' of sample '{batch.ids[int(wrong[0])]}' holds NaN or infinite values"
            )


def _check_present(where: str, batch: Batch) -> None:
    for name in batch.present:
        if name not in batch.inputs:
            raise TaskError(
                f"{where}: samples are said to lack '{name}', which is no modality of the task"
                + nearest(name, batch.inputs)
            )


def _check_labels(where: str, batch: Batch, classes: int) -> None:
    labels = batch.labels
    wrong = labels[((labels < 0) & (labels != UNLABELLED)) | (labels >= classes)]
    if len(wrong):
        raise TaskError(
            f"{where} has the label {wrong[0]}, but the networks give {classes} classes: labels go from 0 "
            f"to {classes - 1}, or {UNLABELLED} for none"
        )
