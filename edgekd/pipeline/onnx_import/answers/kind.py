"""What the outputs of an imported model are: as its user says, or as it is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from edgekd.config.recipe import OutputConfig
from edgekd.errors import ModelError
from edgekd.gram.measures.guess import are_probabilities
from edgekd.gram.output_kind import CLASS_AXES, OutputKind, OutputName
from edgekd.pipeline.onnx_import.answers.told import Told, labels_fit, tell_kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.pipeline.onnx_import.answers.last_operator import LastOperator
    from edgekd.runtime.session import Array

#: The layouts of the kinds that have a class at every position.
_MAPS: dict[OutputName, str] = {
    "dense-classes": "[batch, classes, ...]",
    "sequence-classes": "[batch, steps, classes]",
}

#: What the only output is called in messages.
_ALONE = "the output"

_MATRIX = 2

_ANY_SHAPE = "'regression', 'multilabel' and 'custom' take any shape"


@dataclass(frozen=True)
class SettledKinds:
    """What each output is.

    Attributes:
        kinds: The kinds, by the outputs' names.
        reasons: Why each was taken for its kind, as a phrase.
        notes: Sentences for the user on what was not said by the user, and how to change it.
    """

    kinds: dict[str, OutputKind]
    reasons: dict[str, str]
    notes: list[str]


def settle_kinds(
    asked: Mapping[str, OutputConfig],
    outputs: Mapping[str, Array],
    last: Mapping[str, LastOperator],
    labels: Array | None,
) -> SettledKinds:
    """Settle what each output is: as the user says, or as it is told.

    Args:
        asked: What the user said of outputs.
        outputs: The float network's outputs for some samples [N, ...].
        last: What each of them ends in, as far as that is known.
        labels: Class indices of the samples [N], negative for none; None where there are no labels. They are of one
            output: that of classes which the user names, or the first that ends in classes, or may be of them.

    Raises:
        ModelError: An output cannot be of the kind, or what else was said is none of it.
    """
    said = {name: asked.get(name, OutputConfig()) for name in outputs}
    told = {name: tell_kind(name, x, last.get(name)) for name, x in outputs.items() if said[name].kind == "auto"}
    if labels is not None and not any(config.kind == "classes" for config in said.values()):
        told |= _by_labels(told, outputs, labels)
    kinds, reasons, notes = {}, {}, []
    for name, x in outputs.items():
        where = f"output '{name}'" if len(outputs) > 1 else _ALONE
        kinds[name] = _settle(where, said[name], x, told.get(name))
        reasons[name] = told[name].reason.removeprefix("it ") if name in told else "as you say"
        if name in told:
            notes.append(_explain(where, kinds[name], x, told[name]))
    return SettledKinds(kinds, reasons, notes)


def _by_labels(told: Mapping[str, Told], outputs: Mapping[str, Array], labels: Array) -> dict[str, Told]:
    """Return the output that the labels are of, as classes; nothing where there is none."""
    vectors = [name for name in told if outputs[name].ndim == _MATRIX and outputs[name].shape[1] > 1]
    fitting = [name for name in vectors if not (told[name].clear and told[name].kind.name in ("embedding", "custom"))]
    fitting = [name for name in fitting if told[name].kind.name == "classes" or labels_fit(outputs[name], labels)]
    fitting.sort(key=lambda name: told[name].kind.name != "classes")
    return {name: Told(_classes(outputs[name]), "the samples have labels") for name in fitting[:1]}


def _classes(outputs: Array) -> OutputKind:
    return OutputKind("classes", are_probabilities(outputs, "classes"))


def _settle(where: str, config: OutputConfig, outputs: Array, told: Told | None) -> OutputKind:
    if config.kind == "auto":
        assert told is not None  # of what the user does not say it is told
        kind = told.kind
        _require_shape(where, kind.name, outputs)
    else:
        _require_shape(where, config.kind, outputs)
        kind = OutputKind(config.kind, are_probabilities(outputs, config.kind))
    how = "" if told is None else ", for which it was taken"
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
    return kind


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


def _explain(where: str, kind: OutputKind, outputs: Array, told: Told) -> str:
    alone = where == _ALONE
    option, key = ("--kind", "kind") if alone else ("--output NAME=KIND", "outputs")
    said = f"{where} {_shape(outputs)} is taken for '{kind.name}', since {told.reason}"
    if kind.name == "regression" and outputs.ndim == 2 and outputs.shape[1] > 1:
        said += f"; if it is the logits of classes, say {option} classes"
    else:
        others = ", ".join(f"'{name}'" for name in get_args(OutputName) if name != kind.name)
        said += f"; {option} says otherwise: {others}"
    return f"{said}, or {key} in [model]"


def _shape(outputs: Array) -> str:
    return f"[{', '.join(map(str, ('batch', *outputs.shape[1:])))}]"
