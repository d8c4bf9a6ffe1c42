"""Gradients of a batch that several processes share, where a wrapper of PyTorch's averages them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgekd.training.distillation.outputs import NetworkOutputs
from edgekd.training.loop import distributed

if TYPE_CHECKING:
    from edgekd.training.distillation.outputs import BatchOutputs


def of_whole_batch(outputs: BatchOutputs) -> BatchOutputs:
    """Return outputs whose gradient is that of the whole batch once it is averaged over the processes.

    Every process computes the loss of the gathered batch, and the gradient that it passes to its own rows is whole, so
    the sum over the processes is the gradient of the batch. ``DistributedDataParallel`` takes the mean: each process
    gives its number of processes times as much. What losses learn is applied to the gathered batch; its gradient is
    whole in every process, and the mean is right as it is.
    """
    if distributed.world_size() == 1:
        return outputs
    student = outputs.student
    return replace(
        outputs,
        student=NetworkOutputs(
            {name: _scale(x) for name, x in student.answers.items()},
            {name: _scale(z) for name, z in student.embeddings.items()},
            {name: _scale(output) for name, output in student.outputs.items()},
        ),
    )


def _scale(x: Tensor) -> Tensor:
    scaled: Tensor = _ScaledGradient.apply(x, distributed.world_size())  # type: ignore[no-untyped-call]
    return scaled


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
