"""Outputs of labels any of which may hold: precision and recall of each, and the curve of one over the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.report.details.classes import NOT_FINITE, known_labels, worst_rows
from edgekd.report.details.compared import Findings, cut, ratio
from edgekd.report.details.content import ClassFigures, ClassRow, DetailCurve

if TYPE_CHECKING:
    from edgekd.gram.npz import Array
    from edgekd.report.details.compared import ComparedOutput

#: Points of a curve, and scores that it is made of at most.
_POINTS, _MOST_SCORES = 51, 2_000_000


def describe_labels(compared: ComparedOutput) -> Findings:
    """Describe scores of labels [N, L], held against 0 and 1 [N, L], or else against the reference's decisions."""
    shape = compared.outputs[compared.shipped].shape
    names, threshold = compared.names(shape[1]), compared.kind.threshold
    shares = {model: _shares(outputs, compared.kind.probabilities) for model, outputs in compared.outputs.items()}
    holds = {model: share >= (0.5 if threshold is None else threshold) for model, share in shares.items()}
    targets = compared.targets
    by_labels = targets is not None and targets.shape == shape and bool(known_labels(targets).any())
    known = known_labels(np.asarray(targets)) if by_labels else np.ones(shape, bool)
    true: Array = (np.asarray(targets) > 0) & known if by_labels else holds[compared.reference]
    judged = tuple(compared.outputs) if by_labels else (compared.shipped,)
    some = np.asarray(known.any(1))
    wrong = {model: ((holds[model] != true) & known).sum(1) for model in judged}
    scores = {
        model: np.where(some, 1 - wrong[model] / np.maximum(known.sum(1), 1), np.nan).astype(np.float64)
        for model in judged
    }
    lost = np.abs(np.nan_to_num(shares[compared.shipped], nan=0.5) - true)
    # Of as many wrong labels the surest are worse, by less than a figure shows.
    bad = wrong[compared.shipped] * (1 + 1e-6 * np.where(known, lost, 0).mean(1))
    moved: Array = (holds[compared.shipped] != holds[compared.reference]).sum(1)

    def words(labels: Array) -> str:
        return cut(", ".join(names[index] for index in np.flatnonzero(labels)) or "none")

    def say(model: str, row: int) -> str:
        finite = np.isfinite(compared.outputs[model][row]).all()
        return words(holds[model][row]) if finite else NOT_FINITE

    kept = worst_rows(_found(holds[compared.shipped], true, known), (true & known).sum(0))
    average = {
        model: {index: _average_precision(shares[model][:, index], true[:, index], known[:, index]) for index in kept}
        for model in judged
    }

    def row_of(index: int) -> ClassRow:
        is_so, counted = true[:, index], known[:, index]
        support = int((is_so & counted).sum())
        said = {model: holds[model][:, index] & counted for model in judged}
        right = {model: int((said[model] & is_so).sum()) for model in judged}
        return ClassRow(
            name=names[index],
            support=support,
            precision={model: ratio(right[model], int(said[model].sum())) for model in judged},
            recall={model: ratio(right[model], support) for model in judged},
            overlap={model: ratio(right[model], int((said[model] | (is_so & counted)).sum())) for model in judged},
            average_precision={model: average[model][index] for model in judged},
        )

    return Findings(
        judged=judged,
        by_labels=by_labels,
        score="share of the labels right",
        worst_by="labels that are wrong",
        flips_by="labels that changed",
        scores=scores,
        bad=bad if by_labels else np.zeros(shape[0]),
        moved=moved.astype(np.float64),
        say=say,
        true=lambda row: words(true[row]) if by_labels and some[row] else "",
        classes=ClassFigures("labels", shape[1], tuple(map(row_of, kept)), (), ()),
        curves={model: curve for model in judged if (curve := _curve(shares[model], true, known))},
    )


def _found(holds: Array, true: Array, known: Array) -> Array:
    """Return the share of each label [L] that was found."""
    return np.asarray((holds & true & known).sum(0) / np.maximum((true & known).sum(0), 1))


def _shares(outputs: Array, probabilities: bool) -> Array:
    """Return the probabilities [N, L] of scores."""
    scores = outputs.astype(np.float32)
    if probabilities:
        return scores
    powers = np.exp(-np.abs(scores))
    return np.asarray(np.where(scores >= 0, 1, powers) / (1 + powers))


def _ranked(shares: Array, true: Array) -> tuple[Array, Array] | None:
    """Return precision and recall after each score from the highest on; None where nothing is true.

    Scores that are the same count together.
    """
    order = np.argsort(-np.nan_to_num(shares, nan=-1.0), kind="stable")
    sure, is_so = shares[order], true[order]
    found = np.cumsum(is_so)
    if not len(found) or not found[-1]:
        return None
    last = np.append(np.flatnonzero(np.diff(sure)), len(sure) - 1)
    return found[last] / (last + 1), found[last] / found[-1]


def _average_precision(shares: Array, true: Array, known: Array) -> float | None:
    ranked = _ranked(shares[known], true[known])
    if ranked is None:
        return None
    precision, recall = ranked
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _curve(shares: Array, true: Array, known: Array) -> DetailCurve | None:
    """Return precision over recall of all labels together; None where none is true."""
    step = -(-int(known.sum()) // _MOST_SCORES) or 1
    ranked = _ranked(shares[known][::step], true[known][::step])
    if ranked is None:
        return None
    precision, recall = ranked
    places = np.searchsorted(recall, np.linspace(0, 1, _POINTS)).clip(0, len(recall) - 1)
    places = np.unique(places)
    return DetailCurve(tuple(recall[places].round(4).tolist()), tuple(precision[places].round(4).tolist()))
