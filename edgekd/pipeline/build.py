"""A whole build: what runs once, and what runs for each target.

The stages that train, or the import of a model that is trained already, run once and know nothing of targets but the
opset and the multiples that their kernels like; the others run for each target. :mod:`edgekd.pipeline.order` has them
all.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

import edgekd
from edgekd.compress.quantize import candidate_specs, quantizer_packages
from edgekd.config.target import load_calibration
from edgekd.devices.base import Absent
from edgekd.devices.refusals import Refusals
from edgekd.devices.select import assign_devices
from edgekd.devices.ssh.device import SshDevice
from edgekd.errors import TargetError
from edgekd.pipeline import imported_source, multi_process, trained_source
from edgekd.pipeline.order import export_labels, plan, tries_targets
from edgekd.pipeline.output import writing
from edgekd.pipeline.preflight import export_untrained
from edgekd.pipeline.project import Project
from edgekd.pipeline.publish import publish, target_places
from edgekd.pipeline.target.compile import compiles
from edgekd.pipeline.target.context import LIBRARIES, Context
from edgekd.pipeline.target.preflight import TriedTarget, UntrainedTarget, preflight_target
from edgekd.pipeline.target.run import build_targets
from edgekd.report.results import BuildReport
from edgekd.runtime.backends.registry import Runtime, find_backend
from edgekd.stages.cache import Cache
from edgekd.stages.progress import Observer, SerialObserver, Silent
from edgekd.stages.stage import Runner, library_versions
from edgekd.training.distillation.loss_registry import check_losses

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.devices.base import Device
    from edgekd.pipeline.paths import BuildPaths
    from edgekd.pipeline.source import Origin
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.stage import Done, StageSpec


def build(
    recipe: Recipe,
    targets: Sequence[Target],
    paths: BuildPaths,
    *,
    devices: Sequence[str] = (),
    name: str = "recipe",
    observer: Observer | None = None,
) -> BuildReport:
    """Build a recipe for some targets.

    Stages that are up to date do nothing. A killed build continues where it stopped when it is called again. Where
    torchrun started several processes, rank 0 calls this and the others :func:`follow`.

    Args:
        recipe: What to build.
        targets: The kinds of device to build for.
        paths: Folders of the output and of the finished stages.
        devices: Machines on which engines run: ``DEVICE`` or ``TARGET=DEVICE`` each, see
            :func:`edgekd.devices.select.assign_devices`. By default each target's engines run on what is at hand.
        name: Name of the recipe in the report.
        observer: Receives the events of each stage.

    Returns:
        The report, also written to ``output`` as ``report.json``, ``report.md`` and ``report.html``. A build that the
        gate rejected returns too, with the verdict "fail".

    Raises:
        EdgekdError: Any error that a user can cause; see :mod:`edgekd.errors`.
    """
    from edgekd.report.build.files import REPORT_PLACES, write_report

    places = [*REPORT_PLACES, *(place for target in targets for place in target_places(target.name))]
    paths.check(places)
    with prepare(recipe, targets, paths.cache, devices=devices, observer=observer or Silent()) as prepared:
        robustness = prepared.origin.robustness
        finished = build_targets(prepared.contexts, prepared.refusals)
    report = BuildReport(
        recipe=name,
        task=prepared.origin.name,
        seed=recipe.seed,
        versions={"edgekd": edgekd.__version__, **prepared.versions},
        stages=tuple(prepared.runner.times),
        training={
            **prepared.origin.histories(),
            **{f"qat {target_name}": done.history for target_name, done in finished.items() if done.history},
        },
        targets=tuple(done.result for done in finished.values()),
        refused=prepared.refusals.reasons,
        robustness=robustness.result if robustness else None,
        robustness_reason=_no_robustness(recipe),
        pruning=prepared.origin.pruning,
    )
    with writing(paths.output, places):
        for target_name, done in finished.items():
            publish(done.shown, paths.output / target_name)
        write_report(report, paths.output)  # last, since it links to the bundles
    return report


def _no_robustness(recipe: Recipe) -> str:
    """Explain why robustness is not measured, where it is not."""
    if recipe.model:
        return "not measured: a model that is imported has no training split to take means from"
    return "not measured: robustness.measure is false in the recipe"


@dataclass(frozen=True)
class Prepared:
    """A build whose stages that run once are finished.

    Attributes:
        runner: Runs the stages.
        origin: What the first target's stages start from.
        contexts: For each target that has not refused what its stages are given.
        versions: Versions of the libraries that compute the result.
        refusals: Takes the targets that refuse.
    """

    runner: Runner
    origin: Origin
    contexts: dict[str, Context]
    versions: dict[str, str]
    refusals: Refusals


@contextmanager
def prepare(
    recipe: Recipe,
    targets: Sequence[Target],
    cache: Path,
    *,
    devices: Sequence[str],
    observer: Observer,
    only: Sequence[StageSpec[Any]] | None = None,
) -> Iterator[Prepared]:
    """Check what can be checked before training, and run the stages that run once; close the devices in the end.

    Args:
        recipe: What to build.
        targets: The kinds of device to build for.
        cache: Folder of the finished stages.
        devices: As for :func:`build`.
        observer: Receives the events of each stage.
        only: The stages that will follow for each target; None for all.
    """
    if not targets:
        raise TargetError("no target given")
    # An error in the calibration or in a device is raised now, not after training.
    load_calibration(recipe.quantize.calibration)
    check_losses(recipe)
    runner = Runner(Cache(cache), SerialObserver(observer))
    refusals = Refusals(len(targets), runner.observer.refuse)
    assigned = assign_devices(targets, devices, refusals)
    try:
        yield _prepare(_Preparation(runner, fit_widths(recipe, targets), refusals, only), targets, assigned)
    finally:
        for device in assigned.values():
            if not isinstance(device, Absent):
                device.close()


@dataclass(frozen=True)
class _Preparation:
    """What the stages that run once are given.

    Attributes:
        runner: Runs the stages.
        recipe: What to build, with pruned widths that suit all targets.
        refusals: Takes the targets that refuse.
        only: The stages that will follow for each target; None for all.
    """

    runner: Runner
    recipe: Recipe
    refusals: Refusals
    only: Sequence[StageSpec[Any]] | None

    def left(self, targets: Sequence[Target]) -> list[Target]:
        """Return the targets that have not refused."""
        return [target for target in targets if target.name not in self.refusals.errors]


def _prepare(given: _Preparation, targets: Sequence[Target], devices: dict[str, Device | Absent]) -> Prepared:
    recipe, runner = given.recipe, given.runner
    for target in given.left(targets):
        given.refusals.attempt(target.name, partial(_check, recipe, target, devices[target.name]))
    source = trained_source if recipe.task else imported_source
    versions = library_versions(dict.fromkeys((*source.LIBRARIES, *LIBRARIES)), "build")
    runner.observer.plan(plan(recipe, given.left(targets), devices, given.only))
    origins = _train(given, targets, devices) if recipe.task else _import(given, targets)
    contexts = {
        target.name: Context(runner, recipe, target, origins[target.opset], devices[target.name])
        for target in given.left(targets)
    }
    return Prepared(runner, next(iter(contexts.values())).origin, contexts, versions, given.refusals)


def _import(given: _Preparation, targets: Sequence[Target]) -> dict[int, Origin]:
    """Run or read the import; return the imported model for each ONNX opset of the targets."""
    return dict.fromkeys(export_labels(given.left(targets)), imported_source.import_model(given.runner, given.recipe))


def _train(given: _Preparation, targets: Sequence[Target], devices: dict[str, Device | Absent]) -> dict[int, Origin]:
    """Run or read the preflight and the stages that train; return what the targets of each ONNX opset start from."""
    assert given.recipe.task is not None  # the caller has looked
    project = Project(given.recipe.task, given.runner.cache.root)
    stages = {
        opset: trained_source.TrainingStages(given.runner, project, given.recipe, opset, label)
        for opset, label in export_labels(given.left(targets)).items()
    }
    first = next(iter(stages.values()))
    first.teacher_weights()
    first.student_weights()
    first.preflight()
    if tries_targets(given.only):
        _try_targets(given, targets, devices, stages)
    if multi_process.world_size() > 1:
        multi_process.train(first)
    wanted = {target.opset for target in given.left(targets)}
    return {opset: training.run() for opset, training in stages.items() if opset in wanted}


def _try_targets(
    given: _Preparation,
    targets: Sequence[Target],
    devices: dict[str, Device | Absent],
    stages: dict[int, trained_source.TrainingStages],
) -> None:
    """Run or read the exports of the untrained student, and let each target take its own."""

    def export(opset: int) -> Done[Exported]:
        training = stages[opset]
        return export_untrained(given.runner, training.project, given.recipe, opset, training.export_label)

    def take(target: Target) -> Done[TriedTarget]:
        untrained = UntrainedTarget(given.recipe, target, devices[target.name], export(target.opset))
        return preflight_target(given.runner, untrained)

    for target in given.left(targets):
        given.refusals.attempt(target.name, partial(export, target.opset))
    for target in given.left(targets):
        given.refusals.attempt(target.name, partial(take, target))


def follow(recipe: Recipe, targets: Sequence[Target], cache: Path) -> None:
    """Train along with the process that builds, where torchrun started several; return when training is over.

    Args:
        recipe: The same recipe as in the process that builds.
        targets: The same targets.
        cache: The same folder.

    Raises:
        EdgekdError: Any error that a user can cause; see :mod:`edgekd.errors`.
    """
    if recipe.task:
        runner, project = Runner(Cache(cache), Silent()), Project(recipe.task, cache)
        multi_process.train(
            trained_source.TrainingStages(runner, project, fit_widths(recipe, targets), targets[0].opset)
        )


def _check(recipe: Recipe, target: Target, device: Device | Absent) -> None:
    """Raise the errors of a target that a user would otherwise see only after training."""
    wanted = candidate_specs(target, recipe.quantize.precision)
    runtime = Runtime(target.runtime, target.options)
    if not isinstance(device, Absent):
        if runtime.custom and not isinstance(device, SshDevice):
            runtime.load()
        device.describe(runtime)
    if target.compile and compiles(target):
        library_versions(find_backend(target.compile.library).packages, "build")
    library_versions(quantizer_packages(wanted), "build")


def fit_widths(recipe: Recipe, targets: Sequence[Target]) -> Recipe:
    """Return the recipe with pruned widths that suit all targets, unless it names a multiple itself."""
    if recipe.prune.round_to is not None:
        return recipe
    fitting = math.lcm(*(target.round_to for target in targets))
    return replace(recipe, prune=replace(recipe.prune, round_to=fitting))
