"""Judge, suggest limits and blame without building a bundle: the work behind ``edgekd check`` and ``edgekd blame``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.devices.base import Absent
from edgekd.errors import OutputError, TargetRefused
from edgekd.files import make_folder
from edgekd.pipeline.build import prepare
from edgekd.pipeline.output import writing
from edgekd.pipeline.target.agree.stage import AGREE, agree
from edgekd.pipeline.target.compile import COMPILE
from edgekd.pipeline.target.evaluate import CHECK, EVALUATE
from edgekd.pipeline.target.quantize import QUANTIZE
from edgekd.pipeline.target.repair.blame import BLAME
from edgekd.pipeline.target.run import check as check_target
from edgekd.pipeline.target.run import find_blame
from edgekd.stages.progress import Silent
from edgekd.workflows.arguments import DEFAULT_CACHE, resolve_paths, resolve_recipe, resolve_targets
from edgekd.workflows.threshold_stage import ALARM, alarm_stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.config.target import Target
    from edgekd.gram.blame import Blame
    from edgekd.gram.gate import Ledger
    from edgekd.pipeline.target.context import Context
    from edgekd.stages.progress import Observer
    from edgekd.workflows.arguments import PathArgument, RecipeArgument, TargetsArgument
    from edgekd.workflows.thresholds import Alarm


@dataclass(frozen=True)
class TargetCheck:
    """The gate's judgement of one target's candidates.

    Attributes:
        target: Name of the target.
        device: The machine that ran the engines, in the user's words.
        ledgers: For each candidate, by name, the comparison of its probes after every stage.
        facts: What else the user should know, a sentence each.
        refused: Why the target could not be checked; "" where it was.
    """

    target: str
    device: str
    ledgers: dict[str, Ledger]
    facts: tuple[str, ...]
    refused: str = ""

    @property
    def rejected(self) -> bool:
        """Whether the gate releases no candidate."""
        return bool(self.ledgers) and not any(ledger.released for ledger in self.ledgers.values())


def check(
    recipe: RecipeArgument = None,
    targets: TargetsArgument = "cpu",
    *,
    overrides: Sequence[str] = (),
    devices: Sequence[str] = (),
    cache: PathArgument = DEFAULT_CACHE,
    observer: Observer | None = None,
) -> list[TargetCheck]:
    """Write, run, judge and repair every candidate of some targets, without timing or bundling it.

    Args:
        recipe: As for :func:`edgekd.build`.
        targets: As for :func:`edgekd.build`.
        overrides: Changes of the recipe, e.g. ``"distill.epochs=5"``.
        devices: Where engines run, ``DEVICE`` or ``TARGET=DEVICE`` each.
        cache: Folder of finished stages.
        observer: Receives the progress of each stage.

    Returns:
        The judgement of each target, in the order of ``targets``.

    Raises:
        EdgekdError: Any error that a user can cause; of several targets, that all refused.
    """
    loaded, _ = resolve_recipe(recipe, overrides)
    stages = (AGREE, QUANTIZE, COMPILE, EVALUATE, CHECK)
    on = resolve_targets(targets)
    observer = observer or Silent()
    with prepare(loaded, on, Path(cache), devices=devices, observer=observer, only=stages) as prepared:
        refusals = prepared.refusals
        checked = {
            name: refusals.attempt(name, partial(_check, context)) for name, context in prepared.contexts.items()
        }
    return [
        checked.get(target.name) or TargetCheck(target.name, "no device", {}, (), refusals.reasons[target.name])
        for target in on
    ]


def _check(context: Context) -> TargetCheck:
    context, agreement = agree(context)
    checked = check_target(context)
    ledgers = {candidate.name: candidate.ledger for candidate in checked.candidates}
    device = "no device" if isinstance(context.device, Absent) else context.device.name
    return TargetCheck(context.target.name, device, ledgers, (f"{agreement}.", *checked.facts))


def suggest_limits(
    recipe: RecipeArgument = None,
    target: str | Path | Target = "cpu",
    *,
    overrides: Sequence[str] = (),
    cache: PathArgument = DEFAULT_CACHE,
    observer: Observer | None = None,
) -> Alarm:
    """Damage the recipe's own float network in many ways, and suggest limits for the gate that tell what lost too much.

    Args:
        recipe: As for :func:`edgekd.build`.
        target: The kind of device whose exported network is damaged.
        overrides: Changes of the recipe, e.g. ``"distill.epochs=5"``.
        cache: Folder of finished stages.
        observer: Receives the progress of each stage.

    Raises:
        EdgekdError: Any error that a user can cause.
    """
    loaded, _ = resolve_recipe(recipe, overrides)
    on = resolve_targets(target)
    observer = observer or Silent()
    with prepare(loaded, on, Path(cache), devices=["none"], observer=observer, only=(ALARM,)) as prepared:
        return alarm_stage(prepared.contexts[on[0].name])


def blame(
    recipe: RecipeArgument = None,
    targets: TargetsArgument = "cpu",
    *,
    overrides: Sequence[str] = (),
    output: PathArgument | None = None,
    devices: Sequence[str] = (),
    cache: PathArgument = DEFAULT_CACHE,
    observer: Observer | None = None,
) -> dict[str, Blame]:
    """Find out for each target which layers, branches and kinds of tensor break its INT8.

    Writes ``blame.json`` and ``blame.svg`` into each target's folder of the output.

    Args:
        recipe: As for :func:`edgekd.build`.
        targets: As for :func:`edgekd.build`.
        overrides: Changes of the recipe, e.g. ``"distill.epochs=5"``.
        output: Folder of the targets' folders; by default ``build/`` and the recipe's name.
        devices: Where engines run, ``DEVICE`` or ``TARGET=DEVICE`` each.
        cache: Folder of finished stages.
        observer: Receives the progress of each stage.

    Returns:
        The blame of each target, by the target's name.

    Raises:
        TargetError: The target has no INT8.
        TargetRefused: One of several targets cannot be blamed; the files of the others are written.
        EdgekdError: Any other error that a user can cause.
    """
    from edgekd.report.blame.tables import BLAME_PLACES, write_blame

    loaded, name = resolve_recipe(recipe, overrides)
    paths, on = resolve_paths(output, cache, name), resolve_targets(targets)
    observer, stages = observer or Silent(), (AGREE, QUANTIZE, BLAME)
    places = [f"{target.name}/{name}" for target in on for name in BLAME_PLACES]
    paths.check(places)
    with prepare(loaded, on, paths.cache, devices=devices, observer=observer, only=stages) as prepared:
        refusals = prepared.refusals
        blames = {
            name: found
            for name, context in prepared.contexts.items()
            if (found := refusals.attempt(name, partial(find_blame, context)))
        }
    with writing(paths.output, places):
        for target, found in blames.items():
            make_folder(paths.output / target, OutputError, "--output")
            write_blame(found, paths.output / target)
    if refusals.errors:
        raise TargetRefused(f"{refusals}; written: {', '.join(blames)}")
    return blames
