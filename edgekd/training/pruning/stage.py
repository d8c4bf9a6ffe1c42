"""Stage: remove channels in torch-pruning's dependency groups, then fine-tune with the unpruned student as Gram anchor.

What was removed is kept as a list of channel indices, so that a pruned network is rebuilt from the user's own code and
plain weights, without a pickle.
"""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from edgekd.errors import RecipeError, TaskError, nearest
from edgekd.files import write_text
from edgekd.stages.artifacts import CUT_PROBE, REMOVED, WEIGHTS, Trained
from edgekd.stages.cache import ROUNDS
from edgekd.stages.progress import PartialReporter
from edgekd.training.distillation.setup import Models, aligned
from edgekd.training.loop import distributed
from edgekd.training.loop.autograd_layers import frozen_statistics
from edgekd.training.loop.evaluate import batches, keep, probe
from edgekd.training.loop.loop import Fit, compute_device, fit
from edgekd.training.loop.weights import load_weights, save_weights
from edgekd.training.pruning.cutter import Cutter
from edgekd.training.pruning.groups import remove
from edgekd.training.task.protocol import collate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch.utils.data import Dataset

    from edgekd.config.recipe import PruneConfig
    from edgekd.stages.progress import StageReporter
    from edgekd.training.loop.loop import Epoch
    from edgekd.training.pruning.groups import History
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.protocol import Batch, LoadedTask, Split


#: Training samples behind an importance.
_SAMPLES = 1024


@dataclass(frozen=True)
class PruningNetworks:
    """The networks of the stage, on one device: the teacher, the unpruned student, and the copy to prune.

    The teacher's outputs are read where they were written.
    """

    teacher: nn.Module
    student: nn.Module
    pruned: nn.Module
    outputs: Path | None = None


def check(config: PruneConfig, student: nn.Module, modalities: Iterable[str]) -> None:
    """Check a recipe's section against the task.

    Raises:
        RecipeError: it gives a budget and ratios.
        TaskError: ``ignore`` names no module, or ``ratios`` no modality.
    """
    if config.budget and config.ratios:
        raise RecipeError(
            "[prune] gives a budget and ratios: a budget itself decides what each encoder gives; keep one"
        )
    for name in config.ratios:
        if name not in modalities:
            raise TaskError(f"[prune] ratios: '{name}' is no modality of the task{nearest(name, modalities)}")
    ignored_layers(student, config.ignore)


def ignored_layers(model: nn.Module, paths: list[str]) -> list[nn.Module]:
    """Return the modules at these paths with all modules inside them.

    Raises:
        TaskError: there is no module at a path.
    """
    modules = dict(model.named_modules())
    for path in paths:
        if path not in modules:
            raise TaskError(f"[prune] ignore: the student has no module '{path}'{nearest(path, filter(None, modules))}")
    return [module for path in paths for module in modules[path].modules()]


def run(
    task: LoadedTask,
    networks: PruningNetworks,
    taps: Taps,
    config: PruneConfig,
    seed: int,
    folder: Path,
    report: StageReporter,
) -> Trained:
    """Prune and fine-tune into ``folder``, in rounds that each remove the same share of all that is to go.

    A killed run goes on with the epoch after its last.

    Raises:
        RecipeError: both a budget and ratios are given.
        TaskError: ``ignore`` names no module, or ``ratios`` no modality.
        ModelError: the network cannot be pruned as asked, or training diverged.
    """
    check(config, networks.pruned, task.modalities)
    device = compute_device()
    for network in (networks.teacher, networks.student, networks.pruned):
        network.to(device)
    model = networks.pruned
    removed: History = []
    history: list[Epoch] = []
    _keep_cut(task, model, taps, folder)
    if config.active:
        samples = DrawnBatches(task.splits["train"], config.batch_size, seed, device)
        cutter = Cutter(model, taps.student, samples, config, ignored_layers(model, config.ignore), seed)
        for number in range(config.steps):
            place = folder / ROUNDS / str(number)
            step = PartialReporter(report.observer, report.stage, number * config.epochs, config.steps * config.epochs)
            gone = _cut(cutter, model, (number + 1) / config.steps, place, step)
            if gone:
                removed += gone
                _keep_cut(task, model, taps, folder)
                history += _tune(task, networks, taps, Fit(config, seed, place, step), config)
        if not removed:
            report.warn(_nothing(config))
    trained = keep(task, model, taps.student, history, folder)
    if distributed.leads():
        write_text(folder / REMOVED, json.dumps(removed))
        shutil.rmtree(folder / ROUNDS, ignore_errors=True)
    return trained


def _keep_cut(task: LoadedTask, model: nn.Module, taps: Taps, folder: Path) -> None:
    if distributed.leads():
        probe(model, taps.student, task.splits["test"]).save(folder / CUT_PROBE)


def _cut(cutter: Cutter, model: nn.Module, share: float, folder: Path, report: StageReporter) -> History:
    """Cut, or take up the cut of a killed run or of rank 0: a latency is never measured the same twice.

    Return what is gone.
    """
    record = folder / REMOVED
    removed: History | None = None
    if distributed.leads() and not record.is_file():
        cut = cutter.cut(share)
        removed = cut.removed
        save_weights(model, folder / WEIGHTS)
        write_text(record, json.dumps(removed))
        report.advance(0, 0, cut.note)
    distributed.wait()
    if removed is None:
        removed = _read(record)
        cutter.remove(removed)
        load_weights(model, folder / WEIGHTS)
    return removed


def _tune(task: LoadedTask, networks: PruningNetworks, taps: Taps, run: Fit, config: PruneConfig) -> list[Epoch]:
    model = networks.pruned
    # What stays makes up for what "gram" removed, so that the unpruned student's statistics hold. Those of a batch do
    # not, and a network that is held to the Gram under them has another one under its own.
    hold = frozen_statistics if config.importance == "gram" else nullcontext
    models = Models(model, networks.teacher, networks.student, networks.outputs)
    with aligned(task, models, taps, config.loss, run.seed, run.report) as (objective, validate), hold(model):
        return fit(model, objective, task.splits["train"], validate, run)


def _nothing(config: PruneConfig) -> str:
    asked = f"ratio {config.ratio}" + (f" and ratios {config.ratios}" if config.ratios else "")
    return f"nothing was pruned: at {asked} no layer gives {config.round_to} channels (round_to)"


@dataclass(frozen=True)
class DrawnBatches:
    """Batches of training samples drawn by the seed, the same every time: the first ones are often all of one class.

    Attributes:
        split: to draw from.
        batch_size: of each batch.
        seed: of the draw.
        device: where the batches are put.
    """

    split: Split
    batch_size: int
    seed: int
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.split), generator=torch.Generator().manual_seed(self.seed))
        drawn = Subset(cast("Dataset[Any]", self.split), order[:_SAMPLES].tolist())
        loader: DataLoader[Batch] = DataLoader(drawn, self.batch_size, collate_fn=collate)
        return (batch.to(self.device) for batch in loader)


def rebuild(model: nn.Module, task: LoadedTask, folder: Path) -> nn.Module:
    """Give a freshly made student the shape and the weights of a finished prune stage, in place."""
    removed = _read(folder / REMOVED)
    if removed:
        remove(model, list(next(iter(batches(task.splits["train"]))).inputs.values()), removed)
    return load_weights(model, folder / WEIGHTS)


def _read(record: Path) -> History:
    return [tuple(entry) for entry in json.loads(record.read_text(encoding="utf-8"))]
