"""Stages before the first training: the task is checked, and what later stages do is tried on untrained networks.

They import torch only where they must run, and a finished one is not run again.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekd.files import sha256_file
from edgekd.stages.artifacts import Exported
from edgekd.stages.progress import StageReporter
from edgekd.stages.stage import StageSpec
from edgekd.training.distillation.loss_registry import loss_sections, own_loss_sources
from edgekd.training.loop.settings import own_training_sources, training_sections
from edgekd.training.stage_run import Resources, computing

if TYPE_CHECKING:
    from edgekd.config.recipe import Recipe
    from edgekd.files import JsonObject
    from edgekd.pipeline.project import Project
    from edgekd.stages.stage import Done, Runner

#: Settings that decide how long, how often and how fast a network learns, and nothing that could be tried in one step.
_SCHEDULE = (
    *("epochs", "min_steps", "learning_rate", "weight_decay", "momentum", "warm_up", "clip_norm", "ema", "keep"),
    *("patience", "steps", "cache_teacher", "repair", "repair_s"),
)


@dataclass(frozen=True)
class Preflight:
    """A task that can be trained.

    Attributes:
        warnings: What was warned of.
        teacher: Whether the task has a teacher.
    """

    warnings: tuple[str, ...]
    teacher: bool = True

    def __str__(self) -> str:
        """Describe the result in words."""
        count = len(self.warnings)
        return f"{count} warning{'s' if count > 1 else ''}" if count else "the task is in order"


PREFLIGHT: StageSpec[Preflight] = StageSpec(
    "preflight", 3, Preflight, ("torch", "torch-pruning"), "check the task, and try what its networks will go through"
)
PREFLIGHT_EXPORT: StageSpec[Exported] = StageSpec(
    "preflight_export",
    2,
    Exported,
    ("torch", "onnx", "onnxscript", "onnxruntime"),
    "write the untrained student as ONNX",
    lambda exported: f"within {max(exported.parity.values()):.0e} of torch",
)


@dataclass(frozen=True)
class _Keeping(StageReporter):
    """Reports, and keeps the warnings for the result."""

    kept: list[str]

    def warn(self, message: str) -> None:
        """Report a warning."""
        self.kept.append(message)
        super().warn(message)


def check_task(runner: Runner, project: Project, recipe: Recipe) -> Done[Preflight]:
    """Check the task and try every training, or read that it was done.

    Args:
        runner: Runs the stage.
        project: The task.
        recipe: What is to be trained.

    Raises:
        TaskError: Something in the task is wrong.
        ModelError: The teacher cannot run in its precision.
    """

    def run(folder: Path, report: StageReporter) -> Preflight:
        from edgekd.training.preflight.check import check
        from edgekd.training.preflight.room import describe_room

        keeping = _Keeping(report.observer, report.stage, [])
        with computing(Resources(device=recipe.device)):
            needed = check(project.loaded, project.taps(recipe), recipe, keeping)
        for warning in describe_room(needed, shutil.disk_usage(folder).free, str(folder.parent)):
            report.warn(warning)  # of this disk now: it is not kept
        return Preflight(tuple(keeping.kept), project.loaded.has_teacher)

    return runner(PREFLIGHT, config=training_settings(recipe), inputs={"task": project.identity}, run=run)


def export_untrained(runner: Runner, project: Project, recipe: Recipe, opset: int, label: str) -> Done[Exported]:
    """Write the untrained student as ONNX with a few samples, or read that it was done.

    Args:
        runner: Runs the stage.
        project: The task.
        recipe: What is to be trained.
        opset: ONNX opset of the export.
        label: What tells the exports of a build with several opsets apart; "" for the first.

    Raises:
        ModelError: Torch cannot export it.
    """

    def run(folder: Path, report: StageReporter) -> Exported:
        from edgekd.training.preflight import export

        with computing(Resources(device=recipe.device)):
            return export.run(project.loaded, project.taps(recipe).student, recipe, opset, folder, report)

    config = {
        "opset": opset,
        "taps": msgspec.to_builtins(recipe.student.taps),
        "tolerance": recipe.export.tolerance,
        "seed": recipe.seed,
    }
    return runner(PREFLIGHT_EXPORT, label=label, config=config, inputs={"task": project.identity}, run=run)


def training_settings(recipe: Recipe) -> JsonObject:
    """Return all of a recipe that a training depends on from its first step."""
    sections = {"teacher": recipe.teacher, "student": recipe.student, "distill": recipe.distill, "prune": recipe.prune}
    settings: JsonObject = {name: _without_schedule(section) for name, section in sections.items()}
    losses, weights = loss_sections(recipe), recipe.student.weights
    return {
        **settings,
        **({"weights": sha256_file(Path(weights))} if weights else {}),
        "own": {name: own_training_sources(section) for name, section in training_sections(recipe).items()},
        "losses": {name: {**msgspec.to_builtins(loss), **own_loss_sources(loss)} for name, loss in losses.items()},
        "seed": recipe.seed,
    }


def _without_schedule(section: object) -> JsonObject:
    content: JsonObject = msgspec.to_builtins(section)
    return {key: value for key, value in content.items() if key not in _SCHEDULE}
