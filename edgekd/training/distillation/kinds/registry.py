"""Which losses each kind of output has, what its targets must be, and how several teachers' outputs make one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from edgekd.errors import TaskError
from edgekd.stages.labels import UNLABELLED
from edgekd.training.distillation.kinds.class_scores import class_distillation, class_loss, class_rows, sequence_loss
from edgekd.training.distillation.kinds.facts import OutputFacts
from edgekd.training.distillation.kinds.label_scores import label_distillation, label_logits, label_loss
from edgekd.training.distillation.kinds.numbers import number_distillation, number_loss
from edgekd.training.distillation.kinds.vectors import contrastive_loss, direction_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from edgekd.gram.output_kind import OutputKind, OutputName


@dataclass(frozen=True)
class KindLoss:
    """The default losses of a kind of output.

    Attributes:
        supervised: The loss of an output and its target, a scalar.
        distilled: The loss of the student's output and the teacher's, a scalar.
    """

    supervised: Callable[[Tensor, Tensor, OutputFacts], Tensor]
    distilled: Callable[[Tensor, Tensor, OutputFacts], Tensor]


#: The losses of each kind; those of "custom" are the task's own.
KIND_LOSSES: dict[OutputName, KindLoss] = {
    "classes": KindLoss(class_loss, class_distillation),
    "dense-classes": KindLoss(class_loss, class_distillation),
    "sequence-classes": KindLoss(sequence_loss, class_distillation),
    "multilabel": KindLoss(label_loss, label_distillation),
    "regression": KindLoss(number_loss, number_distillation),
    "embedding": KindLoss(contrastive_loss, direction_loss),
}


def check_target(what: str, kind: OutputKind, output: tuple[int, ...], target: Tensor) -> None:
    """Check that a target is one that the default loss of an output takes.

    Args:
        what: The target, at the beginning of errors.
        kind: What the output is.
        output: Shape of the output without the batch.
        target: The target of several samples.

    Raises:
        TaskError: It is of a wrong shape or type, or holds classes that the output does not have.
    """
    axis = kind.class_axis
    shape = tuple(target.shape[1:])
    if axis is None:
        wanted = () if kind.name == "embedding" else output
        if [size for size in shape if size != 1] != [size for size in wanted if size != 1]:
            raise TaskError(
                f"{what} is of shape {shape} for a sample, but the output is of {output}: {kind.name} needs {wanted}"
            )
        if kind.name == "multilabel" and bool((target > 1).any()):
            raise TaskError(
                f"{what} holds {float(target.max()):g}; a label holds (1) or not (0), or is not known (-100)"
            )
        return
    if target.is_floating_point():
        raise TaskError(
            f"{what} is {target.dtype}, must be classes in whole numbers, as int64, of one-hot rows their argmax; "
            "where it is numbers, or labels any of which may hold, give the task `outputs` that say kind "
            "'regression' or 'multilabel'"
        )
    place = axis - 1 if axis > 0 else len(output) + axis
    wanted = tuple(size for index, size in enumerate(output) if index != place)
    if kind.blank is None and shape != wanted:
        raise TaskError(
            f"{what} is of shape {shape} for a sample, but the output is of {output}: {kind.name} needs {wanted}"
        )
    if kind.blank is not None and (len(shape) != 1 or shape[0] > output[0]):
        raise TaskError(
            f"{what} is of shape {shape} for a sample, must be at most {output[0]} tokens, as many as steps"
        )
    wrong = target[((target < 0) & (target != UNLABELLED)) | (target >= output[place])]
    if len(wrong):
        raise TaskError(
            f"{what} has the label {int(wrong[0])}, but the networks give {output[place]} classes: labels go from 0 to "
            f"{output[place] - 1}, or {UNLABELLED} for none"
        )


def joined_outputs(outputs: Sequence[Tensor], kind: OutputKind) -> Tensor:
    """Return what several networks give together: of scores the mean probability, else the mean.

    Scores that are logits become the logarithm of the mean probability, or its logit. Of embeddings the mean is of unit
    vectors, where all are of one width.

    Raises:
        TaskError: Embeddings differ in width.
    """
    if len(outputs) == 1:
        return outputs[0]
    if kind.class_axis is not None and not kind.probabilities:
        logs = torch.stack([x.log_softmax(kind.class_axis) for x in outputs])
        return logs.logsumexp(0) - math.log(len(outputs))
    if kind.name == "multilabel" and not kind.probabilities:
        return torch.logit(
            torch.stack([label_logits(x, OutputFacts(kind)).sigmoid() for x in outputs]).mean(0), eps=1e-7
        )
    if kind.name == "embedding":
        if len({x.shape[1:] for x in outputs}) > 1:
            raise TaskError("the teachers' embeddings differ in width, and have no mean")
        return torch.stack([functional.normalize(x, dim=1) for x in outputs]).mean(0)
    return torch.stack(list(outputs)).mean(0)


__all__ = ["KIND_LOSSES", "KindLoss", "check_target", "class_rows", "joined_outputs"]
