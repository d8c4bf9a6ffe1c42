"""What the outputs of an imported model are: as its user says, or as their values look."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.config.recipe import OutputConfig
from edgekd.errors import ModelError
from edgekd.gram.measures.guess import are_probabilities, guess_kind
from edgekd.gram.output_kind import CLASS_AXES, OutputKind

if TYPE_CHECKING:
    from collections.abc import Mapping

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

#: What the only output is called in messages.
_ALONE = "the output"

_MATRIX = 2

_ANY_SHAPE = "'regression', 'multilabel' and 'custom' take any shape"


def settle_kinds(
    asked: Mapping[str, OutputConfig], outputs: Mapping[str, Array], *, labelled: bool
) -> tuple[dict[str, OutputKind], list[str]]:
    """Return what each output is.

    Args:
        asked: What the user said of outputs; of those that are absent the kind is guessed.
        outputs: The float network's outputs for some samples [N, ...].
        labelled: Whether samples have class indices as labels. They are of one output: that of classes which the user
            names, or the first that looks like it.

    Returns:
        The kinds, and sentences for the user on what was guessed and how to change it.

    Raises:
        ModelError: An output cannot be of the kind, or what else was said is none of it.
    """
    said = {name: asked.get(name, OutputConfig()) for name in outputs}
    named = any(config.kind == "classes" for config in said.values())
    fits = (name for name, x in outputs.items() if said[name].kind == "auto" and x.ndim == _MATRIX and x.shape[1] > 1)
    scored = next(fits, None) if labelled and not named else None
    kinds, notes = {}, []
    for name, x in outputs.items():
        where = f"output '{name}'" if len(outputs) > 1 else _ALONE
        kinds[name], note = _settle(where, said[name], x, labelled=name == scored)
        notes += [note] if note else []
    return kinds, notes


def _settle(where: str, config: OutputConfig, outputs: Array, *, labelled: bool) -> tuple[OutputKind, str]:
    guessed = config.kind == "auto"
    if config.kind == "auto":
        kind = guess_kind(outputs, labelled)
        _require_shape(where, kind.name, outputs)
    else:
        _require_shape(where, config.kind, outputs)
        kind = OutputKind(config.kind, are_probabilities(outputs, config.kind))
    how = ", for which it was taken" if guessed else ""
    if config.threshold is not None:
        _require_threshold(where, kind.name, config.threshold, how)
        kind = replace(kind, threshold=config.threshold)
    if config.blank is not None:
        if kind.name != "sequence-classes" or config.blank >= outputs.shape[-1]:
            raise ModelError(f"{where}: blank = {config.blank} is no class of '{kind.name}' {_shape(outputs)}{how}")
        kind = replace(kind, blank=config.blank)
    if config.index != kind.index:
        if kind.name != "embedding":
            raise ModelError(f"{where}: index = '{config.index}' is for 'embedding', not for '{kind.name}'{how}")
        kind = replace(kind, index=config.index)
    return kind, _explain(where, kind, outputs, labelled) if guessed else ""


def _require_shape(where: str, name: OutputName, outputs: Array) -> None:
    if name in ("classes", "embedding") and (outputs.ndim != 2 or outputs.shape[1] < 2):
        needed = "[batch, classes], of two classes or more" if name == "classes" else "[batch, width], of two or more"
        raise ModelError(f"{where}: kind '{name}' needs an output {needed}, but it is {_shape(outputs)}; {_ANY_SHAPE}")
    if name in _MAPS and (outputs.ndim < 3 or outputs.shape[CLASS_AXES[name]] < 2 or not outputs[:1].size):
        raise ModelError(
            f"{where}: kind '{name}' needs an output {_MAPS[name]}, of two classes or more, but it is "
            f"{_shape(outputs)}; {_ANY_SHAPE}"
        )
    if name == "sequence-classes" and outputs.ndim != 3:
        raise ModelError(
            f"{where}: kind '{name}' needs an output {_MAPS[name]}, but it is {_shape(outputs)}; 'dense-classes' have "
            "any number of dimensions, and their classes come first"
        )
    if name == "embedding" and not outputs.any():
        raise ModelError(f"{where}: kind 'embedding' needs directions, but it is zero for every sample")


def _require_threshold(where: str, name: OutputName, threshold: float, how: str) -> None:
    said = f"{where}: threshold = {threshold:g}"
    if name in CLASS_AXES or name == "embedding":
        raise ModelError(f"{said} is for 'multilabel', 'regression' and 'custom', not for '{name}'{how}")
    if name == "multilabel" and not 0 < threshold < 1:
        raise ModelError(f"{said} must lie between 0 and 1: that of '{name}'{how} is of a probability")
    if not math.isfinite(threshold):
        raise ModelError(f"{said} must be a finite number")


def _explain(where: str, kind: OutputKind, outputs: Array, labelled: bool) -> str:
    reason = "the samples have labels" if kind.name == "classes" and labelled else _LOOKS[kind.name]
    if kind.name == "regression" and outputs.ndim != 2:
        reason = "it is no vector"
    alone = where == _ALONE
    option, key = ("--kind", "kind") if alone else ("--output NAME=KIND", "outputs")
    said = f"{where} {_shape(outputs)} is taken for '{kind.name}', since {reason}"
    if kind.name == "regression" and outputs.ndim == 2 and outputs.shape[1] > 1:
        said += f"; if it is the logits of classes, say {option} classes"
    else:
        others = ", ".join(f"'{name}'" for name in _LOOKS if name != kind.name)
        said += f"; {option} says otherwise: {others}"
    return f"{said}, or {key} in [model]"


def _shape(outputs: Array) -> str:
    return f"[{', '.join(map(str, ('batch', *outputs.shape[1:])))}]"
