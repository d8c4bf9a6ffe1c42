"""Take one step of every training on the untrained networks, as the training itself will take it first."""

from __future__ import annotations

import re
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from edgekd.errors import RecipeError, TaskError, own_line
from edgekd.stages.progress import Silent, StageReporter
from edgekd.training.distillation.loss_registry import loss_sections
from edgekd.training.distillation.objective import SupervisedObjective
from edgekd.training.distillation.setup import DistillationNetworks, distillation_objective
from edgekd.training.distillation.task_losses import losses_of
from edgekd.training.loop.autograd_layers import train_unfrozen
from edgekd.training.loop.batches import BatchOrder
from edgekd.training.loop.compute_device import compute_device
from edgekd.training.loop.evaluate import example_batch
from edgekd.training.loop.loop import training_loss
from edgekd.training.loop.optimizers import make_optimizer, make_schedule
from edgekd.training.loop.weights import seed_all
from edgekd.training.preflight.networks import build_network
from edgekd.training.taps.taps import TappedModel
from edgekd.training.task.protocol import read_batch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor, nn

    from edgekd.config.recipe import Recipe, Training
    from edgekd.training.loop.loop import Objective
    from edgekd.training.preflight.networks import BuiltNetwork
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.protocol import Batch

#: Steps of the schedule of which the first is tried.
_TRIED_STEPS = 10

#: The most names that a warning lists.
_SHOWN = 3

#: How autograd's anomaly detection names the operation.
_NAN = re.compile(r"Function '(\w+?)(?:Backward\d*)?' returned nan")


def try_teacher(task: LoadedTask, teacher: BuiltNetwork, taps: Taps, recipe: Recipe, report: StageReporter) -> None:
    """Train the teacher for one step.

    Raises:
        TaskError: Its code or its loss fails in training, or a gradient is NaN or infinite.
    """
    with TappedModel(teacher.model.to(compute_device()), taps.teacher) as tapped:
        _step(task, teacher, SupervisedObjective(tapped, losses_of(task)), recipe.teacher, recipe.seed, report)


def try_distillation(
    task: LoadedTask, networks: tuple[BuiltNetwork, BuiltNetwork], taps: Taps, recipe: Recipe, report: StageReporter
) -> None:
    """Bind the losses of every training that the recipe may need, try the user's own, and distil for one step.

    Args:
        task: The user's task.
        networks: The teacher, in float32, and the student.
        taps: Where the embeddings of both are; the teacher computes in float32.
        recipe: The recipe.
        report: Receives a warning where parameters get no gradient.

    Raises:
        TaskError: A loss cannot be computed of what the networks give, the student's code fails in training, or a
            gradient is NaN or infinite.
        RecipeError: A loss is told what it does not take.
    """
    device = compute_device()
    teacher, student = (network.model.to(device) for network in networks)
    batch = example_batch(task, device)
    trainings = {"distill": recipe.distill, "prune": recipe.prune, "quantize.qat": recipe.quantize.qat}
    sections = loss_sections(recipe)
    first = next(iter(sections), "")  # distillation, unless the student is trained already
    anchor = student if first == "distill" else build_network("student", task, recipe.seed).model.to(device)
    for section, config in sections.items():
        distilled = DistillationNetworks(student, teacher, None if section == "distill" else anchor)
        silent = StageReporter(Silent(), section)
        with ExitStack() as stack:
            with _naming(section):
                objective = stack.enter_context(distillation_objective(task, distilled, taps, config, silent))
                objective.prepare(batch, recipe.seed)
                objective.try_own_losses(batch)
            if section == first:
                _step(task, networks[1], objective, trainings[section], recipe.seed, report)


@contextmanager
def _naming(section: str) -> Iterator[None]:
    """Name the section whose losses an error is about."""
    try:
        yield
    except (TaskError, RecipeError) as error:
        raise type(error)(f"[{section}.loss] {error}") from error


def _step(
    task: LoadedTask, network: BuiltNetwork, objective: Objective, config: Training, seed: int, report: StageReporter
) -> None:
    """Take the first step of a training, and look at the gradients."""
    batch, model = _first_batch(task, config, seed).to(compute_device()), network.model
    train_unfrozen(model)
    seed_all(seed)
    with task.running(f"{network.title}, cannot be trained for one step, on {len(batch.ids)} samples"):
        loss, _ = training_loss(objective, batch, 0.0)
        torch.autograd.backward(loss)
        trained = [p for p in [*model.parameters(), *objective.parameters()] if p.requires_grad]
        wrong = _not_finite(network, loss)
        if not wrong:
            optimizer = make_optimizer(config, trained)
            schedule = make_schedule(config, optimizer, _TRIED_STEPS)
            optimizer.step()
            schedule.step()
    if wrong:
        where = _origin(objective, batch, task.folder)
        raise TaskError(f"{network.title}, cannot be trained: in its first step {wrong}{where}")
    _warn_of_idle(network, report)


def _first_batch(task: LoadedTask, config: Training, seed: int) -> Batch:
    """Return the batch, or the part of it, with which a training begins."""
    split = task.splits["train"]
    indices = next(iter(BatchOrder(len(split), config.batch_size, seed, config.accumulate)))
    with task.running("reading split 'train'"):
        return read_batch(split, indices)


def _not_finite(network: BuiltNetwork, loss: Tensor) -> str:
    """Say what is NaN or infinite after a backward pass; nothing where all is finite."""
    if not torch.isfinite(loss):
        return f"the loss is {float(loss.detach()):g}"
    wrong = [name for name, p in _trainable(network.model) if p.grad is not None and not torch.isfinite(p.grad).all()]
    if not wrong:
        return ""
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"the gradient of '{wrong[-1]}'{more} is NaN or infinite"


def _origin(objective: Objective, batch: Batch, folder: Path | None) -> str:
    """Say where NaN comes from: the operation whose gradient it is first, with the line of the user's that called it.

    autograd's anomaly detection raises an error for the operation, and warns with the traceback of its forward pass.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly(check_nan=True):
                torch.autograd.backward(training_loss(objective, batch, 0.0)[0])
        except RuntimeError as error:
            said = _NAN.search(str(error))
            quoted = RuntimeError(" ".join(str(warning.message) for warning in caught))
            line = own_line(quoted, folder)
            place = f" ({line})" if line else ""
            return f", first that of {said[1]}{place}: a root, a quotient or a logarithm at 0?" if said else ""
    return ""


def _warn_of_idle(network: BuiltNetwork, report: StageReporter) -> None:
    """Warn of parameters that no loss reaches."""
    idle = [name for name, parameter in _trainable(network.model) if parameter.grad is None]
    if idle:
        names = ", ".join(f"'{name}'" for name in idle[:_SHOWN])
        more = f" and {len(idle) - _SHOWN} more" if len(idle) > _SHOWN else ""
        report.warn(f"{network.title}, has parameters that no loss reaches, so they stay as they are: {names}{more}")


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
