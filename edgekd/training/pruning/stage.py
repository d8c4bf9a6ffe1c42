"""Stage: remove channels in torch-pruning's dependency groups, then fine-tune with the unpruned student as Gram anchor.

The removed channels are kept as a list of indices, so that a pruned network is rebuilt from the user's own code and
plain weights, without a pickle.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from edgekd.errors import RecipeError, TaskError, nearest
from edgekd.files import sha256_file, write_text
from edgekd.stages.artifacts import CUT_PROBE, REMOVED, WEIGHTS
from edgekd.stages.cache import CHECKPOINT, ROUNDS
from edgekd.stages.progress import PartialReporter
from edgekd.stages.sealed import read_sealed, write_sealed
from edgekd.training.distillation.setup import DistillationNetworks, distillation_setup
from edgekd.training.loop import distributed
from edgekd.training.loop.autograd_layers import frozen_statistics
from edgekd.training.loop.compute_device import compute_device
from edgekd.training.loop.copies import copy_network
from edgekd.training.loop.evaluate import batches, probe, save_trained
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.settings import count_epochs, describe_length
from edgekd.training.loop.weights import load_weights, save_weights
from edgekd.training.pruning.attempts import PrunePlan, by_student
from edgekd.training.pruning.candidates import ignored_layers
from edgekd.training.pruning.cutter import Cutter
from edgekd.training.pruning.groups import remove_channels
from edgekd.training.pruning.samples import DrawnBatches
from edgekd.training.pruning.tracing import Trace
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn

    from edgekd.config.recipe import PruneConfig
    from edgekd.stages.trained import Trained
    from edgekd.training.loop.loop import Epoch
    from edgekd.training.pruning.groups import History
    from edgekd.training.task.loading import LoadedTask


#: Keys of a round's record: what was removed, how many channels are left, and the digest of the weights that were left.
_REMOVED, _LEFT, _DIGEST = "removed", "left", "weights"


@dataclass(frozen=True)
class PruningNetworks:
    """The networks of the stage.

    Attributes:
        teacher: The trained teacher.
        student: The unpruned student, whose Gram is to be kept.
        pruned: A copy of the student, which is pruned.
        outputs: Folder of the teacher's cached outputs; None to run it on every batch.
    """

    teacher: nn.Module
    student: nn.Module
    pruned: nn.Module
    outputs: Path | None = None


def check(config: PruneConfig, student: nn.Module, modalities: Iterable[str]) -> None:
    """Check a recipe's section against the task.

    Raises:
        RecipeError: It gives a budget and ratios.
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


def run(
    task: LoadedTask,
    networks: PruningNetworks,
    taps: Taps,
    config: PruneConfig,
    stage: StageRun,
    plan: PrunePlan | None = None,
) -> Trained:
    """Prune and fine-tune, in rounds that each remove the same share of all that is to go.

    A killed run goes on with the epoch after its last.

    Args:
        task: The task.
        networks: The networks.
        taps: Where their embeddings are.
        config: The recipe's section.
        stage: The stage's run.
        plan: What is done otherwise than the recipe says; None for nothing.

    Raises:
        RecipeError: Both a budget and ratios are given.
        TaskError: ``ignore`` names no module, or ``ratios`` no modality.
        ModelError: The network cannot be pruned as asked, or training diverged.
    """
    began = time.monotonic()
    check(config, networks.pruned, task.modalities)
    device = compute_device()
    for network in (networks.teacher, networks.student, networks.pruned):
        network.to(device)
    model, plan = networks.pruned, plan or PrunePlan(config.epochs)
    config = msgspec.structs.replace(config, epochs=plan.epochs or config.epochs)
    epochs = count_epochs(config, len(task.splits["train"])) if plan.epochs else 0
    _save_cut(task, model, taps, stage.folder)
    if plan.reason:
        stage.report.advance(0, config.steps * epochs, plan.reason)
    done = _Removed([], {})
    history: list[Epoch] = []
    if config.active and epochs:
        samples = DrawnBatches(task.splits["train"], config.batch_size, stage.seed, device)
        ignored = ignored_layers(model, config.ignore)
        cutter = Cutter(model, taps.student, samples, config, ignored, stage.seed, plan.shares)
        for number in range(config.steps):
            round_run = _round(stage, config.steps, epochs, number)
            cut = _cut(cutter, model, (number + 1) / config.steps, round_run, warns=not plan.reason)
            done = _Removed(done.removed + cut.removed, cut.left)
            if cut.removed:
                _save_cut(task, model, taps, stage.folder)
                history += _fine_tune(task, networks, taps, config, plan, round_run)
        if not done.removed and not plan.reason:
            stage.report.warn(_nothing_pruned(config))
    trained = save_trained(task, model, taps.student, history, stage.folder)
    if distributed.is_main():
        write_text(stage.folder / REMOVED, json.dumps(done.removed))
        shutil.rmtree(stage.folder / ROUNDS, ignore_errors=True)
    longer = describe_length(config, len(task.splits["train"])) if history else ""
    return replace(trained, channels=done.left, seconds=time.monotonic() - began, epochs=epochs, longer=longer)


@dataclass(frozen=True)
class _Removed:
    """What was removed, and of each branch how many of the channels that could go are left, and how many there were."""

    removed: History
    left: dict[str, tuple[int, int]]


def _round(stage: StageRun, rounds: int, epochs: int, number: int) -> StageRun:
    """Return the run of one round, in a folder of its own."""
    report = PartialReporter(stage.report.observer, stage.report.stage, number * epochs, rounds * epochs)
    return StageRun(stage.seed, stage.folder / ROUNDS / str(number), report)


def _save_cut(task: LoadedTask, model: nn.Module, taps: Taps, folder: Path) -> None:
    """Save what the network says of the test split before it is fine-tuned."""
    if distributed.is_main():
        probe(model, taps.student, task.splits["test"]).save(folder / CUT_PROBE)


def _cut(cutter: Cutter, model: nn.Module, share: float, stage: StageRun, *, warns: bool) -> _Removed:
    """Cut, or take up the cut of a killed run or of rank 0: a latency is never measured the same twice.

    Args:
        cutter: Cuts the network.
        model: The network.
        share: Share of all that is to go.
        stage: The round's run.
        warns: Whether to tell what keeps its width.

    Returns:
        What was removed in this round.
    """
    record = stage.folder / REMOVED
    removed: _Removed | None = None
    if distributed.is_main() and not _is_cut(stage):
        cut = cutter.cut(share)
        removed = _Removed(cut.removed, cut.left)
        save_weights(model, stage.folder / WEIGHTS)
        content = {_REMOVED: cut.removed, _LEFT: cut.left, _DIGEST: sha256_file(stage.folder / WEIGHTS)}
        write_sealed(record, content)
        stage.report.advance(0, 0, cut.note)
        for warning in cut.warnings if warns else ():
            stage.report.warn(warning)
    distributed.barrier()
    if removed is None:
        kept = read_sealed(record) or {}
        left = {branch: (count, before) for branch, (count, before) in kept[_LEFT].items()}
        removed = _Removed(_history(kept[_REMOVED]), left)
        cutter.remove(removed.removed)
        load_weights(model, stage.folder / WEIGHTS)
    return removed


def _is_cut(stage: StageRun) -> bool:
    """Whether a killed run left its cut of this round, undamaged; where it is damaged, the round starts over."""
    record, weights = stage.folder / REMOVED, stage.folder / WEIGHTS
    if not record.is_file():
        return False
    cut = read_sealed(record)
    if cut is not None and weights.is_file() and sha256_file(weights) == cut[_DIGEST]:
        return True
    (stage.folder / CHECKPOINT).unlink(missing_ok=True)
    stage.report.warn(f"{stage.folder}: the cut that a killed run left is damaged, so this round starts over")
    return False


def _fine_tune(
    task: LoadedTask, networks: PruningNetworks, taps: Taps, config: PruneConfig, plan: PrunePlan, stage: StageRun
) -> list[Epoch]:
    model, train = networks.pruned, task.splits["train"]
    # With importance "gram" the weights that stay make up for those that went, so that the unpruned student's
    # statistics hold. Those of a batch do not: a network that is held to the Gram under them has another one under its
    # own.
    hold = frozen_statistics if config.importance == "gram" else nullcontext
    trained, loss = DistillationNetworks(model, networks.teacher, networks.student, networks.outputs), config.loss
    if plan.by_student:
        trained = DistillationNetworks(model, copy_network(networks.student), networks.student)
        taps, loss = Taps(taps.student, taps.student), by_student(loss)
    setup = distillation_setup(task, trained, taps, loss, stage.seed, stage.report)
    loop = Fit(config, stage.seed, stage.folder, stage.report, task.higher_is_better)
    with setup as (objective, validate), hold(model):
        return fit(model, objective, train, validate, loop)


def _nothing_pruned(config: PruneConfig) -> str:
    asked = f"ratio {config.ratio}" + (f" and ratios {config.ratios}" if config.ratios else "")
    return f"nothing was pruned: at {asked} no layer gives {config.round_to} channels (round_to)"


def rebuild(model: nn.Module, task: LoadedTask, folder: Path) -> nn.Module:
    """Give a newly built student the shape and the weights of a finished prune stage, in place."""
    removed = _history(json.loads((folder / REMOVED).read_text(encoding="utf-8")))
    if removed:
        inputs = list(next(iter(batches(task.splits["train"]))).inputs.values())
        remove_channels(model, Trace.of(model, inputs), removed)
    return load_weights(model, folder / WEIGHTS)


def _history(removed: list[list[Any]]) -> History:
    return [tuple(entry) for entry in removed]
