"""What the output of an imported model is: as its user says, or as its values look."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.errors import ModelError
from edgekd.gram.answers import are_probabilities, guess_kind
from edgekd.gram.output_kind import CLASS_AXES, OutputKind

if TYPE_CHECKING:
    from edgekd.gram.output_kind import OutputName
    from edgekd.runtime.session import Array

#: What in an output makes it be taken for a kind.
_LOOKS: dict[OutputName, str] = {
    "classes": "its rows are probabilities that sum to 1",
    "multilabel": "all of it lies between 0 and 1",
    "regression": "it is neither probabilities nor of unit length",
    "dense-classes": "at every position it is probabilities that sum to 1",
    "sequence-classes": "at every step it is probabilities that sum to 1",
    "embedding": "its rows have unit length",
    "custom": "nothing tells what it is",
}

#: The layouts of the kinds that have a class at every position.
_MAPS: dict[OutputName, str] = {
    "dense-classes": "[batch, classes, ...]",
    "sequence-classes": "[batch, steps, classes]",
}

_ANY_SHAPE = "'regression', 'multilabel' and 'custom' take any shape"


def settle_kind(
    asked: OutputName | None, threshold: float | None, outputs: Array, labelled: bool
) -> tuple[OutputKind, str]:
    """Return what an output is.

    Args:
        asked: The kind that the user named; None to guess it.
        threshold: Where a label or a number is decided, if the user said.
        outputs: The float network's output for some samples [N, ...].
        labelled: Whether samples have class indices as labels.

    Returns:
        The kind, and a sentence for the user on what was guessed and how to change it; "" where nothing was.

    Raises:
        ModelError: The output cannot be of that kind, or the threshold is none of it.
    """
    if asked is None:
        kind = guess_kind(outputs, labelled)
        _require_shape(kind.name, outputs)
    else:
        _require_shape(asked, outputs)
        kind = OutputKind(asked, are_probabilities(outputs, asked))
    if threshold is not None:
        _require_threshold(kind.name, threshold, "" if asked else ", for which the output was taken")
        kind = replace(kind, threshold=threshold)
    return kind, "" if asked else _explain(kind, outputs, labelled)


def _require_shape(name: OutputName, outputs: Array) -> None:
    if name in ("classes", "embedding") and (outputs.ndim != 2 or outputs.shape[1] < 2):
        needed = "[batch, classes], of two classes or more" if name == "classes" else "[batch, width], of two or more"
        raise ModelError(f"[model] kind = '{name}' needs an output {needed}, but it is {_shape(outputs)}; {_ANY_SHAPE}")
    if name in _MAPS and (outputs.ndim < 3 or outputs.shape[CLASS_AXES[name]] < 2 or not outputs[:1].size):
        raise ModelError(
            f"[model] kind = '{name}' needs an output {_MAPS[name]}, of two classes or more, but it is "
            f"{_shape(outputs)}; {_ANY_SHAPE}"
        )
    if name == "sequence-classes" and outputs.ndim != 3:
        raise ModelError(
            f"[model] kind = '{name}' needs an output {_MAPS[name]}, but it is {_shape(outputs)}; 'dense-classes' have "
            "any number of dimensions, and their classes come first"
        )
    if name == "embedding" and not outputs.any():
        raise ModelError("[model] kind = 'embedding' needs directions, but the output is zero for every sample")


def _require_threshold(name: OutputName, threshold: float, how: str) -> None:
    said = f"[model] threshold = {threshold:g}"
    if name in CLASS_AXES or name == "embedding":
        raise ModelError(f"{said} is for 'multilabel', 'regression' and 'custom', not for '{name}'{how}")
    if name == "multilabel" and not 0 < threshold < 1:
        raise ModelError(f"{said} must lie between 0 and 1: that of '{name}'{how} is of a probability")
    if not math.isfinite(threshold):
        raise ModelError(f"{said} must be a finite number")


def _explain(kind: OutputKind, outputs: Array, labelled: bool) -> str:
    reason = "the samples have labels" if kind.name == "classes" and labelled else _LOOKS[kind.name]
    if kind.name == "regression" and outputs.ndim != 2:
        reason = "it is no vector"
    said = f"the output {_shape(outputs)} is taken for '{kind.name}', since {reason}"
    if kind.name == "regression" and outputs.ndim == 2 and outputs.shape[1] > 1:
        said += "; if it is the logits of classes, say --kind classes"
    else:
        others = ", ".join(f"'{name}'" for name in _LOOKS if name != kind.name)
        said += f"; --kind says otherwise: {others}"
    return f"{said}, or kind in [model]"


def _shape(outputs: Array) -> str:
    return f"[{', '.join(map(str, ('batch', *outputs.shape[1:])))}]"
