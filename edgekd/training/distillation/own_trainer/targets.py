"""What outputs should be, in a training loop of the user's own: labels as a batch has them, and checks of these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from edgekd.errors import TaskError, nearest
from edgekd.gram.output_kind import OutputKind, OutputName
from edgekd.stages.labels import UNLABELLED
from edgekd.training.distillation.kinds.registry import KIND_LOSSES

if TYPE_CHECKING:
    from edgekd.training.distillation.outputs import BatchOutputs

Kinds = Mapping[str, OutputKind]


def own_kinds(outputs: Mapping[str, OutputName | OutputKind]) -> dict[str, OutputKind]:
    """Return what each output is.

    Raises:
        TaskError: There is none, or it is of a kind that has no loss.
    """
    kinds = {}
    for name, kind in outputs.items():
        if not isinstance(kind, OutputKind) and kind not in get_args(OutputName):
            raise TaskError(f"output '{name}': there is no kind '{kind}'{nearest(str(kind), KIND_LOSSES)}")
        kinds[name] = kind if isinstance(kind, OutputKind) else OutputKind(kind)
        if kinds[name].name not in KIND_LOSSES:
            raise TaskError(
                f"output '{name}' of kind '{kinds[name].name}' has no loss: compute one beside the Distiller"
            )
    if not kinds:
        raise TaskError("the Distiller needs the networks' outputs, but is given none")
    return kinds


def targets_of(
    labels: Tensor | Mapping[str, Tensor] | None, answers: Mapping[str, Tensor], kinds: Kinds
) -> Tensor | dict[str, Tensor]:
    """Return the targets as the losses of outputs read them.

    Args:
        labels: What the batch has; None where nothing is known.
        answers: The student's outputs.
        kinds: What each output is.

    Raises:
        TaskError: An output has no labels, or labels of classes are no whole numbers.
    """
    if labels is None:
        found = {name: _unknown(answers[name], kind) for name, kind in kinds.items()}
    elif isinstance(labels, Mapping):
        absent = next((name for name in kinds if name not in labels), None)
        if absent is not None:
            raise TaskError(f"the batch has no labels of output '{absent}'{nearest(absent, labels)}")
        found = {name: _read(labels[name], answers[name], name, kind) for name, kind in kinds.items()}
    elif len(kinds) > 1:
        raise TaskError(f"the batch's labels must be a dict with those of each output: {', '.join(kinds)}")
    else:
        ((name, kind),) = kinds.items()
        found = {name: _read(labels, answers[name], name, kind)}
    return found if len(found) > 1 else next(iter(found.values()))


def _read(labels: Tensor, answer: Tensor, name: str, kind: OutputKind) -> Tensor:
    axis = kind.class_axis
    if axis is None:
        return labels
    shape = _without(answer, axis)
    if labels.is_floating_point() or (kind.blank is None and tuple(labels.shape) != shape):
        raise TaskError(
            f"the batch's labels of '{name}' are {labels.dtype} of shape {tuple(labels.shape)}, must be class indices "
            f"of shape {shape}, whole numbers; an output of another kind is named in outputs={{'{name}': 'regression'}}"
        )
    return labels.long()


def _unknown(answer: Tensor, kind: OutputKind) -> Tensor:
    """Return the target of an output of which nothing is known."""
    if kind.class_axis is not None:
        return answer.new_full(_without(answer, kind.class_axis), UNLABELLED, dtype=torch.int64)
    if kind.name == "embedding":
        return answer.new_full((len(answer),), UNLABELLED, dtype=torch.int64)
    return torch.full_like(answer, math.nan)


def _without(answer: Tensor, axis: int) -> tuple[int, ...]:
    sizes = list(answer.shape)
    del sizes[axis]
    return tuple(sizes)


def class_labels(targets: Tensor | Mapping[str, Tensor], answers: Mapping[str, Tensor], kinds: Kinds) -> Tensor:
    """Return the class indices [B] of the first output of classes, which some losses read; else UNLABELLED."""
    for name, kind in kinds.items():
        if kind.name == "classes":
            return targets[name] if isinstance(targets, Mapping) else targets
    first = next(iter(answers.values()))
    return first.new_full((len(first),), UNLABELLED, dtype=torch.int64)


def check_targets(outputs: BatchOutputs, kinds: Kinds) -> None:
    """Check that class indices are those of classes.

    Raises:
        TaskError: One is not.
    """
    for name, kind in kinds.items():
        if kind.class_axis is None:
            continue
        targets = outputs.targets[name] if isinstance(outputs.targets, Mapping) else outputs.targets
        count = outputs.student.answers[name].shape[kind.class_axis]
        assert isinstance(targets, Tensor)
        wrong = targets[(targets != UNLABELLED) & ((targets < 0) | (targets >= count))]
        if len(wrong):
            raise TaskError(f"the batch has label {int(wrong[0])}, but the networks give {count} {name}")
