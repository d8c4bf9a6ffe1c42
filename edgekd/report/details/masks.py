"""Outputs of a class for each place, as of a segmentation: figures of the classes by pixel, and masks side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.report.details.classes import PairCounts, class_figures, known_labels, said_classes
from edgekd.report.details.compared import Findings
from edgekd.report.details.pictures import mask_picture

if TYPE_CHECKING:
    from edgekd.gram.npz import Array
    from edgekd.report.details.compared import ComparedOutput
    from edgekd.report.details.content import InputPicture

#: Numbers of an output that are looked at at a time.
_CHUNK = 1 << 22


def describe_masks(compared: ComparedOutput) -> Findings:
    """Describe scores of classes for each place [N, C, ...], held against classes [N, ...], or the reference's."""
    shape = compared.outputs[compared.shipped].shape
    names = compared.names(shape[1])
    said = {model: _said(outputs) for model, outputs in compared.outputs.items()}
    targets, places = compared.targets, (shape[0], *shape[2:])
    by_labels = targets is not None and targets.shape == places and bool(known_labels(targets).any())
    true = np.asarray(targets) if by_labels else said[compared.reference]
    judged = tuple(compared.outputs) if by_labels else (compared.shipped,)
    counts = {model: PairCounts(shape[1]) for model in judged}
    flat, known = true.reshape(shape[0], -1), (true >= 0).reshape(shape[0], -1)
    scores = {}
    for model, pairs in counts.items():
        mine = said[model].reshape(shape[0], -1)
        for row in range(shape[0]):  # one at a time: the maps of all would be several times their own size
            pairs.add(flat[row], mine[row])
        right = ((mine == flat) & known).sum(1)
        scores[model] = np.where(known.any(1), right / np.maximum(known.sum(1), 1), np.nan)
    changed = (said[compared.shipped] != said[compared.reference]).reshape(shape[0], -1).mean(1)

    def maps(row: int) -> tuple[InputPicture, ...]:
        shown = {"true": true[row]} if by_labels else {}
        shown |= {model: said[model][row] for model in (compared.reference, compared.shipped)}
        return tuple(mask_picture(name, mask) for name, mask in shown.items())

    def words(row: Array) -> str:
        found, sizes = np.unique(row[row >= 0], return_counts=True)
        order = np.argsort(-sizes, kind="stable")[:3]
        return ", ".join(f"{names[int(found[at])]} {sizes[at] / row.size:.0%}" for at in order)

    return Findings(
        judged=judged,
        by_labels=by_labels,
        score="share of the pixels right",
        worst_by="share of the pixels that is wrong",
        flips_by="share of the pixels that changed",
        scores=scores,
        bad=1 - scores[compared.shipped] if by_labels else np.zeros(shape[0]),
        moved=changed,
        say=lambda model, row: words(said[model][row]),
        true=lambda row: words(true[row]) if by_labels and known[row].any() else "",
        decides=False,
        maps=maps if len(shape) == 4 else None,
        classes=class_figures("pixels", names, counts),
    )


def _said(outputs: Array) -> Array:
    """Return the top-1 class of each place [N, ...] of scores [N, C, ...], some samples at a time."""
    step = max(1, _CHUNK // max(1, outputs[0].size))
    parts = [
        said_classes(np.moveaxis(outputs[start : start + step], 1, -1)).astype(np.int32)
        for start in range(0, len(outputs), step)
    ]
    return np.concatenate(parts)
