"""What networks give for a batch, as losses see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from edgekd.training.task.targets import Nest


@dataclass(frozen=True)
class NetworkOutputs:
    """What one network gave for a batch, in float32.

    Attributes:
        answers: The network's outputs [B, ...] by name.
        embeddings: The embedding [B, D] at each tap that is read.
        outputs: What the module at each tap put out, before it was pooled.
    """

    answers: Mapping[str, Tensor]
    embeddings: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class BatchOutputs:
    """What losses see of one batch.

    Attributes:
        student: Outputs of the student.
        teacher: Outputs of the teacher [B, ...] by name.
        anchors: Outputs of the networks whose embeddings the student is aligned with, most often one.
        labels: Class indices [B], or UNLABELLED.
        present: For each modality that some sample lacks, 1.0 where a sample has it and 0.0 where not [B].
        targets: What the answers should be, each leaf [B, ...].
    """

    student: NetworkOutputs
    teacher: Mapping[str, Tensor]
    anchors: Sequence[NetworkOutputs]
    labels: Tensor
    present: Mapping[str, Tensor]
    targets: Nest[Tensor]
