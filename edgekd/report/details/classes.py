"""Outputs of which one class is right: precision and recall of each class, and which are taken for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.report.details.compared import IGNORED, Findings, ratio
from edgekd.report.details.content import ClassFigures, ClassRow, ConfusedPair

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from edgekd.gram.npz import Array
    from edgekd.report.details.compared import ComparedOutput

#: The most classes of a table, of a picture of all confusions, and the most pairs in a list of them.
MOST_ROWS, MOST_DRAWN, _MOST_PAIRS = 200, 50, 20

#: Up to so many pairs of classes are counted in one table.
_COUNTED = 1 << 20

#: Class of an output that is not finite: it says nothing.
NOTHING_SAID = -1

#: What is said of such a sample.
NOT_FINITE = "not a finite number"


class PairCounts:
    """How often each class was said to be each other class.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.support = np.zeros(classes, np.int64)
        self._keys, self._counts = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def add(self, true: Array, said: Array) -> None:
        """Count answers.

        Args:
            true: The right classes [M]; those that are none are passed over.
            said: The classes that were said [M].
        """
        known = (true >= 0) & (true < self.classes)
        true, said = true[known].astype(np.int64), said[known].astype(np.int64)
        self.support += np.bincount(true, minlength=self.classes)
        spoke = said != NOTHING_SAID
        keys = true[spoke] * self.classes + said[spoke]
        if self.classes**2 <= _COUNTED:
            counted = np.bincount(keys)
            found = np.flatnonzero(counted)
            counts = counted[found]
        else:
            found, counts = np.unique(keys, return_counts=True)
        joined, inverse = np.unique(np.concatenate([self._keys, found]), return_inverse=True)
        weights = np.concatenate([self._counts, counts])
        self._keys, self._counts = joined, np.bincount(inverse, weights, len(joined)).astype(np.int64)

    @property
    def said(self) -> Array:
        """How often each class was said [C]."""
        return np.bincount(self._keys % self.classes, self._counts, self.classes).astype(np.int64)

    @property
    def right(self) -> Array:
        """How often each class was said rightly [C]."""
        alike = self._keys // self.classes == self._keys % self.classes
        return np.bincount(self._keys[alike] % self.classes, self._counts[alike], self.classes).astype(np.int64)

    def of(self, true: int, said: int) -> int:
        """Return how often one class was said to be another."""
        place = int(np.searchsorted(self._keys, true * self.classes + said))
        found = place < len(self._keys) and self._keys[place] == true * self.classes + said
        return int(self._counts[place]) if found else 0

    def confused(self, most: int) -> list[tuple[int, int]]:
        """Return the pairs of a right class and another that was said, the most frequent first."""
        wrong = np.flatnonzero(self._keys // self.classes != self._keys % self.classes)
        order = wrong[np.argsort(-self._counts[wrong], kind="stable")][:most]
        return [(int(key) // self.classes, int(key) % self.classes) for key in self._keys[order]]

    def matrix(self) -> tuple[tuple[int, ...], ...]:
        """Return the whole table [C, C], a row for each right class."""
        whole = np.zeros(self.classes**2, np.int64)
        whole[self._keys] = self._counts
        return tuple(map(tuple, whole.reshape(self.classes, self.classes).tolist()))


def class_figures(
    unit: Literal["samples", "pixels", "tokens"], names: Sequence[str], counts: Mapping[str, PairCounts]
) -> ClassFigures:
    """Return the figures of all classes.

    Args:
        unit: What was counted.
        names: Names of the classes.
        counts: For each model what it said; what ships is first.
    """
    shipped = next(iter(counts.values()))
    right = {model: pairs.right for model, pairs in counts.items()}
    said = {model: pairs.said for model, pairs in counts.items()}
    support = shipped.support

    def row(index: int) -> ClassRow:
        held = int(support[index])
        return ClassRow(
            name=names[index],
            support=held,
            precision={model: ratio(right[model][index], said[model][index]) for model in counts},
            recall={model: ratio(right[model][index], held) for model in counts},
            overlap={
                model: ratio(right[model][index], held + said[model][index] - right[model][index]) for model in counts
            },
        )

    kept = worst_rows(next(iter(right.values())) / np.maximum(support, 1), support)
    return ClassFigures(
        unit=unit,
        count=len(names),
        rows=tuple(row(index) for index in kept),
        confusion=shipped.matrix() if len(names) <= MOST_DRAWN else (),
        confused=tuple(
            ConfusedPair(names[true], names[said], {model: pairs.of(true, said) for model, pairs in counts.items()})
            for true, said in shipped.confused(_MOST_PAIRS)
        ),
    )


def worst_rows(recall: Array, support: Array) -> list[int]:
    """Return which classes a table shows, in their order: all, or of too many those that are found least."""
    order = np.argsort(np.where(support > 0, recall, 2.0), kind="stable")[:MOST_ROWS]
    return sorted(map(int, order))


def describe_classes(compared: ComparedOutput) -> Findings:
    """Describe scores of classes [N, C], held against labels [N] or else against the reference's classes."""
    rows, classes = compared.outputs[compared.shipped].shape
    said = {model: said_classes(outputs) for model, outputs in compared.outputs.items()}
    targets, names = compared.targets, compared.names(classes)
    by_labels = targets is not None and targets.shape == (rows,) and bool((targets >= 0).any())
    true = np.asarray(targets) if by_labels else said[compared.reference]
    judged = tuple(compared.outputs) if by_labels else (compared.shipped,)
    known = (true >= 0) & (true < classes)
    counts = {model: PairCounts(classes) for model in judged}
    for model, pairs in counts.items():
        pairs.add(true, said[model])
    scores = {model: np.where(known, (said[model] == true).astype(np.float64), np.nan) for model in judged}
    ours, reference = compared.outputs[compared.shipped], compared.outputs[compared.reference]
    mine, theirs = said[compared.shipped], said[compared.reference]
    probabilities = compared.kind.probabilities

    def say(model: str, row: int) -> str:
        if said[model][row] == NOTHING_SAID:
            return NOT_FINITE
        shares = _shares(compared.outputs[model][row : row + 1], probabilities)[0]
        return f"{names[said[model][row]]} {shares[said[model][row]]:.3f}"

    return Findings(
        judged=judged,
        by_labels=by_labels,
        score="share right",
        worst_by="probability of what was said above that of what is true",
        flips_by="probability that the reference gave its own answer above that of the other",
        scores=scores,
        bad=_margins(ours, mine, np.where(known, true, mine), probabilities) if by_labels else np.zeros(rows),
        moved=_margins(reference, theirs, mine, probabilities),
        say=say,
        true=lambda row: names[int(true[row])] if by_labels and known[row] else "",
        classes=class_figures("samples", names, counts),
    )


def said_classes(outputs: Array) -> Array:
    """Return the top-1 class [N] of scores [N, C]; :data:`NOTHING_SAID` for what is NaN."""
    return np.where(np.isnan(outputs).any(-1), NOTHING_SAID, outputs.argmax(-1))


def _margins(outputs: Array, said: Array, other: Array, probabilities: bool) -> Array:
    """Return by how much the probability of a class is above that of another [N].

    It is 0 where they are the same, a hair above where they are not, and infinite where one is nothing that was said.
    """
    margins = np.zeros(len(outputs))
    differ = np.flatnonzero(said != other)
    shares = _shares(outputs[differ], probabilities)
    first, second = (
        np.take_along_axis(shares, np.maximum(kind[differ], 0)[:, None], 1)[:, 0] for kind in (said, other)
    )
    found = np.maximum(first - second, np.finfo(np.float32).tiny)
    spoke = (said[differ] != NOTHING_SAID) & (other[differ] != NOTHING_SAID)
    margins[differ] = np.where(spoke, np.nan_to_num(found, nan=np.inf), np.inf)
    return margins


def _shares(outputs: Array, probabilities: bool) -> Array:
    """Return the probabilities of scores [N, C]."""
    scores = outputs.astype(np.float64)
    if probabilities:
        return scores
    with np.errstate(invalid="ignore", over="ignore"):  # a row that is not finite stays so
        powers = np.exp(scores - scores.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))


def known_labels(targets: Array) -> Array:
    """Whether a target is a label, and not one that says that there is none."""
    return np.asarray(targets != IGNORED)
