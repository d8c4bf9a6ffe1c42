import math

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.training.distillation.losses.features import LOSSES, channel_projection, fd_loss, fitnet_loss, ickd_loss

BATCH, CHANNELS, PLACES = 4, 3, 6


def features(seed, *shape):
    return np.random.default_rng(seed).normal(0.3, 1, shape)


def test_fitnet_by_hand():
    ours, theirs = features(0, BATCH, 5), features(1, BATCH, 5)
    expected = sum((a - b) ** 2 for a, b in zip(ours.flat, theirs.flat, strict=True)) / (BATCH * 5)
    assert fitnet_loss(torch.tensor(ours), torch.tensor(theirs)).item() == pytest.approx(expected)


def test_fd_by_hand():
    ours, theirs = features(0, BATCH, 5), features(1, BATCH, 5)
    total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        cosine = (a @ b) / math.sqrt((a @ a) * (b @ b))
        total += 2 - 2 * cosine  # |u - v|^2 of unit vectors
    assert fd_loss(torch.tensor(ours), torch.tensor(theirs)).item() == pytest.approx(total / (BATCH * 5))


def test_ickd_by_hand():
    ours, theirs = features(0, BATCH, CHANNELS, PLACES), features(1, BATCH, CHANNELS, 9)
    total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        for c in range(CHANNELS):
            sides = []
            for side in (a, b):
                row = np.array([side[c] @ side[d] for d in range(CHANNELS)])
                sides.append(row / math.sqrt(row @ row))
            total += ((sides[0] - sides[1]) ** 2).sum()
    found = ickd_loss(torch.tensor(ours), torch.tensor(theirs)).item()
    assert found == pytest.approx(total / (BATCH * CHANNELS))


def test_the_projection_of_channels_is_a_convolution_of_size_one_and_batch_norm():
    torch.manual_seed(0)
    projection = channel_projection(CHANNELS, 5).double()
    maps = torch.tensor(features(0, BATCH, CHANNELS, PLACES))
    weight, bias = projection[0].weight[:, :, 0], projection[0].bias
    mixed = torch.stack([torch.stack([weight @ maps[b, :, n] + bias for n in range(PLACES)], 1) for b in range(BATCH)])
    mean, variance = mixed.mean((0, 2), keepdim=True), mixed.var((0, 2), unbiased=False, keepdim=True)
    expected = (mixed - mean) / torch.sqrt(variance + projection[1].eps)
    assert torch.allclose(projection(maps), expected)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_a_projection_goes_from_any_width_to_any(loss):
    shape = (PLACES,) if loss.kind == "maps" else ()
    ours, theirs = torch.randn(BATCH, 3, *shape), torch.randn(BATCH, 7, *shape)
    projection: nn.Module = loss.projection(3, 7)
    loss.function(projection(ours), theirs).backward()
    assert projection(ours).shape == theirs.shape
    assert all(parameter.grad is not None for parameter in projection.parameters())
