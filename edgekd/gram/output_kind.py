"""What a network's output is, and the measure by which two of that kind are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What an output is: scores of classes of which one is right; scores of labels any of which may be; numbers; scores of
#: classes at every position of a map, or of a sequence; a vector that is compared with others by its direction, as for
#: retrieval; and what only the task itself can read, such as a detector's boxes.
OutputName = Literal["classes", "multilabel", "regression", "dense-classes", "sequence-classes", "embedding", "custom"]

#: The axis of the classes, of the kinds that have such.
CLASS_AXES: dict[OutputName, int] = {"classes": 1, "dense-classes": 1, "sequence-classes": -1}

#: What the divergence of each kind measures, and in what unit.
MEASURES: dict[OutputName, str] = {
    "classes": "KL divergence, nats",
    "multilabel": "KL divergence, nats a label",
    "regression": "squared error over variance",
    "dense-classes": "KL divergence, nats a position",
    "sequence-classes": "KL divergence, nats a step",
    "embedding": "change of cosines to itself and its nearest",
    "custom": "squared error over variance",
}

#: The largest mean divergence by default; see docs/explanation/alarm.md. That of maps and sequences is less than that
#: of classes, for most of their positions are easy: background, the inside of an object, CTC's blanks. A mean over all
#: positions hides what happens at the others. Where weights and activations of small networks were rounded to ever
#: fewer bits, 0.015 of the metric were lost from 0.003 on for a map and from 0.01 on for sequences; 8 bits had 0.0001.
MAX_DIVERGENCE: dict[OutputName, float] = {
    "classes": 0.02,
    "multilabel": 0.01,
    "regression": 0.015,
    "dense-classes": 0.005,
    "sequence-classes": 0.01,
    "embedding": 0.03,
    "custom": 0.015,
}


@dataclass(frozen=True)
class OutputKind:
    """What an output is.

    Attributes:
        name: The kind: "classes" [B, C], "multilabel" [B, L], "regression" [B, ...], "dense-classes" [B, C, ...] with
            any spatial dimensions, "sequence-classes" [B, T, C], "embedding" [B, D] or "custom" [B, ...].
        probabilities: Whether scores are probabilities already, and not logits.
        threshold: Where a label or a number is decided: for "multilabel" by default 0.5 of a probability; for
            "regression" None where nothing is decided.
        blank: Of "sequence-classes" the blank of CTC: repeated classes are one token, and blanks none. None where every
            step is a token by itself.
        index: Of "embedding" what queries are compared with: an index that stays "float", so that a rotation of the
            queries loses it; or the network's "own" embeddings, which turn with them.
    """

    name: OutputName = "classes"
    probabilities: bool = False
    threshold: float | None = None
    blank: int | None = None
    index: Literal["float", "own"] = "float"

    @property
    def class_axis(self) -> int | None:
        """The axis of the classes; None of an output that is not of classes."""
        return CLASS_AXES.get(self.name)
