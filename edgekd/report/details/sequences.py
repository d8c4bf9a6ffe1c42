"""Outputs of a class for each step of a sequence: errors of tokens, by position or after CTC's decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.report.details.classes import NOTHING_SAID, PairCounts, class_figures, known_labels, said_classes
from edgekd.report.details.compared import IGNORED, Findings, cut, ratio
from edgekd.report.details.content import TokenErrors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.gram.npz import Array
    from edgekd.report.details.compared import ComparedOutput

#: What stands in an alignment for a token that is only on the other side.
_GAP = -2


def describe_sequences(compared: ComparedOutput) -> Findings:
    """Describe scores of classes for each step [N, T, C], held against tokens [N, S], or else the reference's.

    With a blank class sequences are decoded as CTC has it; without, each step has a token of its own.
    """
    blank = compared.kind.blank
    shape = compared.outputs[compared.shipped].shape
    names = compared.names(shape[2])
    said = {model: said_classes(outputs) for model, outputs in compared.outputs.items()}
    targets = compared.targets
    fits = targets is not None and targets.ndim == 2 and (blank is not None or targets.shape == shape[:2])
    by_labels = fits and bool(known_labels(np.asarray(targets)).any())
    if blank is None:
        steps = np.asarray(targets) if by_labels else said[compared.reference]
        true = [row[row != IGNORED] for row in steps]
        spoken = {m: [row[kept != IGNORED] for row, kept in zip(s, steps, strict=True)] for m, s in said.items()}
    else:
        spoken = {model: [decode(row, blank) for row in rows] for model, rows in said.items()}
        true = spoken[compared.reference]
        if by_labels:
            true = [row[(row != IGNORED) & (row != blank)] for row in np.asarray(targets)]
    judged = tuple(compared.outputs) if by_labels else (compared.shipped,)
    pairs = {
        model: [_aligned(t, s, by_position=blank is None) for t, s in zip(true, spoken[model], strict=True)]
        for model in compared.outputs
    }
    counts = {model: PairCounts(shape[2]) for model in judged}
    for model, table in counts.items():
        for left, right in pairs[model]:
            both = right != _GAP
            table.add(left[both], right[both])
            table.support += np.bincount(left[~both & (left >= 0)], minlength=shape[2])
    lengths = np.array([len(tokens) for tokens in true])
    wrong = {model: np.array([int((a != b).sum()) for a, b in pairs[model]]) for model in judged}
    scores = {
        model: np.where(lengths > 0, 1 - count / np.maximum(lengths, 1), np.nan) for model, count in wrong.items()
    }
    apart = [
        int((a != b).sum())
        for a, b in (
            _aligned(theirs, mine, by_position=blank is None)
            for theirs, mine in zip(spoken[compared.reference], spoken[compared.shipped], strict=True)
        )
    ]

    def words(tokens: Array) -> str:
        spelled = [names[token] if token != NOTHING_SAID else "?" for token in map(int, tokens)]
        return cut(("" if all(len(name) == 1 for name in names) else " ").join(spelled) or "nothing")

    return Findings(
        judged=judged,
        by_labels=by_labels,
        score="share of the tokens right" if blank is None else "1 less errors for each token",
        worst_by="tokens that are wrong",
        flips_by="tokens that changed",
        scores=scores,
        bad=np.where(lengths > 0, wrong[compared.shipped], 0).astype(np.float64) if by_labels else np.zeros(shape[0]),
        moved=np.array(apart, np.float64),
        say=lambda model, row: words(spoken[model][row]),
        true=lambda row: words(true[row]) if by_labels else "",
        classes=class_figures("tokens", names, counts),
        tokens=_errors({model: pairs[model] for model in judged}, int(lengths.sum())),
    )


def decode(steps: Array, blank: int) -> Array:
    """Return what CTC's classes of each step [T] spell: repeats are one token, and blanks are none."""
    changes = np.ones(len(steps), bool)
    changes[1:] = steps[1:] != steps[:-1]
    tokens = steps[changes]
    return np.asarray(tokens[tokens != blank])


def _aligned(true: Array, said: Array, by_position: bool) -> tuple[Array, Array]:
    """Return two sequences of one length, in which what has no counterpart stands beside :data:`_GAP`."""
    if by_position or np.array_equal(true, said):
        return true, said
    a, b = true.tolist(), said.tolist()
    costs = _edit_costs(a, b)
    left: list[int] = []
    right: list[int] = []
    row, column = len(a), len(b)
    while row or column:
        here = costs[row][column]
        if row and column and here == costs[row - 1][column - 1] + (a[row - 1] != b[column - 1]):
            row, column = row - 1, column - 1
            left.append(a[row])
            right.append(b[column])
        elif row and here == costs[row - 1][column] + 1:
            row -= 1
            left.append(a[row])
            right.append(_GAP)
        else:
            column -= 1
            left.append(_GAP)
            right.append(b[column])
    return np.array(left[::-1], np.int64), np.array(right[::-1], np.int64)


def _edit_costs(a: list[int], b: list[int]) -> list[list[int]]:
    """Return the fewest edits between all beginnings of two sequences, as Levenshtein has them."""
    costs = [list(range(len(b) + 1))]
    for row, token in enumerate(a, 1):
        above, here = costs[-1], [row]
        for column, other in enumerate(b, 1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (token != other)))
        costs.append(here)
    return costs


def _errors(pairs: dict[str, list[tuple[Array, Array]]], tokens: int) -> TokenErrors:
    def count(rows: Sequence[tuple[Array, Array]], kind: str) -> int:
        deleted = sum(int((right == _GAP).sum()) for _, right in rows)
        inserted = sum(int((left == _GAP).sum()) for left, _ in rows)
        wrong = sum(int((left != right).sum()) for left, right in rows)
        return {"deleted": deleted, "inserted": inserted, "substituted": wrong - deleted - inserted}[kind]

    return TokenErrors(
        tokens=tokens,
        substituted={model: count(rows, "substituted") for model, rows in pairs.items()},
        deleted={model: count(rows, "deleted") for model, rows in pairs.items()},
        inserted={model: count(rows, "inserted") for model, rows in pairs.items()},
        whole={
            model: ratio(sum(np.array_equal(left, right) for left, right in rows), len(rows))
            for model, rows in pairs.items()
        },
    )
