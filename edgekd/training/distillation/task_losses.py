"""The losses of a task's outputs, with what they need to know of the training targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekd.training.distillation.answer_losses import AnswerLosses, output_target
from edgekd.training.loop.evaluate import batches
from edgekd.training.task.protocol import ArraySplit
from edgekd.training.task.targets import join_nests

if TYPE_CHECKING:
    from torch import Tensor

    from edgekd.training.task.loading import LoadedTask


#: What varies by less than this share of its own square is constant: a float32 cannot tell its values apart.
_CONSTANT = 1e-14


def losses_of(task: LoadedTask) -> AnswerLosses:
    """Return the losses of a task; where an output is of numbers, the training targets are read.

    Raises:
        TaskError: An output has no target.
    """
    names = [name for name, kind in task.outputs.items() if kind.name == "regression"]
    variances = _variances(task, names) if names and not hasattr(task.task, "loss") else {}
    return AnswerLosses(task.outputs, task.weights, variances, task)


def _variances(task: LoadedTask, names: list[str]) -> dict[str, Tensor]:
    """Return the variance over the training targets of each element of outputs of numbers.

    Elements may be of units that are far apart, so each has its own. Of one that is constant it would be nothing, by
    which an error would be without bounds: it is that of errors as large as the element, or 1 where that is 0.
    """
    split = task.splits["train"]
    if isinstance(split, ArraySplit) and split.targets is not None:
        targets = split.targets
    else:
        targets = join_nests(torch.cat, [batch.targets for batch in batches(split)])
    variances = {}
    for name in names:
        values = output_target(name, targets, len(task.outputs)).double()
        known = ~values.isnan()
        count = known.sum(0).clamp_min(1)
        mean = values.nan_to_num(0).sum(0) / count
        square = torch.where(known, values - mean, 0).square().sum(0) / count
        power = mean.square()
        square = torch.where(square > _CONSTANT * power, square, torch.where(power > 0, power, 1.0))
        variances[name] = square.float()
    return variances
