"""One training loop for teacher, student and fine-tune, which resumes after its last finished epoch."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from edgekd.errors import ModelError
from edgekd.files import atomic_path
from edgekd.stages.cache import CHECKPOINT
from edgekd.training.loop import distributed
from edgekd.training.loop.autograd_layers import train_unfrozen
from edgekd.training.loop.batches import BatchOrder, epoch_seed
from edgekd.training.loop.epochs import has_stalled, still_improving
from edgekd.training.loop.kept_weights import KeptWeights
from edgekd.training.loop.optimizers import make_optimizer, make_schedule
from edgekd.training.loop.reading import TrainingBatches
from edgekd.training.loop.settings import count_epochs, describe_length
from edgekd.training.loop.weights import seed_all
from edgekd.training.loop.weights_file import not_finite, read_checkpoint
from edgekd.training.stage_run import resources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch.optim.lr_scheduler import LRScheduler

    from edgekd.config.recipe import Training
    from edgekd.stages.progress import StageReporter
    from edgekd.training.task.protocol import Batch, Split

#: One epoch's figures: mean losses, weights, "validation".
Epoch = dict[str, float]

#: What PyTorch raises where a state is of another network, optimizer or version.
_MISFITS = (RuntimeError, LookupError, ValueError, TypeError, AttributeError)

#: An epoch of that many seconds is worth a word on the number of threads.
_SLOW_EPOCH_S = 60.0

#: How far apart the seeds of the processes' dropout and augmentation are.
_RANK_SEEDS = 1_000_000_007


class Objective(Protocol):
    """What is minimised. It may have a state, which is kept in the checkpoint."""

    def __call__(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the loss to minimise, and the figures to log; ``progress`` is the share of all steps done."""

    def parameters(self) -> Sequence[nn.Parameter]:
        """Return what is learned beside the model."""

    def state(self) -> Mapping[str, object]:
        """Return the state: numbers, strings, tensors, lists and dicts of them."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a run that ended."""


@dataclass(frozen=True)
class Fit:
    """How to train.

    Attributes:
        config: Epochs, batch size, optimizer, learning rate and so on.
        seed: Seed that, with the epoch's number, decides order, dropout and augmentation, so that a resumed run repeats
            an undisturbed one.
        folder: Folder of the checkpoint while training runs.
        report: Receives each epoch.
        higher_is_better: Whether a larger metric, "validation" in an epoch's figures, is better.
    """

    config: Training
    seed: int
    folder: Path
    report: StageReporter
    higher_is_better: bool = True


@dataclass(frozen=True)
class _TrainedParts:
    """What is trained, and what its checkpoint holds.

    Attributes:
        model: The model.
        objective: What is minimised.
        optimizer: The optimizer of the weights of both.
        schedule: The schedule of the learning rate.
        kept: The weights that it is to end with.
    """

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    kept: KeptWeights

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is learned, those that stay as they are among it."""
        return [*self.model.parameters(), *self.objective.parameters()]


def fit(model: nn.Module, objective: Objective, train: Split, validate: Callable[[], Epoch], run: Fit) -> list[Epoch]:
    """Train ``model`` in place.

    Args:
        model: The model, on its device. Parameters that need no gradient stay as they are, and so do the running
            statistics of BatchNorm among them; at least one must need it.
        objective: Called with each batch.
        train: The training split.
        validate: Called after each epoch, with the model in evaluation mode and the weights that may be kept; its
            figures, "validation" among them, are kept beside the losses.
        run: How to train.

    Returns:
        One entry for each epoch; the figure "kept" is 1 in the one whose weights the model has.

    Raises:
        ModelError: The loss is not finite.
        RecipeError: Batches are too small for the processes that share them, or the user's own optimizer or schedule
            fails.
    """
    config, epochs = run.config, count_epochs(run.config, len(train))
    device = next(model.parameters()).device
    order = BatchOrder(len(train), config.batch_size, run.seed, config.accumulate)
    batches = TrainingBatches(train, order, device, resources().workers)
    optimizer = make_optimizer(config, [p for p in [*model.parameters(), *objective.parameters()] if p.requires_grad])
    schedule = make_schedule(config, optimizer, epochs * order.count)
    kept = KeptWeights(model, config, higher_is_better=run.higher_is_better)
    parts = _TrainedParts(model, objective, optimizer, schedule, kept)
    history = _resume(run, parts, device, epochs)
    if not history and distributed.is_main() and (longer := describe_length(config, len(train))):
        run.report.advance(0, epochs, longer)
    distributed.broadcast([*model.parameters(), *model.buffers(), *objective.parameters()])
    while len(history) < epochs and not _stops(run, history):
        epoch = order.epoch = len(history)
        seed_all(epoch_seed(run.seed, epoch) + distributed.rank() * _RANK_SEEDS)
        began = time.monotonic()
        figures = _one_epoch(parts, batches, order, epochs, config.clip_norm)
        if epoch == 0 and device.type == "cpu":
            _suggest_threads(run, time.monotonic() - began)
        model.eval()
        with kept.average.in_place():
            history.append({**figures, **(validate() if distributed.is_main() else {})})
            if distributed.is_main():
                kept.consider(history)
        if not distributed.is_main():
            continue
        _save(run.folder / CHECKPOINT, parts, history)
        run.report.epoch(epoch + 1, history[-1])
        run.report.advance(epoch + 1, epochs, _note(history[-1]))
    kept.finish(history)
    if distributed.is_main():
        _conclude(run, history, epochs)
    return history


def _stops(run: Fit, history: list[Epoch]) -> bool:
    """Return whether patience is at its end; rank 0, which alone validates, decides for all."""
    patience = run.config.patience
    if patience is None:
        return False
    stalled = has_stalled(history, patience, higher_is_better=run.higher_is_better)
    return bool(distributed.broadcast_object(stalled))


def _conclude(run: Fit, history: list[Epoch], epochs: int) -> None:
    """Say where training ended early, and where it may have ended too early."""
    if len(history) < epochs:
        run.report.advance(
            len(history), epochs, f"ended, since no epoch of the last {run.config.patience} was better than before"
        )
    elif still_improving(history, higher_is_better=run.higher_is_better):
        values = [epoch["validation"] for epoch in history]
        fifth = len(values) // 5
        before, last = (sum(part) / fifth for part in (values[-2 * fifth : -fifth], values[-fifth:]))
        run.report.warn(
            f"the metric on the validation split was still improving when training ended, from {before:.4f} to "
            f"{last:.4f} over the last {2 * fifth} of {len(values)} epochs: more epochs may help"
        )


def _suggest_threads(run: Fit, seconds: float) -> None:
    """Say that training may use more of this machine, where that is worth other weights."""
    processors, threads = os.cpu_count() or 1, torch.get_num_threads() * distributed.world_size()
    if seconds > _SLOW_EPOCH_S and processors >= 2 * threads:
        run.report.warn(
            f"an epoch takes {seconds:.0f} s with threads = {threads}, and this machine has {processors} processors: "
            "more threads in the recipe may train faster; they make other weights"
        )


def _note(epoch: Epoch) -> str:
    """Return an epoch's figures in a few words."""
    forms = {"loss": ".3f", "validation": ".3f", "drift": ".4f"}
    return ", ".join(f"{name} {epoch[name]:{form}}" for name, form in forms.items() if name in epoch)


def training_loss(objective: Objective, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Return the loss of a batch and the figures to log, in the precision in which this machine trains."""
    kind = batch.labels.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        return objective(batch, progress)


def _one_epoch(
    parts: _TrainedParts, batches: TrainingBatches, order: BatchOrder, epochs: int, clip_norm: float | None
) -> Epoch:
    train_unfrozen(parts.model)
    device = next(parts.model.parameters()).device
    sums: dict[str, Tensor | float] = {}
    for index, (batch, weight) in enumerate(zip(batches, order.weights, strict=True)):
        step, part = divmod(index, order.parts)
        progress = (order.epoch + step / order.count) / epochs
        on_device = batch.to(device)
        loss, figures = training_loss(parts.objective, on_device, progress)
        if order.epoch == index == 0 and not torch.isfinite(loss):
            raise ModelError(
                f"the loss is {float(loss.detach()):g} from the first step{_first_cause(parts.model, on_device)}"
            )
        if part == 0:
            parts.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss * weight)
        if part == order.parts - 1:
            _step(parts, clip_norm)
        for name, value in {"loss": loss.detach(), **figures}.items():
            sums[name] = sums.get(name, 0.0) + value
    means = {name: float(total) / len(batches) for name, total in sums.items()}
    if not all(torch.isfinite(torch.tensor(value)) for value in means.values()):
        raise ModelError(
            f"training diverged: {means}; try a smaller learning_rate, or clip_norm = 1, and check the data for NaN "
            "and infinite values"
        )
    return means


def _step(parts: _TrainedParts, clip_norm: float | None) -> None:
    """Take a step with the gradients that the parts of a batch have added up."""
    distributed.reduce_gradients(parts.model.parameters(), parts.objective.parameters())
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(parts.parameters, clip_norm)
    parts.optimizer.step()
    parts.schedule.step()
    parts.kept.average.update()


def _first_cause(model: nn.Module, batch: Batch) -> str:
    """Say what is no number before anything is trained: a weight, or an input."""
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and (kind := not_finite(value)) == "NaN":
            return f": '{name}' holds {kind} before it"
    for name, x in batch.inputs.items():
        if kind := not_finite(x):
            bad = next(index for index, row in enumerate(x) if not_finite(row))
            return f": input '{name}' of sample '{batch.ids[bad]}' holds {kind}"
    return (
        ", while the network's weights and the inputs are numbers: check what the loss divides by or takes the "
        "logarithm of, the scale of the inputs, and the teacher's outputs"
    )


def _state(parts: _TrainedParts, history: list[Epoch]) -> dict[str, Any]:
    return {
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "schedule": parts.schedule.state_dict(),
        "objective": parts.objective.state(),
        "kept": parts.kept.state(),
        "history": history,
    }


def _take_up(parts: _TrainedParts, state: Mapping[str, Any]) -> list[Epoch]:
    """Give all that is trained a state, in place, and return the epochs that led to it."""
    parts.model.load_state_dict(state["model"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.schedule.load_state_dict(state["schedule"])
    parts.objective.restore(state["objective"])
    parts.kept.restore(state["kept"])
    history: list[Epoch] = state["history"]
    return history


def _save(path: Path, parts: _TrainedParts, history: list[Epoch]) -> None:
    state = _state(parts, history)
    with atomic_path(path, _size_bytes(state)) as temporary:
        torch.save(state, temporary)


def _size_bytes(value: object) -> int:
    """Return the bytes of all tensors in nested lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_size_bytes, parts))


def _resume(run: Fit, parts: _TrainedParts, device: torch.device, epochs: int) -> list[Epoch]:
    """Take up the checkpoint of a killed run, where there is one, and return the epochs that it finished."""
    path = run.folder / CHECKPOINT
    if not path.is_file():
        return []
    untrained = copy.deepcopy(_state(parts, []))
    try:
        history = _take_up(parts, read_checkpoint(path, device))
        if len(history) > epochs:
            raise ValueError("it is of a longer training")
        return history
    except ModelError:
        run.report.warn(f"{path}: the checkpoint is damaged, so training starts over")
    except _MISFITS:
        run.report.warn(f"{path}: the checkpoint is of another network or version, so training starts over")
    return _take_up(parts, untrained)
