"""The stages of a build in their order: the one list from which progress, help and documentation are derived."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekd.devices.base import Absent, Verifier
from edgekd.pipeline.imported_source import IMPORT
from edgekd.pipeline.preflight import PREFLIGHT, PREFLIGHT_EXPORT
from edgekd.pipeline.pruning import PRUNE, PRUNE_CHECK
from edgekd.pipeline.rehearsal import REHEARSAL
from edgekd.pipeline.target.agree.origin import REFORM
from edgekd.pipeline.target.agree.stage import AGREE
from edgekd.pipeline.target.compile import COMPILE, compiles
from edgekd.pipeline.target.details import DETAILS
from edgekd.pipeline.target.evaluate import CHECK, EVALUATE
from edgekd.pipeline.target.judge import JUDGE
from edgekd.pipeline.target.missing import MISSING
from edgekd.pipeline.target.package import BUNDLE, PROFILE
from edgekd.pipeline.target.quantize import QUANTIZE
from edgekd.pipeline.target.repair.blame import BLAME
from edgekd.pipeline.target.repair.outlook import OUTLOOK
from edgekd.pipeline.target.repair.stage import REPAIR
from edgekd.pipeline.target.robustness import ROBUSTNESS_SHIPPED
from edgekd.pipeline.target.verify import VERIFY
from edgekd.pipeline.threads import THREADS
from edgekd.pipeline.trained_source import DISTILL, EXPORT, QAT, ROBUSTNESS, TEACHER
from edgekd.pipeline.tried_target import PREFLIGHT_TARGET

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.devices.base import Device
    from edgekd.stages.stage import StageSpec


@dataclass(frozen=True)
class Circumstances:
    """What decides whether a build has a stage.

    Attributes:
        recipe: The recipe.
        target: The target that the stage would work for; the first one for a stage that runs once a build.
        device: The machine that runs the target's engines, or why there is none.
        only: The target's stages that are to run, as for a check; None for all, as for a build.
    """

    recipe: Recipe
    target: Target
    device: Device | Absent
    only: Sequence[StageSpec[Any]] | None


def _trains(given: Circumstances) -> bool:
    return given.recipe.task is not None


def _trains_teacher(given: Circumstances) -> bool:
    """Whether a teacher is sure to be trained or loaded; one beside a trained student is, where the task has it."""
    return _trains(given) and not given.recipe.student.weights


def _prunes(given: Circumstances) -> bool:
    return _trains(given) and given.recipe.prune.active


def _times_threads(given: Circumstances) -> bool:
    return _trains(given) and given.recipe.threads == "auto"


def _imports(given: Circumstances) -> bool:
    return given.recipe.model is not None


def _quantizes(given: Circumstances) -> bool:
    return given.recipe.model is None or not given.recipe.model.as_is


def _measures_robustness(given: Circumstances) -> bool:
    return _trains(given) and given.only is None and given.recipe.robustness.measure


def _tries_targets(given: Circumstances) -> bool:
    return _trains(given) and tries_targets(given.only)


def _always(_given: Circumstances) -> bool:
    return True


def _on_demand(_given: Circumstances) -> bool:
    return False


def _compiles(given: Circumstances) -> bool:
    return compiles(given.target)


def _has_device(given: Circumstances) -> bool:
    return not isinstance(given.device, Absent)


def _has_latency(given: Circumstances) -> bool:
    return not isinstance(given.device, Absent) and given.device.no_latency is None


def _verifies(given: Circumstances) -> bool:
    return isinstance(given.device, Verifier)


@dataclass(frozen=True)
class OrderedStage:
    """One stage at its place in the order of a build.

    Attributes:
        spec: The kind of stage.
        scope: Whether it runs once a "build", once for each ONNX "opset" of the targets, once for "each" target before
            anything is trained, or once for each "target" after that.
        planned: Decides whether a build is known to have it from its beginning; a stage on demand is not planned.
    """

    spec: StageSpec[Any]
    scope: Literal["build", "opset", "each", "target"]
    planned: Callable[[Circumstances], bool]


#: All stages in the order of a build. Those of a target run for one target after the other.
ORDER = (
    OrderedStage(PREFLIGHT, "build", _trains),
    OrderedStage(PREFLIGHT_EXPORT, "opset", _tries_targets),
    OrderedStage(REHEARSAL, "opset", _tries_targets),
    OrderedStage(PREFLIGHT_TARGET, "each", _tries_targets),
    OrderedStage(THREADS, "build", _times_threads),
    OrderedStage(TEACHER, "build", _trains_teacher),
    OrderedStage(DISTILL, "build", _trains),
    OrderedStage(PRUNE, "build", _trains),
    OrderedStage(PRUNE_CHECK, "build", _prunes),
    OrderedStage(EXPORT, "opset", _trains),
    OrderedStage(ROBUSTNESS, "build", _measures_robustness),
    OrderedStage(IMPORT, "build", _imports),
    OrderedStage(AGREE, "target", _quantizes),
    OrderedStage(OUTLOOK, "target", _on_demand),
    OrderedStage(QUANTIZE, "target", _quantizes),
    OrderedStage(COMPILE, "target", _compiles),
    OrderedStage(EVALUATE, "target", _has_device),
    OrderedStage(CHECK, "target", _always),
    OrderedStage(BLAME, "target", _on_demand),
    OrderedStage(REPAIR, "target", _on_demand),
    OrderedStage(QAT, "target", _on_demand),
    OrderedStage(REFORM, "target", _on_demand),
    OrderedStage(PROFILE, "target", _has_latency),
    OrderedStage(MISSING, "target", _always),
    OrderedStage(JUDGE, "target", _always),
    OrderedStage(DETAILS, "target", _always),
    OrderedStage(ROBUSTNESS_SHIPPED, "target", _measures_robustness),
    OrderedStage(BUNDLE, "target", _always),
    OrderedStage(VERIFY, "target", _verifies),
)


def plan(
    recipe: Recipe,
    targets: Sequence[Target],
    devices: Mapping[str, Device | Absent],
    only: Sequence[StageSpec[Any]] | None = None,
) -> tuple[str, ...]:
    """Return the names of the stages that a build will go through, in order; a repair adds its own where it must.

    Args:
        recipe: What to build.
        targets: The kinds of device.
        devices: For each target's name the machine that runs its engines.
        only: The stages that will follow for each target; None for all.
    """
    first = targets[0]
    once = Circumstances(recipe, first, devices[first.name], only)
    labels = {
        "build": ("",),
        "opset": tuple(export_labels(targets).values()),
        "each": tuple(target.name for target in targets),
        "target": (),
    }
    names = [
        f"{stage.spec.name} {label}".rstrip() for stage in ORDER if stage.planned(once) for label in labels[stage.scope]
    ]
    for target in targets:
        given = Circumstances(recipe, target, devices[target.name], only)
        names += [
            f"{stage.spec.name} {target.name}"
            for stage in ORDER
            if stage.scope == "target" and stage.planned(given) and (only is None or stage.spec in only)
        ]
    return tuple(names)


#: The stages before the first training.
_BEFORE = (PREFLIGHT, PREFLIGHT_EXPORT, REHEARSAL, PREFLIGHT_TARGET)


def dry_plan(recipe: Recipe, targets: Sequence[Target], devices: Mapping[str, Device | Absent]) -> tuple[str, ...]:
    """Return the names of the stages that are run where nothing is to be trained or built, in order."""
    if recipe.model:
        return (IMPORT.name, *(f"{PREFLIGHT_TARGET.name} {target.name}" for target in targets))
    names = {spec.name for spec in _BEFORE}
    return tuple(name for name in plan(recipe, targets, devices) if name.partition(" ")[0] in names)


def tries_targets(only: Sequence[StageSpec[Any]] | None) -> bool:
    """Whether targets are tried before anything is trained: where the stages that follow write engines."""
    return only is None or QUANTIZE in only


def export_labels(targets: Sequence[Target]) -> dict[int, str]:
    """Return for each ONNX opset of the targets what tells its export from the others; "" for the first."""
    first, *others = dict.fromkeys(target.opset for target in targets)
    return {first: "", **{opset: f"opset {opset}" for opset in others}}


def stage_purposes() -> dict[str, str]:
    """Return for each stage of a build, in order, what it does, as a phrase."""
    return {stage.spec.name: stage.spec.purpose for stage in ORDER}
