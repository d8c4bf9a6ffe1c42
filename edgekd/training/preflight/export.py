"""Export the untrained student with a few samples: what torch, ONNX or an engine library refuses shows there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgekd.stages.artifacts import UNTRAINED
from edgekd.training.export import stage as export
from edgekd.training.export.onnx import ExportNetwork
from edgekd.training.preflight.few import few_task
from edgekd.training.preflight.networks import build_network

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.config.recipe import Recipe, Tap
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.progress import StageReporter
    from edgekd.training.task.loading import LoadedTask

#: How much more an untrained network may differ from torch than a trained one: its logits may be small beside what they
#: are the sum of.
SLACK = 100


def run(
    task: LoadedTask, taps: Mapping[str, Tap], recipe: Recipe, opset: int, folder: Path, report: StageReporter
) -> Exported:
    """Export the untrained student into a folder, with a few samples of each split.

    Args:
        task: The user's task.
        taps: The student's taps.
        recipe: The recipe, with the seed of the student's weights.
        opset: ONNX opset of the export.
        folder: Folder for the graph and the samples.
        report: Receives progress.

    Raises:
        ModelError: Torch cannot export it, or the exported one disagrees with it.
    """
    student = build_network("student", task, recipe.seed).model
    config = replace(recipe.export, tolerance=recipe.export.tolerance * SLACK)
    return export.run(few_task(task), {UNTRAINED: ExportNetwork(student, taps)}, config, opset, folder, report)
