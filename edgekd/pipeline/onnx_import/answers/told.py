"""What an output is, told by what it ends in, by its name, by labels, or by its values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.gram.measures.guess import guess_kind
from edgekd.gram.measures.rows import as_rows, lengths
from edgekd.gram.output_kind import CLASS_AXES, OutputKind
from edgekd.pipeline.onnx_import.answers.last_operator import NORMALIZE, TOKENS

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputName
    from edgekd.pipeline.onnx_import.answers.last_operator import LastOperator

#: What in the values of an output makes it be taken for a kind.
_LOOKS: dict[OutputName, str] = {
    "classes": "its rows are probabilities that sum to 1",
    "multilabel": "all of it lies between 0 and 1",
    "regression": "it is neither probabilities nor of unit length",
    "dense-classes": "at every position it is probabilities that sum to 1",
    "sequence-classes": "at every step it is probabilities that sum to 1",
    "embedding": "its rows have unit length",
    "custom": "nothing tells what it is",
}

#: Words in an output's name that say what it is.
_BOXES = frozenset({
    "box", "boxes", "bbox", "bboxes", "loc", "locs", "landmark", "landmarks", "landms", "lmk", "kps", "kpt", "kpts",
    "keypoint", "keypoints", "offset", "offsets", "reg", "anchor", "anchors", "coordinates", "coords", "heatmap",
    "heatmaps", "hm", "wh",
})  # fmt: skip
_VECTORS = frozenset({
    "emb", "embed", "embeds", "embedding", "embeddings", "feature", "features", "descriptor", "descriptors", "pooler",
    "representation", "dvector", "xvector",
})  # fmt: skip
_MASKS = frozenset({"mask", "masks", "seg", "segmentation", "matte", "alpha", "saliency"})
_LOGITS = frozenset({"logit", "logits"})

#: Operators whose values lie where they may: that these are between 0 and 1 on some samples does not make them labels.
_UNBOUNDED = frozenset({"Gemm", "MatMul", "Conv", "ConvTranspose", "Relu", "LeakyRelu", "PRelu", "Elu", "Softplus"})

#: Operators that have their classes at the second axis of what they compute.
_CHANNELS_FIRST = frozenset({"Conv", "ConvTranspose", "Resize", "Upsample"})

#: Vectors of fewer numbers are rarely embeddings, whatever they come from.
_FEWEST_NUMBERS = 16

#: How far from 1 the sum of a Softmax, and the length of a vector that was divided by it, may be in float16 or INT8.
_UNIT = 0.02

_MATRIX, _SEQUENCE = 2, 3


@dataclass(frozen=True)
class Told:
    """What an output is taken for.

    Attributes:
        kind: The kind.
        reason: Why, as the rest of a sentence.
        clear: Whether more than the values tells it.
    """

    kind: OutputKind
    reason: str
    clear: bool = True


def tell_kind(name: str, outputs: Array, last: LastOperator | None) -> Told:
    """Tell what an output is, as far as it is without labels.

    Args:
        name: Its name.
        outputs: The output for some samples [N, ...].
        last: What it ends in; None where that is not known.
    """
    words = _words(name)
    if found := words & _BOXES:
        return Told(OutputKind("custom"), f"its name says '{sorted(found)[0]}'")
    told = _by_operator(words, outputs, last) if last is not None else None
    return told or _by_name(words, outputs, last) or _by_values(outputs, last)


def labels_fit(outputs: Array, labels: Array) -> bool:
    """Whether class indices [N], negative for none, may be labels of scores [N, C].

    They are not where the scores are of far more than the classes that occur and their top-1 class is right no more
    often than the most frequent class is: of an embedding the largest number says nothing.
    """
    known = labels >= 0
    if not known.any():
        return True
    found, counts = np.unique(labels[known], return_counts=True)
    many = outputs.shape[1] >= _FEWEST_NUMBERS and outputs.shape[1] > 4 * (int(found.max()) + 1)
    right = float((outputs[known].argmax(1) == labels[known]).mean())
    return not many or right > float(counts.max() / counts.sum())


def _words(name: str) -> frozenset[str]:
    """Return the words of the last part of a name: those of ``head/pred_boxes:0`` and ``predBoxes`` are the same."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.rpartition("/")[2])
    return frozenset(re.findall(r"[a-z]+", spaced.lower()))


def _by_operator(words: Collection[str], outputs: Array, last: LastOperator) -> Told | None:
    match last.name:
        case "Softmax" | "LogSoftmax" if last.whole:
            return _distribution(outputs, last.name)
        case "Softmax" | "Sigmoid":
            return _labels(words, outputs, last)
        case "ArgMax" | "ArgMin" | "TopK" | "NonMaxSuppression" | "NonZero":
            return Told(OutputKind("custom"), f"it ends in {last.name}, and numbers of classes or places have no size")
    return _vector(outputs, last.name) if outputs.ndim == _MATRIX and last.whole else None


def _vector(outputs: Array, operator: str) -> Told | None:
    count = outputs.shape[1]
    if operator == NORMALIZE and np.allclose(lengths(as_rows(outputs)), 1, atol=_UNIT):
        return Told(OutputKind("embedding"), f"it ends in a division of {count} numbers by their length")
    if operator == TOKENS and count >= _FEWEST_NUMBERS:
        return Told(OutputKind("embedding"), f"it ends in {count} numbers that stand for a whole sequence")
    return None


def _distribution(outputs: Array, operator: str) -> Told:
    """Return which kind of classes a Softmax or its logarithm is."""
    probabilities = outputs if operator == "Softmax" else np.exp(outputs.astype(np.float64))
    for kind in _kinds_of_classes(outputs.ndim):
        count = outputs.shape[CLASS_AXES[kind]]
        sums = probabilities.sum(CLASS_AXES[kind], dtype=np.float64)
        if count > 1 and np.allclose(sums, 1, atol=_UNIT):
            at = {"dense-classes": " at every position", "sequence-classes": " at every step"}.get(kind, "")
            return Told(OutputKind(kind, operator == "Softmax"), f"it ends in {operator} over {count}{at}")
    return Told(OutputKind("custom"), f"it ends in {operator}, and its classes are at no axis that a kind has them at")


def _kinds_of_classes(dimensions: int) -> tuple[OutputName, ...]:
    if dimensions == _MATRIX:
        return ("classes",)
    return ("sequence-classes", "dense-classes") if dimensions == _SEQUENCE else ("dense-classes",)


def _labels(words: Collection[str], outputs: Array, last: LastOperator) -> Told:
    """Return what probabilities are that need not sum to 1."""
    operator = last.name if last.whole else f"a part of a {last.name}"
    if outputs.ndim <= _MATRIX:
        count = outputs.shape[1] if outputs.ndim == _MATRIX else 1
        return Told(OutputKind("multilabel", True, 0.5), f"it ends in {operator} of {count} label{'s'[: count > 1]}")
    if not _MASKS.isdisjoint(words):
        return Told(OutputKind("multilabel", True, 0.5), f"it ends in {operator}, and its name says a mask")
    reason = f"it ends in {operator} at every position, which may be a heatmap's or a mask's ('multilabel')"
    return Told(OutputKind("custom"), reason)


def _by_name(words: Collection[str], outputs: Array, last: LastOperator | None) -> Told | None:
    wide = outputs.ndim == _MATRIX and outputs.shape[1] > 1
    vectors = sorted(_VECTORS.intersection(words))
    if wide and vectors and outputs.any():
        return Told(OutputKind("embedding"), f"its name says '{vectors[0]}'")
    if _LOGITS.isdisjoint(words) or not _MASKS.isdisjoint(words):
        return None
    kind: OutputName | None = "classes" if wide else None
    if outputs.ndim > _MATRIX and last is not None:
        first = last.name in _CHANNELS_FIRST
        kind = "dense-classes" if first else "sequence-classes" if outputs.ndim == _SEQUENCE else None
    if kind is None or outputs.shape[CLASS_AXES[kind]] < 2:
        return None
    return Told(OutputKind(kind), "its name says 'logits'")


def _by_values(outputs: Array, last: LastOperator | None) -> Told:
    kind = guess_kind(outputs, labelled=False)
    if kind.name == "multilabel" and last is not None and last.name in _UNBOUNDED:
        return Told(OutputKind("regression"), f"it ends in {last.name}, which is not bounded", clear=False)
    if kind.name == "regression" and outputs.ndim != _MATRIX:
        return Told(kind, "it is no vector", clear=False)
    return Told(kind, _LOOKS[kind.name], clear=False)
