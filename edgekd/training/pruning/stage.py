"""Stage: remove channels in torch-pruning's dependency groups, then fine-tune with the unpruned student as Gram anchor.

The removed channels are kept as a list of indices, so that a pruned network is rebuilt from the user's own code and
plain weights, without a pickle.
"""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from edgekd.errors import RecipeError, TaskError, nearest
from edgekd.files import sha256_file, write_text
from edgekd.stages.artifacts import CUT_PROBE, REMOVED, WEIGHTS, Trained
from edgekd.stages.cache import CHECKPOINT, ROUNDS
from edgekd.stages.progress import PartialReporter
from edgekd.stages.sealed import read_sealed, write_sealed
from edgekd.training.distillation.setup import DistillationNetworks, distillation_setup
from edgekd.training.loop import distributed
from edgekd.training.loop.autograd_layers import frozen_statistics
from edgekd.training.loop.evaluate import batches, probe, save_trained
from edgekd.training.loop.loop import Fit, compute_device, fit
from edgekd.training.loop.weights import load_weights, save_weights
from edgekd.training.pruning.attempts import by_student, first_plan
from edgekd.training.pruning.cutter import Cutter
from edgekd.training.pruning.groups import remove_channels
from edgekd.training.pruning.judge import PruneJudge
from edgekd.training.pruning.repair import PrunedNetwork, describe_repair, prune_until_released
from edgekd.training.pruning.samples import DrawnBatches
from edgekd.training.pruning.tracing import Trace, copy_network
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn

    from edgekd.config.recipe import PruneConfig
    from edgekd.gram.gate import GateRules
    from edgekd.stages.artifacts import PruneAttempt
    from edgekd.training.loop.loop import Epoch
    from edgekd.training.pruning.attempts import PrunePlan
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


def ignored_layers(model: nn.Module, paths: list[str]) -> list[nn.Module]:
    """Return the modules at these paths with all modules inside them.

    Raises:
        TaskError: There is no module at a path.
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
    stage: StageRun,
    rules: GateRules | None = None,
) -> Trained:
    """Prune and fine-tune, in rounds that each remove the same share of all that is to go.

    Where the gate rejects what came of it on the validation split, the unpruned student is pruned again, less and with
    a longer fine-tune, until the gate lets it through or the time for that is spent; then it stays as it is. A killed
    run goes on with the epoch after its last.

    Args:
        task: The task.
        networks: The networks.
        taps: Where their embeddings are.
        config: The recipe's section.
        stage: The stage's run.
        rules: How the gate judges; None to prune once, whatever comes of it.

    Raises:
        RecipeError: Both a budget and ratios are given.
        TaskError: ``ignore`` names no module, or ``ratios`` no modality.
        ModelError: The network cannot be pruned as asked, or training diverged.
    """
    check(config, networks.pruned, task.modalities)
    device = compute_device()
    for network in (networks.teacher, networks.student, networks.pruned):
        network.to(device)
    rounds = _Rounds(task, networks, taps, config, stage)
    attempts: tuple[PruneAttempt, ...] = ()
    if rules is None or not config.active:
        plan = first_plan(config, task.modalities)
        pruned = rounds(plan, networks.pruned, stage.folder / ROUNDS, 0)
    else:
        judge = PruneJudge(task, networks.student, taps.student, rules)
        pruned, attempts = prune_until_released(rounds, judge, networks.pruned, task.modalities, config, stage)
    if config.active and not pruned.removed and len(attempts) < 2:
        attempts = ()
        stage.report.warn(_nothing_pruned(config))
    if told := describe_repair(attempts, config):
        stage.report.warn(told)
    trained = save_trained(task, pruned.model, taps.student, pruned.history, stage.folder)
    if distributed.is_main():
        write_text(stage.folder / REMOVED, json.dumps(pruned.removed))
        shutil.rmtree(stage.folder / ROUNDS, ignore_errors=True)
    return replace(trained, attempts=attempts)


@dataclass(frozen=True)
class _Rounds:
    """Prunes and fine-tunes one network in rounds; the attributes are as for :func:`run`."""

    task: LoadedTask
    networks: PruningNetworks
    taps: Taps
    config: PruneConfig
    stage: StageRun

    def __call__(self, plan: PrunePlan, model: nn.Module, folder: Path, done: int) -> PrunedNetwork:
        """Make one attempt; see :class:`edgekd.training.pruning.repair.Prune`."""
        _save_cut(self.task, model, self.taps, self.stage.folder)
        if not self.config.active or not plan.prunes:
            return PrunedNetwork(model)
        device, ignored = next(model.parameters()).device, ignored_layers(model, self.config.ignore)
        samples = DrawnBatches(self.task.splits["train"], self.config.batch_size, self.stage.seed, device)
        cutter = Cutter(model, self.taps.student, samples, self.config, ignored, self.stage.seed, plan.shares)
        pruned = PrunedNetwork(model)
        for number in range(self.config.steps):
            run = self._run_of(plan, folder / str(number), done, number)
            taken = _cut(cutter, model, (number + 1) / self.config.steps, run, first=not done)
            history: list[Epoch] = []
            if taken.removed:
                _save_cut(self.task, model, self.taps, self.stage.folder)
                history = self._fine_tune(plan, model, run)
            pruned = replace(taken, removed=pruned.removed + taken.removed, history=pruned.history + history)
        return pruned

    def _run_of(self, plan: PrunePlan, folder: Path, done: int, number: int) -> StageRun:
        """Return the run of one round, in a folder of its own."""
        before, total = done + number * plan.epochs, done + self.config.steps * plan.epochs
        report = PartialReporter(self.stage.report.observer, self.stage.report.stage, before, total)
        return StageRun(self.stage.seed, folder, report)

    def _fine_tune(self, plan: PrunePlan, model: nn.Module, run: StageRun) -> list[Epoch]:
        config, networks, taps = self.config, self.networks, self.taps
        # With importance "gram" the weights that stay make up for those that went, so that the unpruned student's
        # statistics hold. Those of a batch do not: a network that is held to the Gram under them has another one under
        # its own.
        hold = frozen_statistics if config.importance == "gram" else nullcontext
        trained = DistillationNetworks(model, networks.teacher, networks.student, networks.outputs)
        loss = config.loss
        if plan.by_student:
            trained = DistillationNetworks(model, copy_network(networks.student), networks.student)
            taps, loss = Taps(taps.student, taps.student), by_student(loss)
        setup = distillation_setup(self.task, trained, taps, loss, run.seed, run.report)
        loop = Fit(msgspec.structs.replace(config, epochs=plan.epochs), run.seed, run.folder, run.report)
        with setup as (objective, validate), hold(model):
            return fit(model, objective, self.task.splits["train"], validate, loop)


def _save_cut(task: LoadedTask, model: nn.Module, taps: Taps, folder: Path) -> None:
    """Save what the network says of the test split before it is fine-tuned."""
    if distributed.is_main():
        probe(model, taps.student, task.splits["test"]).save(folder / CUT_PROBE)


def _cut(cutter: Cutter, model: nn.Module, share: float, stage: StageRun, *, first: bool) -> PrunedNetwork:
    """Cut, or take up the cut of a killed run or of rank 0: a latency is never measured the same twice.

    Args:
        cutter: Cuts the network.
        model: The network.
        share: Share of all that is to go.
        stage: The round's run.
        first: Whether this is the first attempt; what keeps its width is told once.

    Returns:
        The network with what was removed in this round.
    """
    record = stage.folder / REMOVED
    if distributed.is_main() and not _is_cut(stage):
        cut = cutter.cut(share)
        save_weights(model, stage.folder / WEIGHTS)
        content = {_REMOVED: cut.removed, _LEFT: cut.left, _DIGEST: sha256_file(stage.folder / WEIGHTS)}
        write_sealed(record, content)
        stage.report.advance(0, 0, cut.note)
        for warning in cut.warnings if first else ():
            stage.report.warn(warning)
        distributed.barrier()
        return PrunedNetwork(model, cut.removed, left=cut.left)
    distributed.barrier()
    kept = read_sealed(record) or {}
    removed = _history(kept[_REMOVED])
    cutter.remove(removed)
    load_weights(model, stage.folder / WEIGHTS)
    return PrunedNetwork(model, removed, left={name: (left, before) for name, (left, before) in kept[_LEFT].items()})


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
