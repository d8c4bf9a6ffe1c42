"""One training loop for teacher, student and fine-tune, which resumes after its last finished epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from edgekd.errors import ModelError, RecipeError
from edgekd.files import atomic_path
from edgekd.stages.cache import CHECKPOINT
from edgekd.training.loop import distributed
from edgekd.training.loop.autograd_layers import train_unfrozen
from edgekd.training.loop.weights import load_plain, seed_all
from edgekd.training.task.protocol import Batch, Split, collate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from edgekd.config.recipe import Training
    from edgekd.stages.progress import StageReporter

#: One epoch's figures: mean losses, weights, "validation".
Epoch = dict[str, float]

#: How far apart the seeds of the processes' dropout and augmentation are.
_RANK_SEEDS = 1_000_000_007


class Objective(Protocol):
    """What is minimised. It may keep a state, which travels with the checkpoint."""

    def __call__(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the loss to minimise, and the figures to log; ``progress`` is the share of all steps done."""

    def parameters(self) -> Sequence[nn.Parameter]:
        """Return what is learned beside the model."""

    def state(self) -> dict[str, Any]:
        """Return the state: numbers, strings, tensors, lists and dicts of them."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take a state back."""


@dataclass(frozen=True)
class Fit:
    """Everything the loop needs beside the model and the objective.

    Attributes:
        config: epochs, batch size, learning rate, weight decay.
        seed: with the epoch's number it decides order, dropout and augmentation, so a resumed run repeats an
            undisturbed one.
        folder: where the checkpoint lies while training runs.
        report: hears of each epoch.
    """

    config: Training
    seed: int
    folder: Path
    report: StageReporter


def compute_device() -> torch.device:
    """Return CUDA where there is one, this process's own of several, else the CPU."""
    return torch.device("cuda", distributed.local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def fit(model: nn.Module, objective: Objective, train: Split, validate: Callable[[], Epoch], run: Fit) -> list[Epoch]:
    """Train ``model`` in place with AdamW under OneCycle; the last epoch is kept, never the best.

    Args:
        model: on its device; parameters that need no gradient stay as they are, and so do the running statistics of
            BatchNorm among them. One at least must need it.
        objective: called with each batch.
        train: the training split.
        validate: called after each epoch, with the model in evaluation mode; its figures, "validation" among them, are
            kept beside the losses.
        run: how to train.

    Returns:
        One entry an epoch.

    Raises:
        ModelError: the loss is not finite.
    """
    config = run.config
    device = next(model.parameters()).device
    batches = _Batches(len(train), config.batch_size, run.seed, config.accumulate)
    loader: DataLoader[Batch] = DataLoader(cast("Dataset[Any]", train), batch_sampler=batches, collate_fn=collate)
    trained = [p for p in [*model.parameters(), *objective.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.epochs * batches.count
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    history = _resume(run, parts, objective, device)
    distributed.align([*model.parameters(), *model.buffers(), *objective.parameters()])
    for epoch in range(len(history), config.epochs):
        seed_all(_epoch_seed(run.seed, epoch) + distributed.rank() * _RANK_SEEDS)
        batches.epoch = epoch
        figures = _one_epoch(model, objective, loader, optimizer, schedule, batches, config.epochs)
        model.eval()
        history.append({**figures, **(validate() if distributed.leads() else {})})
        if not distributed.leads():
            continue
        _save(run.folder / CHECKPOINT, parts, objective, history)
        run.report.advance(epoch + 1, config.epochs, _told(history[-1]))
    return history


def _told(epoch: Epoch) -> str:
    """Say in a few words how an epoch went."""
    forms = {"loss": ".3f", "validation": ".3f", "drift": ".4f"}
    return ", ".join(f"{name} {epoch[name]:{form}}" for name, form in forms.items() if name in epoch)


class _Batches(Sampler[list[int]]):
    """Every sample once an epoch, in an order decided by seed and epoch alone, in batches of nearly one size.

    No batch is left with a single sample, which has no batch statistics and no batch-wide Gram. Each is given in as
    many parts as gradients are accumulated over, and of several processes each has its own share of every part.

    Raises:
        RecipeError: a share would be of fewer than two samples.
    """

    def __init__(self, length: int, batch_size: int, seed: int, parts: int) -> None:
        self.length, self.seed, self.parts, self.epoch = length, seed, parts, 0
        self.count = min(math.ceil(length / batch_size), max(length // 2, 1))
        smallest, shares = length // self.count, parts * distributed.size()
        if shares > 1 and smallest < 2 * shares:
            raise RecipeError(
                f"batches of {smallest} samples leave fewer than two to a share (accumulate = {parts}, processes = "
                f"{distributed.size()}): raise batch_size, or make fewer shares"
            )

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(_epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        parts = [part for batch in order.tensor_split(self.count) for part in batch.tensor_split(self.parts)]
        return iter([part.tensor_split(distributed.size())[distributed.rank()].tolist() for part in parts])

    def __len__(self) -> int:
        return self.count * self.parts

    @property
    def weights(self) -> list[float]:
        """The share that each part has of its batch."""
        batches = torch.arange(self.length).tensor_split(self.count)
        return [len(part) / len(batch) for batch in batches for part in batch.tensor_split(self.parts)]


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 100_003 + epoch


def _one_epoch(
    model: nn.Module,
    objective: Objective,
    loader: DataLoader[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batches: _Batches,
    epochs: int,
) -> Epoch:
    train_unfrozen(model)
    device = next(model.parameters()).device
    sums: dict[str, Tensor | float] = {}
    for index, (batch, weight) in enumerate(zip(loader, batches.weights, strict=True)):
        step, part = divmod(index, batches.parts)
        progress = (batches.epoch + step / batches.count) / epochs
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, figures = objective(batch.to(device), progress)
        if part == 0:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss * weight)
        if part == batches.parts - 1:
            distributed.reduce_gradients(model.parameters(), objective.parameters())
            optimizer.step()
            schedule.step()
        for name, value in {"loss": loss.detach(), **figures}.items():
            sums[name] = sums.get(name, 0.0) + value
    means = {name: float(total) / len(loader) for name, total in sums.items()}
    if not all(torch.isfinite(torch.tensor(value)) for value in means.values()):
        raise ModelError(
            f"training diverged: {means}; try a smaller learning_rate, and check the data for NaN and infinite values"
        )
    return means


def _save(path: Path, parts: dict[str, Any], objective: Objective, history: list[Epoch]) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    with atomic_path(path) as temporary:
        torch.save({**state, "objective": objective.state(), "history": history}, temporary)


def _resume(run: Fit, parts: dict[str, Any], objective: Objective, device: torch.device) -> list[Epoch]:
    path = run.folder / CHECKPOINT
    if not path.is_file():
        return []
    try:
        state = load_plain(path, device)
    except ModelError:
        run.report.warn(f"{path}: the checkpoint is damaged, so training starts over")
        return []
    for name, part in parts.items():
        part.load_state_dict(state[name])
    objective.restore(state["objective"])
    history: list[Epoch] = state["history"]
    return history
