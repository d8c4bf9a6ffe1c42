"""Judge, calibrate and blame without building a bundle: the work behind ``edgekd check`` and ``edgekd blame``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.devices.select import Absent
from edgekd.errors import OutputError
from edgekd.files import make_folder
from edgekd.pipeline.build import prepare
from edgekd.pipeline.publish import writing
from edgekd.pipeline.target import run as ship
from edgekd.pipeline.target.blame import find_blame
from edgekd.workflows.threshold_stage import measure_alarm_stage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.gram.blame import Blame
    from edgekd.gram.gate import Ledger
    from edgekd.pipeline.build import BuildPaths
    from edgekd.stages.progress import Observer
    from edgekd.workflows.thresholds import Alarm


@dataclass(frozen=True)
class TargetCheck:
    """What the gate said of one target's candidates.

    Attributes:
        target: its name.
        device: the machine that ran the engines, in the user's words.
        ledgers: for each candidate the same probe after every stage.
        facts: what else the user should know.
    """

    target: str
    device: str
    ledgers: dict[str, Ledger]
    facts: tuple[str, ...]

    @property
    def rejected(self) -> bool:
        """Whether the gate lets none of the candidates through."""
        return all(ledger.verdict == "fail" for ledger in self.ledgers.values())


def check_targets(
    recipe: Recipe, targets: Sequence[Target], cache: Path, devices: Sequence[str], observer: Observer
) -> list[TargetCheck]:
    """Write, run, judge and repair every candidate of some targets.

    Args:
        recipe: what to build.
        targets: for which kinds of device.
        cache: folder of finished stages.
        devices: as for :func:`edgekd.pipeline.build.build`.
        observer: hears of each stage.

    Raises:
        EdgekdError: any error that a user can cause; see :mod:`edgekd.errors`.
    """
    stages = ("quantize", "compile", "engine", "check")
    with prepare(recipe, targets, cache, devices=devices, observer=observer, second_half=stages) as prepared:
        checks = []
        for name, context in prepared.contexts.items():
            checked = ship.check(context)
            ledgers = {one.name: one.ledger for one in checked.tried}
            device = "no device" if isinstance(context.device, Absent) else context.device.name
            checks.append(TargetCheck(name, device, ledgers, checked.facts))
        return checks


def calibrate_gate(recipe: Recipe, target: Target, cache: Path, observer: Observer) -> Alarm:
    """Measure on the recipe's own task which drift costs how much of the metric.

    Raises:
        EdgekdError: any error that a user can cause.
    """
    with prepare(recipe, [target], cache, devices=["none"], observer=observer, second_half=("alarm",)) as prepared:
        return measure_alarm_stage(prepared.contexts[target.name])


def blame_targets(
    recipe: Recipe, targets: Sequence[Target], places: BuildPaths, devices: Sequence[str], observer: Observer
) -> dict[str, Blame]:
    """Find out for each target what breaks its INT8, and write ``blame.json`` and ``blame.svg`` into its folder.

    Raises:
        TargetError: a target has no INT8.
        EdgekdError: any other error that a user can cause.
    """
    from edgekd.report.blame.tables import write_blame

    stages = ("quantize", "blame")
    with prepare(recipe, targets, places.cache, devices=devices, observer=observer, second_half=stages) as prepared:
        found = {name: find_blame(context) for name, context in prepared.contexts.items()}
    with writing(places.output):
        for name, blame in found.items():
            make_folder(places.output / name, OutputError, "--output")
            write_blame(blame, places.output / name)
    return found
