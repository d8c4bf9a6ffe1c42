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
from edgekd.pipeline.epoch_log import logged
from edgekd.pipeline.order import dry_plan, export_labels, plan, tries_targets
from edgekd.pipeline.output import writing
from edgekd.pipeline.preflight import export_untrained
from edgekd.pipeline.project import Project
from edgekd.pipeline.publish import publish, target_places
from edgekd.pipeline.rehearsal import rehearse
from edgekd.pipeline.rehearsed_origin import RehearsedOrigin
from edgekd.pipeline.target.compile import compiles
from edgekd.pipeline.target.context import LIBRARIES, Context
from edgekd.pipeline.target.preflight import UntrainedTarget, preflight_target
from edgekd.pipeline.target.run import build_targets
from edgekd.report.results import BuildReport
from edgekd.runtime.backends.registry import Runtime, find_backend
from edgekd.stages.cache import Cache
from edgekd.stages.progress import Observer, Silent
from edgekd.stages.stage import Runner, library_versions
from edgekd.training.distillation.loss_registry import check_losses
from edgekd.training.loop.settings import check_training

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.devices.base import Device
    from edgekd.pipeline.paths import BuildPaths
    from edgekd.pipeline.rehearsed_origin import Rehearsed
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
    from edgekd.report.build.files import write_report

    places = build_places(targets)
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


def build_places(targets: Sequence[Target]) -> list[str]:
    """Return what a build writes into its output."""
    from edgekd.report.build.files import REPORT_PLACES

    return [*REPORT_PLACES, *(place for target in targets for place in target_places(target.name))]


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
    with _assigned(recipe, targets, cache, devices, observer) as (runner, refusals, assigned):
        yield _prepare(_Preparation(runner, fit_widths(recipe, targets), refusals, only), targets, assigned)


def try_build(
    recipe: Recipe, targets: Sequence[Target], cache: Path, *, devices: Sequence[str], observer: Observer
) -> dict[str, str]:
    """Run the stages before the first training alone; of a model that is imported, those that no samples decide.

    Args:
        recipe: What would be built.
        targets: The kinds of device.
        cache: Folder of the finished stages.
        devices: As for :func:`build`.
        observer: Receives the events of each stage.

    Returns:
        For each target that refuses the reason.

    Raises:
        EdgekdError: All targets refuse, or what they have in common is refused.
    """
    with _assigned(recipe, targets, cache, devices, observer) as (runner, refusals, assigned):
        given = _Preparation(runner, fit_widths(recipe, targets), refusals, None)
        _check_targets(given, targets, assigned)
        runner.observer.plan(dry_plan(given.recipe, given.left(targets), assigned))
        if recipe.task:
            _preflight(given, targets, assigned)
        else:
            _take(given, targets, assigned, dict(_import(given, targets)))
        return refusals.reasons


@contextmanager
def _assigned(
    recipe: Recipe, targets: Sequence[Target], cache: Path, devices: Sequence[str], observer: Observer
) -> Iterator[tuple[Runner, Refusals, dict[str, Device | Absent]]]:
    """Yield what runs stages, what takes refusals, and each target's device; close the devices in the end."""
    if not targets:
        raise TargetError("no target given")
    # An error in the calibration or in a device is raised now, not after training.
    load_calibration(recipe.quantize.ranges_and_rounding)
    check_losses(recipe)
    check_training(recipe)
    runner = Runner(Cache(cache), logged(observer, recipe.log, cache))
    refusals = Refusals(len(targets), runner.observer.refuse)
    assigned = assign_devices(targets, devices, refusals)
    try:
        yield runner, refusals, assigned
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


def _check_targets(
    given: _Preparation, targets: Sequence[Target], devices: Mapping[str, Device | Absent]
) -> dict[str, str]:
    """Let each target refuse what can be seen at once; return the versions of the libraries that compute the result."""
    for target in given.left(targets):
        given.refusals.attempt(target.name, partial(_check, given.recipe, target, devices[target.name]))
    source = trained_source if given.recipe.task else imported_source
    return library_versions(dict.fromkeys((*source.LIBRARIES, *LIBRARIES)), "build")


def _prepare(given: _Preparation, targets: Sequence[Target], devices: dict[str, Device | Absent]) -> Prepared:
    recipe, runner = given.recipe, given.runner
    versions = _check_targets(given, targets, devices)
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
    stages = _preflight(given, targets, devices)
    if multi_process.world_size() > 1:
        multi_process.train(next(iter(stages.values())))
    wanted = {target.opset for target in given.left(targets)}
    return {opset: training.run() for opset, training in stages.items() if opset in wanted}


def _preflight(
    given: _Preparation, targets: Sequence[Target], devices: Mapping[str, Device | Absent]
) -> dict[int, trained_source.TrainingStages]:
    """Run or read the stages before the first training; return those that train, for each ONNX opset."""
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
        _rehearse(given, targets, devices, stages)
    return stages


def _rehearse(
    given: _Preparation,
    targets: Sequence[Target],
    devices: Mapping[str, Device | Absent],
    stages: Mapping[int, trained_source.TrainingStages],
) -> None:
    """Run or read the rehearsal of the stages that train, and let each target take what comes out of it."""

    def export(opset: int) -> Done[Exported]:
        training = stages[opset]
        return export_untrained(given.runner, training.project, given.recipe, opset, training.export_label)

    def rehearsed(opset: int) -> Done[Rehearsed]:
        alike = [target for target in targets if target.opset == opset]
        return rehearse(given.runner, stages[opset], export(opset), alike)

    origins: dict[int, Origin] = {}
    for target in given.left(targets):
        given.refusals.attempt(target.name, partial(export, target.opset))
    for target in given.left(targets):
        if done := given.refusals.attempt(target.name, partial(rehearsed, target.opset)):
            origins[target.opset] = RehearsedOrigin(done, stages[target.opset].project)
    _take(given, targets, devices, origins)


def _take(
    given: _Preparation,
    targets: Sequence[Target],
    devices: Mapping[str, Device | Absent],
    origins: Mapping[int, Origin],
) -> None:
    """Let each target take a network before anything is trained."""
    for target in given.left(targets):
        untrained = UntrainedTarget(given.recipe, target, devices[target.name], origins[target.opset])
        given.refusals.attempt(target.name, partial(preflight_target, given.runner, untrained))


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
    as_is = recipe.model is not None and recipe.model.as_is  # then nothing is quantized
    wanted = () if as_is else candidate_specs(target, recipe.quantize)
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
