"""Answers that are the same for every sample: what a network has to be better than to have learned anything."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.gram.measures.rows import Rows
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputKind

#: The most classes whose constant answer is tried, the most frequent first; of maps and sequences, whose metrics cost
#: more; and the most sets of labels.
_CLASSES, _CLASSES_OF_MAPS, _SETS = 50, 4, 50

#: The logit of a label that surely holds; the negative of it, of one that surely does not.
_SURE = 16.0

#: The most labels that are named.
_NAMED = 6


def constant_answers(kind: OutputKind, targets: Array, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    """Yield answers that are the same for every sample, the likeliest first: in words, and as an output [...].

    Of classes they are the most frequent ones, at every position or step where there are several, and that of each; of
    a regression the mean and the median; of labels the most frequent ones. There is none of an embedding, nor of what
    only a task can read.

    Args:
        kind: What the output is.
        targets: What it should be [N, ...]; a class below 0, and NaN, is none. Of texts there is no such answer.
        shape: The output's shape [N, ...].
    """
    if targets.dtype.kind not in "biuf":
        return
    if kind.class_axis is not None:
        if (len(shape) == 2) == (kind.name == "classes") and shape[kind.class_axis] > 1:
            yield from _classes(kind, targets, shape[1:])
    elif kind.name in ("regression", "multilabel") and prod(shape[1:]) == prod(targets.shape[1:]):
        known = _known(targets, kind).reshape(len(targets), -1)
        if np.isfinite(known).any(0).all():
            yield from (_numbers if kind.name == "regression" else _labels)(kind, known, shape[1:])


def are_alike(kind: OutputKind, targets: Array) -> bool:
    """Whether all targets [N, ...] say the same, as far as they are known: then a constant answer is right."""
    known = _known(targets, kind)
    if kind.class_axis is not None:
        return len(np.unique(known[np.isfinite(known)])) < 2
    known = known.reshape(len(known), -1)
    return not (np.fmax.reduce(known, 0) > np.fmin.reduce(known, 0)).any()


def _classes(kind: OutputKind, targets: Array, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    everywhere = kind.name != "classes"
    axis = -1 if kind.name == "sequence-classes" else 0
    found, counts = np.unique(targets[(targets >= 0) & (targets < shape[axis])], return_counts=True)
    likely = found[np.argsort(-counts, kind="stable")][:_CLASSES]
    tried = likely[: _CLASSES_OF_MAPS if everywhere else _CLASSES].tolist()
    if kind.blank is not None and tried:
        tried.append(kind.blank)
    for label in tried:
        output = np.zeros(shape, np.float32)
        np.moveaxis(output, axis, 0)[label] = 1
        yield f"class {label}" + (" everywhere" if everywhere else ""), output
    positions = tuple(np.delete(shape, axis))
    if everywhere and kind.blank is None and prod(positions) == prod(targets.shape[1:]) and len(likely) > 1:
        often = np.stack([(targets == label).sum(0).reshape(positions) for label in likely])
        output = (np.arange(shape[axis]) == likely[often.argmax(0)][..., None]).astype(np.float32)
        yield "the most frequent class of each position", np.moveaxis(output, -1, axis)


def _numbers(_kind: OutputKind, known: Rows, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    for name, values in (("the mean", np.nanmean(known, 0)), ("the median", np.nanmedian(known, 0))):
        output = values.astype(np.float32).reshape(shape)
        yield f"{output.item():.4g}" if output.size == 1 else name, output


def _labels(kind: OutputKind, known: Rows, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    frequencies = np.nanmean(known, 0)
    low, high = (0.0, 1.0) if kind.probabilities else (-_SURE, _SURE)
    for threshold in [*np.unique(frequencies[frequencies > 0])[::-1][: _SETS - 1], np.inf]:
        holds = frequencies >= threshold
        yield _said(np.flatnonzero(holds).tolist()), np.where(holds, high, low).astype(np.float32).reshape(shape)


def _said(labels: list[int]) -> str:
    if len(labels) > _NAMED:
        return f"the {len(labels)} most frequent labels"
    return f"label{'s'[: len(labels) > 1]} {', '.join(map(str, labels))}" if labels else "no label"


def _known(targets: Array, kind: OutputKind) -> Rows:
    """Return targets with NaN for what is not labelled."""
    known: Rows = targets.astype(np.float64)
    return known if kind.name == "regression" else np.where(known < 0, np.nan, known)
