"""Export the untrained student with a few samples: what torch, ONNX or an engine library refuses shows there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msgspec.structs import replace as changed

from edgekd.stages.artifacts import UNTRAINED
from edgekd.training.export import stage as export
from edgekd.training.export.onnx import ExportNetwork
from edgekd.training.preflight.networks import build_network
from edgekd.training.task.protocol import read_batch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekd.config.recipe import Recipe, Tap
    from edgekd.stages.artifacts import Exported
    from edgekd.stages.progress import StageReporter
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.protocol import Batch, Sample, Split

#: Number of samples of each split.
_SAMPLES = 8

#: How much more an untrained network may differ from torch than a trained one: its logits may be small beside what they
#: are the sum of.
_SLACK = 100


@dataclass(frozen=True)
class _Few:
    """The first samples of a split."""

    split: Split

    def __len__(self) -> int:
        return min(len(self.split), _SAMPLES)

    def __getitem__(self, index: int) -> Sample:
        return self.split[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        return read_batch(self.split, indices)


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
    few = replace(task, splits={name: _Few(split) for name, split in task.splits.items()})
    config = changed(recipe.export, tolerance=recipe.export.tolerance * _SLACK)
    return export.run(few, {UNTRAINED: ExportNetwork(student, taps)}, config, opset, folder, report)
