"""The order of the stages, and the fan-out over targets.

``teacher -> distill -> prune -> export``, or the ``import`` of a model that is trained already, run once and know
nothing of targets but the opset and the multiples that their kernels like; ``quantize -> compile -> engine -> check ->
repair -> profile -> bundle -> verify`` run for each target.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

import edgekd
from edgekd.compress.quantize import ways
from edgekd.config.target import load_calibration
from edgekd.devices.base import Absent
from edgekd.devices.select import assign_devices
from edgekd.devices.ssh.device import SshDevice
from edgekd.errors import OutputError, TargetError
from edgekd.files import make_folder
from edgekd.pipeline import imported_source, multi_process, trained_source
from edgekd.pipeline.project import Project
from edgekd.pipeline.publish import publish, writing
from edgekd.pipeline.target import run as ship
from edgekd.pipeline.target.context import LIBRARIES, Context
from edgekd.pipeline.target.evaluate import compiles
from edgekd.pipeline.target.parallel import ship_all
from edgekd.report.build.files import write_report
from edgekd.report.results import BuildReport
from edgekd.runtime.backends.registry import Runtime, find_backend
from edgekd.stages.cache import Cache
from edgekd.stages.progress import InTurn, Observer, Silent
from edgekd.stages.stage import Runner, library_versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.devices.base import Device
    from edgekd.pipeline.source import Origin


@dataclass(frozen=True)
class BuildPaths:
    """Where a build reads and writes.

    Attributes:
        output: the report, and one folder for each target.
        cache: finished stages.
    """

    output: Path
    cache: Path


def build(
    recipe: Recipe,
    targets: Sequence[Target],
    places: BuildPaths,
    *,
    devices: Sequence[str] = (),
    name: str = "recipe",
    observer: Observer | None = None,
) -> BuildReport:
    """Build a recipe for some targets.

    Stages that are up to date do nothing; a killed build goes on where it stopped when it is called again.

    Args:
        recipe: what to build.
        targets: for which kinds of device.
        places: where to.
        devices: on which machines engines run: ``DEVICE`` or ``TARGET=DEVICE`` each, see
            :func:`edgekd.devices.select.assign_devices`. By default what is at hand for each target.
        name: what the report calls the recipe.
        observer: hears of each stage.

    Where torchrun started several processes, rank 0 calls this and the others :func:`follow`.

    Returns:
        The report, also written to ``output`` as ``report.json``, ``report.md`` and ``report.html``. A build that the
        gate rejected returns too, its verdict "fail".

    Raises:
        EdgekdError: any error that a user can cause; see :mod:`edgekd.errors`.
    """
    make_folder(places.output, OutputError, "--output")
    with prepare(recipe, targets, places.cache, devices=devices, observer=observer or Silent()) as prepared:
        robustness = prepared.origin.robustness
        shipped = ship_all(prepared.contexts)
    report = BuildReport(
        recipe=name,
        task=prepared.origin.name,
        seed=recipe.seed,
        versions={"edgekd": edgekd.__version__, **prepared.versions},
        stages=tuple(prepared.runner.times),
        training={
            **prepared.origin.histories(),
            **{f"tuned {target_name}": done.history for target_name, done in shipped.items() if done.history},
        },
        targets=tuple(done.result for done in shipped.values()),
        robustness=robustness.result if robustness else None,
        robustness_reason=_not_disturbed(recipe),
    )
    with writing(places.output):
        for target_name, done in shipped.items():
            publish(done.shown, places.output / target_name)
        write_report(report, places.output)  # last: it speaks of bundles that are there
    return report


def _not_disturbed(recipe: Recipe) -> str:
    """Say why robustness is not measured, where it is not."""
    if recipe.model:
        return "not measured: a model that is brought has no training split to take means from"
    return "not measured: robustness.measure is false in the recipe"


@dataclass(frozen=True)
class Prepared:
    """A build whose first half is done.

    Attributes:
        runner: runs stages.
        origin: of the first target's engines.
        contexts: for each target what its second half starts from.
        versions: of the libraries that compute the result.
    """

    runner: Runner
    origin: Origin
    contexts: dict[str, Context]
    versions: dict[str, str]


@contextmanager
def prepare(
    recipe: Recipe,
    targets: Sequence[Target],
    cache: Path,
    *,
    devices: Sequence[str],
    observer: Observer,
    second_half: tuple[str, ...] | None = None,
) -> Iterator[Prepared]:
    """Check what can be checked before training, and run the first half; in the end devices are let go of.

    Args:
        recipe: what to build.
        targets: for which kinds of device.
        cache: folder of finished stages.
        devices: as for :func:`build`.
        observer: hears of each stage.
        second_half: kinds of stages that will follow for each target; None for all.
    """
    if not targets:
        raise TargetError("no target given")
    # What is wrong with these is said now, not after training.
    load_calibration(recipe.quantize.calibration)
    at = assign_devices(targets, devices)
    try:
        yield _prepare(recipe, targets, cache, at, observer, second_half)
    finally:
        for device in at.values():
            if not isinstance(device, Absent):
                device.close()


def _prepare(
    recipe: Recipe,
    targets: Sequence[Target],
    cache: Path,
    at: dict[str, Device | Absent],
    observer: Observer,
    second_half: tuple[str, ...] | None,
) -> Prepared:
    for target in targets:
        _check(recipe, target, at[target.name])
    first_half = trained_source if recipe.task else imported_source
    versions = library_versions(dict.fromkeys((*first_half.LIBRARIES, *LIBRARIES)), "build")
    recipe = fit_widths(recipe, targets)
    runner = Runner(Cache(cache), InTurn(observer))
    disturbed = recipe.task is not None and recipe.robustness.measure
    fan_out = (
        f"{stage} {target.name}"
        for target in targets
        for stage in ship.stages(target, at[target.name], disturbed)
        if second_half is None or stage in second_half
    )
    first, *others = dict.fromkeys(target.opset for target in targets)
    if recipe.task:
        exports = {first: "export", **{opset: f"export opset {opset}" for opset in others}}
        after = [trained_source.ROBUSTNESS] if disturbed and second_half is None else []
        observer.plan((*trained_source.STAGES, *(exports[opset] for opset in others), *after, *fan_out))
        project = Project(recipe.task, cache)
        learners = {
            opset: trained_source.Learner(runner, project, recipe, opset, export) for opset, export in exports.items()
        }
        if multi_process.launched() > 1:
            multi_process.train(learners[first])
        origins: dict[int, Origin] = {opset: learner.run() for opset, learner in learners.items()}
    else:
        observer.plan((*imported_source.STAGES, *fan_out))
        origins = dict.fromkeys((first, *others), imported_source.bring_model(runner, recipe))
    contexts = {t.name: Context(runner, recipe, t, origins[t.opset], at[t.name]) for t in targets}
    return Prepared(runner, origins[first], contexts, versions)


def follow(recipe: Recipe, targets: Sequence[Target], cache: Path) -> None:
    """Train along with the process that builds, where torchrun started several; return when training is over.

    Args:
        recipe: the same as that process's, as are the others.
        targets: the same.
        cache: the same folder.

    Raises:
        EdgekdError: any error that a user can cause; see :mod:`edgekd.errors`.
    """
    if recipe.task:
        runner, project = Runner(Cache(cache), Silent()), Project(recipe.task, cache)
        multi_process.train(trained_source.Learner(runner, project, fit_widths(recipe, targets), targets[0].opset))


def _check(recipe: Recipe, target: Target, device: Device | Absent) -> None:
    """Raise what a user would otherwise hear only after training."""
    wanted = ways(target, recipe.quantize.precision)
    runtime = Runtime(target.runtime, target.options)
    if not isinstance(device, Absent):
        if runtime.custom and not isinstance(device, SshDevice):
            runtime.load()
        device.describe(runtime)
    if target.compile and compiles(target):
        library_versions(find_backend(target.compile.library).packages, "build")
    if any(way.quantizer == "nncf" for way in wanted):
        library_versions(["nncf"], "build")


def fit_widths(recipe: Recipe, targets: Sequence[Target]) -> Recipe:
    """Return the recipe with pruned widths that suit all targets, unless it names a multiple itself."""
    if recipe.prune.round_to is not None:
        return recipe
    fitting = math.lcm(*(target.round_to for target in targets))
    return replace(recipe, prune=replace(recipe.prune, round_to=fitting))
