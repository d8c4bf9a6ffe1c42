"""Losses that bring the student's features onto the teacher's, through a projection that is learned with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable


def fitnet_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return FitNets' hint loss (arXiv 1412.6550): the mean squared error of projected features [B, D]."""
    return functional.mse_loss(projected, teacher)


def fd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return CLIP-KD's feature distillation (arXiv 2307.12732): the mean squared error of features of unit length."""
    return functional.mse_loss(functional.normalize(projected, dim=1), functional.normalize(teacher, dim=1))


def ickd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return ICKD-C (ICCV 2021): the squared difference of the channels' correlations [C, C] of maps [B, C, N].

    The correlations are inner products of channels, each row scaled to unit length; the sum over C x C, divided by B C.
    """
    ours, theirs = (functional.normalize(side @ side.mT, dim=2) for side in (projected, teacher))
    return (ours - theirs).square().sum() / (ours.shape[0] * ours.shape[1])


class ChannelProjection(nn.Sequential):
    """Maps [B, C, N] -> [B, C', N]: a convolution of size 1 and BatchNorm, as ICKD has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs))


#: For each loss of features: the loss, and its projection of width to width.
FEATURES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], type[nn.Module]]] = {
    "fitnet": (fitnet_loss, nn.Linear),
    "fd": (fd_loss, nn.Linear),
    "ickd": (ickd_loss, ChannelProjection),
}
