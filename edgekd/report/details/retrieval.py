"""Outputs that are embeddings: which samples are found for a sample, and whether these are of its class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.streaming import hash_names
from edgekd.report.details.classes import MOST_ROWS
from edgekd.report.details.compared import Findings, mean_of
from edgekd.report.details.content import RecallRow, Retrieved

if TYPE_CHECKING:
    from edgekd.gram.npz import Array
    from edgekd.report.details.compared import ComparedOutput

#: How many of the nearest samples are looked at, the most samples that are searched, and queries at a time.
_NEAREST, _INDEX, _CHUNK = 5, 4096, 512


def describe_retrieval(compared: ComparedOutput) -> Findings:
    """Describe embeddings [N, D], which are queries to an index of the same samples without the query itself.

    Targets are classes [N]. A model searches its own embeddings, whose width may be another than the others'; what
    ships searches the reference's, unless the index is compressed too.
    """
    rows = len(compared.ids)
    unit = {model: _directions(outputs.reshape(rows, -1)) for model, outputs in compared.outputs.items()}
    searched = np.sort(np.argsort(hash_names(compared.ids), kind="stable")[:_INDEX])
    indices = {model: unit[model][searched] for model in unit}
    if compared.kind.index == "float":
        indices[compared.shipped] = indices[compared.reference]
    found = {model: _nearest(unit[model], indices[model], searched) for model in unit}
    targets = compared.targets
    by_labels = targets is not None and targets.shape == (rows,) and bool((targets >= 0).any())
    labels = np.asarray(targets) if by_labels else np.full(rows, -1)
    names = compared.names(int(labels.max()) + 1 if by_labels else 0)
    values, counts = np.unique(labels[searched], return_counts=True)
    known = (labels >= 0) & np.isin(labels, values[counts > 1])  # one that is alone in its class finds none
    right = {model: (labels[place] == labels[:, None]) & known[:, None] for model, (place, _) in found.items()}
    judged = tuple(unit) if by_labels else (compared.shipped,)
    scores = {
        model: np.where(known, right[model][:, 0], np.nan) if by_labels else np.full(rows, np.nan) for model in judged
    }
    mine, theirs = found[compared.shipped][0], found[compared.reference][0]
    kept = (mine[:, :, None] == theirs[:, None, :]).any(2).mean(1) if mine.shape[1] else np.ones(rows)
    bad = np.where(known & ~right[compared.shipped][:, 0], _above_zero(found[compared.shipped][1][:, 0]), 0.0)

    def label(row: int) -> str:
        return names[int(labels[row])] if by_labels and 0 <= labels[row] < len(names) else ""

    def nearest(row: int) -> dict[str, tuple[Retrieved, ...]]:
        return {
            model: tuple(
                Retrieved(
                    str(compared.ids[place]),
                    label(int(place)),
                    round(float(cosine), 4),
                    bool(labels[place] == labels[row]) if by_labels and known[row] else None,
                )
                for place, cosine in zip(found[model][0][row], found[model][1][row], strict=True)
            )
            for model in (compared.shipped, compared.reference)
        }

    def say(model: str, row: int) -> str:
        place, cosine = int(found[model][0][row, 0]), float(found[model][1][row, 0])
        return f"{label(place) or compared.ids[place]} {cosine:.3f}"

    return Findings(
        judged=judged,
        by_labels=by_labels,
        score="share whose nearest sample is of the same class",
        worst_by="cosine to the nearest sample, which is of another class",
        flips_by="share of the five nearest samples that are others",
        scores=scores,
        bad=bad,
        moved=1 - kept,
        changed=(mine != theirs).any(1) if mine.shape[1] == 0 else mine[:, 0] != theirs[:, 0],
        say=say,
        true=label,
        nearest=nearest,
        retrieval=_rows(labels, names, right, judged) if by_labels else (),
    )


def _above_zero(cosines: Array) -> Array:
    return np.maximum(cosines, np.finfo(np.float32).tiny)


def _directions(outputs: Array) -> Array:
    values = np.nan_to_num(outputs.astype(np.float32), posinf=0.0, neginf=0.0)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float32).tiny))


def _nearest(queries: Array, index: Array, searched: Array) -> tuple[Array, Array]:
    """Return the places [N, K] of the nearest samples among all, the nearest first, and the cosines [N, K] to them."""
    count = min(_NEAREST, len(searched) - 1)
    places, cosines = [], []
    for start in range(0, len(queries), _CHUNK):
        near = queries[start : start + _CHUNK] @ index.T
        near[np.arange(start, start + len(near))[:, None] == searched] = -np.inf
        first = np.argpartition(-near, max(count - 1, 0), axis=1)[:, :count]
        order = np.take_along_axis(first, np.argsort(-np.take_along_axis(near, first, 1), axis=1, kind="stable"), 1)
        places.append(searched[order])
        cosines.append(np.take_along_axis(near, order, 1))
    return np.concatenate(places), np.concatenate(cosines)


def _rows(
    labels: Array, names: tuple[str, ...], right: dict[str, Array], judged: tuple[str, ...]
) -> tuple[RecallRow, ...]:
    def row(name: str, of: Array) -> RecallRow:
        return RecallRow(
            name,
            int(of.sum()),
            {model: mean_of(right[model][of, 0].astype(np.float64)) for model in judged},
            {model: mean_of(np.asarray(right[model][of].any(1), np.float64)) for model in judged},
        )

    first = [row("all", labels >= 0)]
    each = [row(names[int(value)], labels == value) for value in np.unique(labels[labels >= 0])]
    return tuple(first + sorted(each, key=lambda one: one.first[judged[0]] or 0.0)[:MOST_ROWS])
