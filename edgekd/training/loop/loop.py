"""One training loop for teacher, student and fine-tune, which resumes after its last finished epoch."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

from edgekd.errors import ModelError
from edgekd.files import atomic_path
from edgekd.stages.cache import CHECKPOINT
from edgekd.training.loop import distributed
from edgekd.training.loop.autograd_layers import train_unfrozen
from edgekd.training.loop.batches import BatchOrder, epoch_seed
from edgekd.training.loop.weights import seed_all
from edgekd.training.loop.weights_file import read_checkpoint
from edgekd.training.task.protocol import Batch, Split, as_dataset, collate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from edgekd.config.recipe import Training
    from edgekd.stages.progress import StageReporter

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
        config: Epochs, batch size, learning rate, weight decay.
        seed: Seed that, with the epoch's number, decides order, dropout and augmentation, so that a resumed run repeats
            an undisturbed one.
        folder: Folder of the checkpoint while training runs.
        report: Receives each epoch.
    """

    config: Training
    seed: int
    folder: Path
    report: StageReporter


@dataclass(frozen=True)
class _TrainedParts:
    """What is trained, and what its checkpoint holds.

    Attributes:
        model: The model.
        objective: What is minimised.
        optimizer: AdamW over the weights of both.
        schedule: The schedule of the learning rate.
    """

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler


def compute_device() -> torch.device:
    """Return CUDA where there is one (that of this process, where there are several), else the CPU."""
    return torch.device("cuda", distributed.local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def fit(model: nn.Module, objective: Objective, train: Split, validate: Callable[[], Epoch], run: Fit) -> list[Epoch]:
    """Train ``model`` in place with AdamW under OneCycle; the last epoch is kept, never the best.

    Args:
        model: The model, on its device. Parameters that need no gradient stay as they are, and so do the running
            statistics of BatchNorm among them; at least one must need it.
        objective: Called with each batch.
        train: The training split.
        validate: Called after each epoch, with the model in evaluation mode; its figures, "validation" among them, are
            kept beside the losses.
        run: How to train.

    Returns:
        One entry for each epoch.

    Raises:
        ModelError: The loss is not finite.
        RecipeError: Batches are too small for the processes that share them.
    """
    config = run.config
    device = next(model.parameters()).device
    order = BatchOrder(len(train), config.batch_size, run.seed, config.accumulate)
    loader: DataLoader[Batch] = DataLoader(as_dataset(train), batch_sampler=order, collate_fn=collate)
    trained = [p for p in [*model.parameters(), *objective.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = OneCycleLR(optimizer, config.learning_rate, total_steps=config.epochs * order.count)
    parts = _TrainedParts(model, objective, optimizer, schedule)
    history = _resume(run, parts, device)
    distributed.broadcast([*model.parameters(), *model.buffers(), *objective.parameters()])
    for epoch in range(len(history), config.epochs):
        seed_all(epoch_seed(run.seed, epoch) + distributed.rank() * _RANK_SEEDS)
        order.epoch = epoch
        began = time.monotonic()
        figures = _one_epoch(parts, loader, order, config.epochs)
        if epoch == 0 and device.type == "cpu":
            _suggest_threads(run, time.monotonic() - began)
        model.eval()
        history.append({**figures, **(validate() if distributed.is_main() else {})})
        if not distributed.is_main():
            continue
        _save(run.folder / CHECKPOINT, parts, history)
        run.report.advance(epoch + 1, config.epochs, _note(history[-1]))
    return history


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


def _one_epoch(parts: _TrainedParts, loader: DataLoader[Batch], order: BatchOrder, epochs: int) -> Epoch:
    train_unfrozen(parts.model)
    device = next(parts.model.parameters()).device
    sums: dict[str, Tensor | float] = {}
    for index, (batch, weight) in enumerate(zip(loader, order.weights, strict=True)):
        step, part = divmod(index, order.parts)
        progress = (order.epoch + step / order.count) / epochs
        loss, figures = training_loss(parts.objective, batch.to(device), progress)
        if part == 0:
            parts.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss * weight)
        if part == order.parts - 1:
            distributed.reduce_gradients(parts.model.parameters(), parts.objective.parameters())
            parts.optimizer.step()
            parts.schedule.step()
        for name, value in {"loss": loss.detach(), **figures}.items():
            sums[name] = sums.get(name, 0.0) + value
    means = {name: float(total) / len(loader) for name, total in sums.items()}
    if not all(torch.isfinite(torch.tensor(value)) for value in means.values()):
        raise ModelError(
            f"training diverged: {means}; try a smaller learning_rate, and check the data for NaN and infinite values"
        )
    return means


def _state(parts: _TrainedParts, history: list[Epoch]) -> dict[str, Any]:
    return {
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "schedule": parts.schedule.state_dict(),
        "objective": parts.objective.state(),
        "history": history,
    }


def _take_up(parts: _TrainedParts, state: Mapping[str, Any]) -> list[Epoch]:
    """Give all that is trained a state, in place, and return the epochs that led to it."""
    parts.model.load_state_dict(state["model"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.schedule.load_state_dict(state["schedule"])
    parts.objective.restore(state["objective"])
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


def _resume(run: Fit, parts: _TrainedParts, device: torch.device) -> list[Epoch]:
    """Take up the checkpoint of a killed run, where there is one, and return the epochs that it finished."""
    path = run.folder / CHECKPOINT
    if not path.is_file():
        return []
    untrained = copy.deepcopy(_state(parts, []))
    try:
        history = _take_up(parts, read_checkpoint(path, device))
        if len(history) > run.config.epochs:
            raise ValueError("it is of a longer training")
        return history
    except ModelError:
        run.report.warn(f"{path}: the checkpoint is damaged, so training starts over")
    except _MISFITS:
        run.report.warn(f"{path}: the checkpoint is of another network or version, so training starts over")
    return _take_up(parts, untrained)
