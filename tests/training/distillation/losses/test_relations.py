import math

import numpy as np
import pytest
import torch

from edgekd.training.distillation.losses.relations import affinity_loss, pkt_loss, rkd_loss, sp_loss

BATCH = 5


def rows(seed, width=4):
    return np.random.default_rng(seed).normal(0.3, 1, (BATCH, width))


def unit(vector):
    return vector / math.sqrt(vector @ vector)


def smooth_l1(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def sp_by_hand(student, teacher):
    grams = [[unit(np.array([z[i] @ z[j] for j in range(BATCH)])) for i in range(BATCH)] for z in (student, teacher)]
    return sum(((a - b) ** 2).sum() for a, b in zip(*grams, strict=True)) / BATCH**2


def rkd_by_hand(student, teacher):
    every = range(BATCH)
    distances, angles = [], []
    for z in (student, teacher):
        length = {(i, j): math.dist(z[i], z[j]) for i in every for j in every}
        mean = sum(length.values()) / (BATCH * (BATCH - 1))
        distances.append({pair: value / mean for pair, value in length.items()})
        edge = {(i, j): unit(z[j] - z[i]) if i != j else 0 * z[i] for i in every for j in every}
        angles.append({(i, j, k): edge[i, j] @ edge[i, k] for i in every for j in every for k in every})
    distance = sum(smooth_l1(distances[0][key] - distances[1][key]) for key in distances[0]) / BATCH**2
    angle = sum(smooth_l1(angles[0][key] - angles[1][key]) for key in angles[0]) / BATCH**3
    return distance + 2 * angle


def pkt_by_hand(student, teacher):
    total = 0.0
    for i in range(BATCH):
        kernels = [[(unit(z[i]) @ unit(z[j]) + 1) / 2 for j in range(BATCH)] for z in (student, teacher)]
        q, p = ([value / sum(kernel) for value in kernel] for kernel in kernels)
        total += sum(b * math.log((b + 1e-7) / (a + 1e-7)) for a, b in zip(q, p, strict=True))
    return total / BATCH**2


def affinity_by_hand(student, teacher, temperature):
    total = 0.0
    for turn in (1, -1):
        for i in range(BATCH):
            rows = []
            for first, second in (student[::turn], teacher[::turn]):
                powers = [math.exp(unit(first[i]) @ unit(second[j]) / temperature) for j in range(BATCH)]
                rows.append([power / sum(powers) for power in powers])
            total += sum(p * math.log(p / q) for q, p in zip(*rows, strict=True))
    return total / BATCH / 2


BY_HAND = {sp_loss: sp_by_hand, rkd_loss: rkd_by_hand, pkt_loss: pkt_by_hand}


@pytest.mark.parametrize("width", [4, 7], ids=["same width", "other width"])
@pytest.mark.parametrize("loss", BY_HAND, ids=lambda loss: loss.__name__)
def test_a_loss_of_one_modality_by_hand(loss, width):
    student, teacher = rows(0), rows(1, width)
    found = loss(torch.tensor(student), torch.tensor(teacher)).item()
    assert found == pytest.approx(BY_HAND[loss](student, teacher), rel=1e-6)
    assert found > 1e-3


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_affinity_by_hand(temperature):
    student, teacher = [rows(0), rows(1)], [rows(2, 7), rows(3, 7)]
    found = affinity_loss(*(tuple(torch.tensor(z) for z in side) for side in (student, teacher)), temperature)
    assert found.item() == pytest.approx(affinity_by_hand(student, teacher, temperature), rel=1e-6)


def of_one(loss):
    return lambda ours, theirs: loss(ours[0], theirs[0])


LOSSES = {
    **{loss.__name__: of_one(loss) for loss in BY_HAND},
    "affinity_loss": lambda ours, theirs: affinity_loss(ours, theirs, 0.1),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_two_alike_have_no_loss_whatever_their_rotation_and_scale(loss):
    ours = (torch.tensor(rows(0)), torch.tensor(rows(1)))
    rotation = torch.linalg.qr(torch.tensor(rows(2))[:4]).Q
    assert loss(ours, tuple(3 * z @ rotation for z in ours)).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_rows_without_length_or_distance_have_bounded_gradients(loss):
    theirs = tuple(torch.tensor(rows(seed)).float() for seed in (2, 3))
    first = torch.tensor(rows(0)).float()
    twin = torch.cat([first[:1], first[:4]])
    zero = torch.cat([torch.zeros(2, 4), first[2:]])
    for embedding in (twin, zero, torch.zeros(5, 4), torch.ones(5, 4)):
        ours = (embedding.clone().requires_grad_(), torch.tensor(rows(1)).float().requires_grad_())
        value = loss(ours, theirs)
        value.backward()
        assert torch.isfinite(value)
        assert all(z.grad is None or z.grad.abs().max() < 1e3 for z in ours)
