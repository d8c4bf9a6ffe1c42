"""Losses that compare the student's features with the teacher's, through a projection that is learned with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.training.distillation.loss import Loss

if TYPE_CHECKING:
    from torch import Tensor, nn


def fitnet_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return FitNets' hint loss (arXiv 1412.6550): the mean squared error of projected features [B, D]."""
    from torch.nn import functional

    return functional.mse_loss(projected, teacher)


def fd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return CLIP-KD's feature distillation (arXiv 2307.12732): the mean squared error of features of unit length."""
    from torch.nn import functional

    return functional.mse_loss(functional.normalize(projected, dim=1), functional.normalize(teacher, dim=1))


def ickd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return ICKD-C (ICCV 2021): the squared difference of the channels' correlations [C, C] of maps [B, C, N].

    The correlations are inner products of channels, each row scaled to unit length; the sum over C x C, divided by B C.
    """
    from torch.nn import functional

    ours, theirs = (functional.normalize(side @ side.mT, dim=2) for side in (projected, teacher))
    return (ours - theirs).square().sum() / (ours.shape[0] * ours.shape[1])


def linear_projection(inputs: int, outputs: int) -> nn.Module:
    """Return a linear layer [B, inputs] -> [B, outputs]."""
    from torch import nn

    return nn.Linear(inputs, outputs)


def channel_projection(inputs: int, outputs: int) -> nn.Module:
    """Return a convolution of size 1 with BatchNorm, as ICKD has it: [B, inputs, N] -> [B, outputs, N]."""
    from torch import nn

    return nn.Sequential(nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs))


LOSSES = (
    Loss(
        name="fd",
        kind="embeddings",
        function=fd_loss,
        summary="squared error of embeddings at unit length",
        projection=linear_projection,
    ),
    Loss(
        name="fitnet",
        kind="embeddings",
        function=fitnet_loss,
        summary="squared error of embeddings as they are",
        projection=linear_projection,
    ),
    Loss(
        name="ickd",
        kind="maps",
        function=ickd_loss,
        summary="correlations of the channels of feature maps",
        projection=channel_projection,
    ),
)
