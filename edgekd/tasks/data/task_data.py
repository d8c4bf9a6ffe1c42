"""A task's data: what it needs but the two networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from edgekd.stages.labels import UNLABELLED
from edgekd.training.task.output import Output
from edgekd.training.task.protocol import ArraySplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgekd.training.task.protocol import Modality

#: Kinds of output that a table can have targets for.
TargetKind: TypeAlias = Literal["classes", "regression", "multilabel"]


@dataclass(frozen=True)
class Targets:
    """What is to be learned of each of N samples.

    Attributes:
        kind: Kind of the output.
        values: Class indices, int64 [N]; numbers, float32 [N, targets]; or 0 and 1, float32 [N, labels].
        names: Names of the classes, targets or labels.
    """

    kind: TargetKind
    values: NDArray[np.int64] | NDArray[np.float32]
    names: tuple[str, ...]

    def strata(self) -> list[str]:
        """Return the class of each sample by which splits are balanced, or "" of all."""
        if self.kind != "classes":
            return [""] * len(self.values)
        return [self.names[label] if label != UNLABELLED else "" for label in self.values]


@dataclass(frozen=True)
class Samples:
    """N samples, not yet divided.

    Attributes:
        ids: Names of the samples.
        modalities: The inputs.
        inputs: For each modality its values [N, ...].
        present: For each modality that some samples lack, whether a sample has it [N].
        groups: Names of the samples' groups, or None.
        targets: What is to be learned.
    """

    ids: Sequence[str]
    modalities: Sequence[Modality]
    inputs: Mapping[str, NDArray[np.generic]]
    present: Mapping[str, NDArray[np.bool_]]
    groups: Sequence[str] | None
    targets: Targets

    def part(self, rows: NDArray[np.int64]) -> ArraySplit:
        """Return some of the samples as a split."""
        values = torch.from_numpy(self.targets.values[rows])
        is_class = self.targets.kind == "classes"
        return ArraySplit(
            ids=[self.ids[row] for row in rows],
            inputs={name: torch.from_numpy(x[rows]) for name, x in self.inputs.items()},
            labels=values if is_class else torch.full((len(rows),), UNLABELLED),
            groups=[self.groups[row] for row in rows] if self.groups else None,
            present={name: torch.from_numpy(there[rows]) for name, there in self.present.items()},
            targets=None if is_class else values,
        )


@dataclass(frozen=True)
class TaskData:
    """What a task needs but its networks; a task returns these as its own attributes, and ``splits`` from ``splits()``.

    Attributes:
        modalities: The inputs.
        splits: The splits train, val, calibration and test.
        outputs: The one output, of the kind of the targets.
        classes: Names of the classes, targets or labels.
        files: The files that were read.
    """

    modalities: tuple[Modality, ...]
    splits: Mapping[str, ArraySplit]
    outputs: tuple[Output, ...]
    classes: tuple[str, ...]
    files: tuple[Path, ...]


def divided(samples: Samples, parts: Mapping[str, NDArray[np.int64]], files: Sequence[Path]) -> TaskData:
    """Return samples as a task's data, by the numbers of each split's samples."""
    targets = samples.targets
    return TaskData(
        modalities=tuple(samples.modalities),
        splits={name: samples.part(rows) for name, rows in parts.items()},
        outputs=(_output(targets),),
        classes=targets.names,
        files=tuple(files),
    )


def _output(targets: Targets) -> Output:
    if targets.kind == "regression":
        return Output("values", targets.kind, description=", ".join(targets.names))
    return Output("logits", targets.kind, classes=targets.names)
