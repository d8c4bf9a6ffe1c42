"""What a network's output is, and the measure by which two of that kind are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What an output is: scores of classes of which one is right; scores of labels any of which may be; numbers, such as a
#: regression's or a map's; a vector that is compared with others by its direction, as for retrieval.
OutputName = Literal["classes", "multilabel", "values", "embedding"]

#: What the divergence of each kind measures, and in what unit.
MEASURES: dict[OutputName, str] = {
    "classes": "KL divergence, nats",
    "multilabel": "KL divergence, nats a label",
    "values": "squared error over variance",
    "embedding": "change of cosines to itself and its nearest",
}

#: The largest mean divergence by default; see docs/explanation/alarm.md.
MAX_DIVERGENCE: dict[OutputName, float] = {"classes": 0.02, "multilabel": 0.01, "values": 0.015, "embedding": 0.03}


@dataclass(frozen=True)
class OutputKind:
    """What an output is.

    Attributes:
        name: The kind.
        probabilities: Whether scores are probabilities already, and not logits.
        threshold: Where a label or a number is decided: for "multilabel" by default 0.5 of a probability; for "values"
            None where nothing is decided.
    """

    name: OutputName = "classes"
    probabilities: bool = False
    threshold: float | None = None


def class_axis(name: str) -> int:
    """Return along which axis of an output of some kind its classes or labels lie."""
    return 1 if name == "dense-classes" else -1
