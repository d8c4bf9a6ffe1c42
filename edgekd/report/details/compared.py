"""What the functions of each kind of output are given, and what they find."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputKind
    from edgekd.report.details.content import (
        ClassFigures,
        DetailCurve,
        InputPicture,
        NumberFigures,
        RecallRow,
        Retrieved,
        TokenErrors,
    )

#: Target of what has no label, in every kind of output that is of classes.
IGNORED = -100

#: A change of numbers of less is no change that a figure shows, and mostly rounding.
_LEAST_CHANGE = 5e-4

#: Characters of what is said of one sample.
_SAID = 100


@dataclass(frozen=True)
class ComparedOutput:
    """One output of several models for the same N samples.

    Attributes:
        kind: What the output is.
        outputs: For each model its output [N, ...]; what ships is first, and the reference is among them.
        reference: The model that what ships must still answer like.
        ids: Names of the samples [N].
        targets: What is true of the samples [N, ...], in the form of the kind; None where that is not known.
        groups: Group of each sample [N]; None where samples do not come in groups.
        classes: Names of the classes, in their order; empty where they have none.
    """

    kind: OutputKind
    outputs: Mapping[str, Array]
    reference: str
    ids: Array
    targets: Array | None = None
    groups: Array | None = None
    classes: Sequence[str] = ()

    @property
    def shipped(self) -> str:
        """Name of what ships."""
        return next(iter(self.outputs))

    def names(self, count: int) -> tuple[str, ...]:
        """Return the names of ``count`` classes; a class without a name is called by its index."""
        given = tuple(map(str, self.classes))
        return given if len(given) == count else tuple(map(str, range(count)))


@dataclass(frozen=True)
class Findings:
    """What one kind of output says of its samples.

    Attributes:
        judged: The models whose answers are held against the truth.
        by_labels: Whether the truth are the samples' own labels, and not the reference's answers.
        score: What a score is, in words.
        worst_by: What ``bad`` is, in words.
        flips_by: What ``moved`` is, in words.
        scores: For each judged model the score of each sample [N]; NaN where its truth is not known.
        bad: How bad the answer of what ships is for each sample [N]; 0 or NaN where it is not.
        moved: How far its answer is from the reference's [N]; 0 where it is the same.
        say: Returns what a model said of a sample, in words.
        true: Returns what is true of a sample, in words; "" where that is not known.
        higher_is_better: Whether a higher score is better.
        decides: Whether there is a decision that could change, and not only a distance.
        changed: Whether the answer changed [N]; None where it has wherever it moved.
        maps: Returns pictures of the answers for a sample, where these are maps.
        nearest: Returns the nearest samples of a sample by model, where the output is an embedding.
        classes: The classes; None where there are none.
        curves: For each model precision over recall.
        numbers: The numbers; None where the output is of none.
        retrieval: The retrieval of all samples and of those of each class.
        tokens: The errors in sequences; None where the output is of none.
    """

    judged: tuple[str, ...]
    by_labels: bool
    score: str
    worst_by: str
    flips_by: str
    scores: Mapping[str, Array]
    bad: Array
    moved: Array
    say: Callable[[str, int], str]
    true: Callable[[int], str]
    higher_is_better: bool = True
    decides: bool = True
    changed: Array | None = None
    maps: Callable[[int], tuple[InputPicture, ...]] | None = None
    nearest: Callable[[int], dict[str, tuple[Retrieved, ...]]] | None = None
    classes: ClassFigures | None = None
    curves: Mapping[str, DetailCurve] = field(default_factory=dict)
    numbers: NumberFigures | None = None
    retrieval: tuple[RecallRow, ...] = ()
    tokens: TokenErrors | None = None


def ratio(part: float, whole: float) -> float | None:
    """Return a share; None where there is nothing that it could be of."""
    return float(part / whole) if whole else None


def mean_of(values: Array) -> float | None:
    """Return the mean of the values that are known; None where none is, or one is infinite."""
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if known.size else np.nan
    return mean if np.isfinite(mean) else None


def shown_change(moved: Array) -> Array:
    """Return how far answers moved [N], infinite where one is not finite, and 0 where it is less than is shown."""
    known = np.nan_to_num(moved, nan=np.inf)
    return np.asarray(np.where(known < _LEAST_CHANGE, 0.0, known))


def cut(words: str) -> str:
    """Return what is said of one sample, at most as long as a table has room for."""
    return words if len(words) <= _SAID else f"{words[: _SAID - 1]}…"
