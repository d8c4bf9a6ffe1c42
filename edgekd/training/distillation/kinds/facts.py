"""What the losses of a kind of output are told of one output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from edgekd.gram.output_kind import OutputKind


@dataclass(frozen=True)
class OutputFacts:
    """What a loss is told of the output that it is of.

    Attributes:
        kind: What the output is.
        temperature: T, the softening of scores that are distilled.
        variance: Of "regression" the variance of each element over the training targets, of the shape of one target;
            None of other kinds.
    """

    kind: OutputKind
    temperature: float = 1.0
    variance: Tensor | None = None
