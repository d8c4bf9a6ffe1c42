"""The order of the stages, and the fan-out over targets.

``teacher -> distill -> prune -> export`` run once and know nothing of targets; ``quantize -> engine -> check ->
profile -> bundle`` run for each target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import edgekd
from edgekd import learning, shipping
from edgekd.cache import Cache
from edgekd.devices.local import LocalDevice
from edgekd.errors import OutputError, TargetError
from edgekd.files import make_folder
from edgekd.progress import Observer, Silent
from edgekd.project import Project
from edgekd.publish import publish, writing
from edgekd.report.build import write_report
from edgekd.report.result import BuildReport
from edgekd.stages import Runner, library_versions
from edgekd.target import load_calibration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.recipe import Recipe
    from edgekd.target import Target


@dataclass(frozen=True)
class Places:
    """Where a build reads and writes.

    Attributes:
        output: the report, and one folder for each target.
        cache: finished stages.
    """

    output: Path
    cache: Path


def build(
    recipe: Recipe, targets: Sequence[Target], places: Places, *, name: str = "recipe", observer: Observer | None = None
) -> BuildReport:
    """Build a recipe for some targets.

    Stages that are up to date do nothing; a killed build goes on where it stopped when it is called again.

    Args:
        recipe: what to build.
        targets: for which kinds of device.
        places: where to.
        name: what the report calls the recipe.
        observer: hears of each stage.

    Returns:
        The report, also written to ``output`` as ``report.json`` and ``report.md``. A build that the gate rejected
        returns too, its verdict "fail".

    Raises:
        EdgekdError: any error that a user can cause; see :mod:`edgekd.errors`.
    """
    if not targets:
        raise TargetError("no target given")
    make_folder(places.output, OutputError, "--output")
    load_calibration(recipe.quantize.calibration)  # what is wrong with it is said now, not after training
    versions = library_versions(dict.fromkeys((*learning.LIBRARIES, *shipping.LIBRARIES)), "build")
    observer = observer or Silent()
    fan_out = (f"{stage} {target.name}" for target in targets for stage in shipping.STAGES)
    first, *others = dict.fromkeys(target.opset for target in targets)
    exports = {first: "export", **{opset: f"export opset {opset}" for opset in others}}
    observer.plan((*learning.STAGES, *(exports[opset] for opset in others), *fan_out))
    runner = Runner(Cache(places.cache), observer)
    project = Project(recipe.task, places.cache)
    device = LocalDevice()
    learned = {
        opset: learning.Learner(runner, project, recipe, opset, export).run() for opset, export in exports.items()
    }
    shipped = {
        target.name: shipping.Shipper(runner, project, recipe, target, learned[target.opset], device).run()
        for target in targets
    }
    report = BuildReport(
        recipe=name,
        task=recipe.task.name.rpartition("/")[2],
        seed=recipe.seed,
        versions={"edgekd": edgekd.__version__, **versions},
        stages=tuple(runner.times),
        training={name: done.result.history for name, done in learned[first].trained.items() if done.result.history},
        targets=tuple(done.result for done in shipped.values()),
    )
    with writing(places.output):
        for target_name, done in shipped.items():
            publish(done.shown, places.output / target_name)
        write_report(report, places.output)  # last: it speaks of bundles that are there
    return report
