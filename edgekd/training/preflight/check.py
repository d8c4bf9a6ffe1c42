"""Check a task and its recipe before anything is trained, since a wrong tap must not cost a night."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace as changed

from edgekd.config.recipe import without_teacher
from edgekd.errors import TaskError
from edgekd.gram.answers import changed_by
from edgekd.gram.nest import take_rows
from edgekd.stages.labels import UNLABELLED
from edgekd.training.distillation.half_precision import tapped_teacher
from edgekd.training.distillation.loss_registry import loss_sections
from edgekd.training.distillation.own_losses import find_loss
from edgekd.training.loop.compute_device import compute_device
from edgekd.training.loop.evaluate import batches, example_batch
from edgekd.training.loop.weights import load_weights
from edgekd.training.preflight.answers import as_metrics_take, check_answers, check_twice, read, read_tapped
from edgekd.training.preflight.data import describe_data
from edgekd.training.preflight.ids import IdTables
from edgekd.training.preflight.networks import (
    BuiltNetwork,
    build_network,
    check_apart,
    check_members_apart,
    restored,
    run_unregistered,
)
from edgekd.training.preflight.outputs import check_shapes_agree, check_targets, label_names
from edgekd.training.preflight.room import needed_bytes
from edgekd.training.preflight.samples import check_batch_shapes, check_samples
from edgekd.training.preflight.steps import try_distillation, try_teacher
from edgekd.training.preflight.suspicions import describe_metric, describe_network
from edgekd.training.pruning.candidates import find_prunable, ignored_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from edgekd.config.recipe import Recipe, Tap, Term
    from edgekd.gram.probe import Answer
    from edgekd.stages.progress import StageReporter
    from edgekd.training.loop.evaluate import GroundTruth
    from edgekd.training.taps.taps import TapOutputs, Taps
    from edgekd.training.task.loading import LoadedTask

_SAMPLES = 4
#: Number of samples whose answers the metric is tried with.
_ANSWERED = 64
#: Number of steps that are reported.
_STEPS = 5


def check(task: LoadedTask, taps: Taps, recipe: Recipe, report: StageReporter) -> int:
    """Read every sample, run and train both untrained networks on a few, and call the metric.

    Args:
        task: The user's task.
        taps: Where the embeddings of both networks are.
        recipe: What is to be trained.
        report: Receives progress, and warnings of what no later stage will stop at.

    Returns:
        About how many bytes the build will write into its cache.

    Raises:
        TaskError: A tap is wrong, a network does not take the samples or one alone, gives two results for one input or
            cannot be trained, the two disagree on the classes or with the task's names of them or hold parameters in
            common, an input is not finite, a label is out of range, a group spans splits, the metric fails, a network
            or every tap is frozen, a loss cannot be computed of what the networks give, or ``prune.ignore`` names no
            module.
        ModelError: The teacher cannot run in its precision.
    """
    with task.running("reading split 'train'"):
        first = next(iter(batches(task.splits["train"])))
        check_batch_shapes("split 'train'", task, first)
    inputs = [x[:_SAMPLES] for x in first.inputs.values()]
    teacher, student, recipe = _networks(task, recipe)
    with restored(teacher.model, student.model):
        if recipe.student.weights:
            load_weights(student.model, Path(recipe.student.weights))
        tables = IdTables()
        with tables.watching((teacher, student), first):
            shapes = _check_networks(task, (teacher, student), taps, recipe, inputs, report)
        check_targets("split 'train'", task, first, shapes)  # before a loss says less of it, in torch's words
        tables.check_stand_ins(task.task.modalities)
        _try_training(task, (teacher, student), taps, recipe, inputs, report)
        truths, facts = check_samples(task, shapes, tables)
        for warning in describe_data(truths, facts, label_names(task, shapes), task.outputs):
            report.warn(warning)
        student.model.cpu()
        answer = _check_metric(task, student, taps.student, [x[:_ANSWERED] for x in first.inputs.values()], truths)
        _check_same(task, answer, len(truths["test"].ids))
        for warning in describe_metric(task, recipe, answer, truths["test"]):
            report.warn(warning)
    counts = {name: len(truth.ids) for name, truth in truths.items()}
    report.advance(5, _STEPS, f"{sum(counts.values()):,} samples are in order")
    return needed_bytes(teacher.model, student.model, first.inputs.values(), counts)


def _networks(task: LoadedTask, recipe: Recipe) -> tuple[BuiltNetwork, BuiltNetwork, Recipe]:
    """Return teacher and student, and the recipe as it is tried; of a task without teacher its student stands in.

    Raises:
        TaskError: The task has no teacher, and the recipe no trained student.
    """
    student = build_network("student", task, recipe.seed)
    if task.has_teacher:
        return build_network("teacher", task, recipe.seed), student, recipe
    if not recipe.student.weights:
        raise TaskError(
            "the task has no teacher(), from which a student could be distilled: give it one, or name the weights of a "
            "student that is trained already, as [student] weights"
        )
    prune = changed(recipe.prune, loss=without_teacher(recipe.prune.loss))
    qat = changed(recipe.quantize.qat, loss=without_teacher(recipe.quantize.qat.loss))
    tried = changed(recipe, prune=prune, quantize=changed(recipe.quantize, qat=qat))
    return replace(build_network("student", task, recipe.seed), name="teacher"), student, tried


def _check_networks(
    task: LoadedTask,
    networks: tuple[BuiltNetwork, BuiltNetwork],
    taps: Taps,
    recipe: Recipe,
    inputs: Sequence[Tensor],
    report: StageReporter,
) -> dict[str, tuple[int, ...]]:
    """Run teacher and student, hold them against each other and the recipe, and return the outputs' shapes."""
    teacher, student = networks
    if not recipe.teacher.weights:
        _check_trainable(teacher, "unfreeze it, or give its trained weights as [teacher] weights")
    _check_trainable(student, "unfreeze its head at least")
    reference = check_twice(teacher, taps.teacher, task, inputs, report)
    reading = check_answers(student, taps.student, task, inputs, report)
    report.advance(1, _STEPS, "both networks take the samples")
    _check_reached(reading, recipe)
    shapes = check_shapes_agree(reference, reading, task)
    check_apart(teacher, student, task, inputs, report)
    if recipe.teacher.members > 1:
        check_members_apart(teacher, task, inputs)
    _warn_of_unregistered(networks, inputs, report)
    _check_importance(recipe, reading.embeddings)
    ignored_layers(student.model, recipe.prune.ignore)
    looked_at = [(student, taps.student, reading)]
    if task.has_teacher:
        looked_at.insert(0, (teacher, taps.teacher, reference))
    for network, own, given in looked_at:
        for warning in describe_network(network, own, task, inputs, given):
            report.warn(warning)
    report.advance(2, _STEPS, "the networks have nothing in common")
    return shapes


def _try_training(
    task: LoadedTask,
    networks: tuple[BuiltNetwork, BuiltNetwork],
    taps: Taps,
    recipe: Recipe,
    inputs: Sequence[Tensor],
    report: StageReporter,
) -> None:
    """Take one step of every training; the teacher's first, since it is frozen while others learn from it."""
    teacher = networks[0]
    if not recipe.teacher.weights and task.has_teacher:
        try_teacher(task, teacher, taps, recipe, report)
        report.advance(3, _STEPS, "the teacher was trained for one step")
    try_distillation(task, networks, replace(taps, precision="float32"), recipe, report)
    report.advance(4, _STEPS, "the student was distilled for one step")
    _warn_of_uncuttable(task, networks[1].model, taps.student, recipe, report)
    if taps.precision != "float32":
        device = compute_device()  # what can be computed in half differs between devices
        halved = tapped_teacher(teacher.model.to(device), taps.teacher, taps.precision)
        read_tapped(teacher, halved, task, [x.to(device) for x in inputs])


def _warn_of_uncuttable(
    task: LoadedTask, student: nn.Module, taps: Mapping[str, Tap], recipe: Recipe, report: StageReporter
) -> None:
    """Warn of the layers that pruning will leave at their width."""
    if recipe.prune.active:
        batch = example_batch(task, compute_device())
        for refusal in find_prunable(student, taps, batch, recipe.prune, recipe.prune.ignore).refusals:
            report.warn(str(refusal))


def _check_trainable(network: BuiltNetwork, advice: str) -> None:
    if not any(parameter.requires_grad for parameter in network.model.parameters()):
        raise TaskError(f"{network.title}, has no trainable parameter: nothing to train; {advice}")


def _warn_of_unregistered(networks: Sequence[BuiltNetwork], inputs: Sequence[Tensor], report: StageReporter) -> None:
    for network in networks:
        for path, module in run_unregistered(network.model, inputs).items():
            if any(True for _ in module.parameters()):
                report.warn(
                    f"{network.title}, runs '{path}', a {type(module).__name__} that is not registered in it, so it is "
                    "never trained and never saved: hold it in an nn.ModuleList or nn.ModuleDict, or as an attribute"
                )


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


def _check_same(task: LoadedTask, answer: Answer, samples: int) -> None:
    """Ask the task's own word of answers and the very same ones, and of others: these must not be more alike.

    An untrained detector's boxes may be none that are even like themselves.
    """
    if task.own_same is None:
        return
    other = take_rows(answer, np.roll(np.arange(samples), 1))
    itself, apart = (float(changed_by(task.own_same, answer, x, samples).mean()) for x in (answer, other))
    if itself > apart:
        raise TaskError(
            f"the task's same says of answers and the very same answers that {itself:.4g} of them changed, and of "
            f"other samples' answers {apart:.4g}; it must return which share of each sample's answer changed, 0 where "
            "none did"
        )


def _check_metric(
    task: LoadedTask,
    student: BuiltNetwork,
    taps: Mapping[str, Tap],
    inputs: Sequence[Tensor],
    truths: Mapping[str, GroundTruth],
) -> Answer:
    """Call the metric as later stages do: of the validation samples after each epoch, and of those of the test.

    The student's answers to a few samples stand for its answers to all, again and again.

    Returns:
        The answers for the test samples.
    """
    if not truths["test"].has_targets and not (truths["test"].labels != UNLABELLED).any():
        raise TaskError("split 'test' has no labels, and the metric needs them")
    few, count = as_metrics_take(task, read(student, taps, task, inputs)), len(inputs[0])
    rows = {name: np.arange(len(truths[name].ids)) % count for name in ("val", "test")}
    answers = {name: take_rows(few, kept) for name, kept in rows.items()}
    for name, answer in answers.items():
        if not truths[name].has_targets and (truths[name].labels == UNLABELLED).all():
            continue
        value = task.metric(answer, truths[name].targets)
        if not math.isfinite(value):
            raise TaskError(
                f"the task's {task.metric_name} is {value} for an untrained student's answers for split '{name}'; it "
                "must be a finite number"
            )
    return answers["test"]
