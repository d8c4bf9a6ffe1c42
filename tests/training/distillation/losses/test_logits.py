import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgekd.stages.labels import UNLABELLED
from edgekd.training.distillation.losses.logits import cross_entropy, dist_loss, dkd_loss, kd_loss


def test_autocast_changes_nothing_of_kd():
    ours, theirs = torch.randn(4, 3), torch.randn(4, 3)
    plain = kd_loss(ours, theirs, 4.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kd_loss(ours, theirs, 4.0), plain)


def test_kd_by_hand():
    student, teacher, temperature = torch.tensor([[1.0, 2.0], [0.5, -3.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]]), 4.0
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(v / temperature) for v in row] for row in (t, s))
        p, q = ([v / sum(row) for v in row] for row in (p, q))
        total += sum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True))
    assert float(kd_loss(student, teacher, temperature)) == pytest.approx(temperature**2 * total / 2, rel=1e-5)
    assert float(kd_loss(student, student, temperature)) == pytest.approx(0, abs=1e-6)


def test_unlabelled_samples_are_skipped():
    logits, labels = torch.randn(4, 3), torch.tensor([2, UNLABELLED, 0, UNLABELLED])
    expected = functional.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    assert float(cross_entropy(logits, labels)) == pytest.approx(float(expected))


def test_a_batch_without_labels_has_no_cross_entropy_and_no_gradient():
    logits = torch.randn(4, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.full((4,), UNLABELLED))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(4, 3))


def softened(row, temperature):
    powers = [math.exp(v / temperature) for v in row]
    return [power / sum(powers) for power in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def random_logits(seed, batch=6, classes=4):
    return 3 * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 3, 2, 1, 1, 0])


@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 1.0), (4.0, 8.0), (2.0, 0.0)])
def test_dkd_by_hand(temperature, beta):
    student, teacher = random_logits(0), random_logits(1)
    total = 0.0
    for s, t, label in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True):
        p, q = softened(t, temperature), softened(s, temperature)
        target = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        rest = [[v for c, v in enumerate(side) if c != label] for side in (p, q)]
        total += target + beta * kl(*([v / sum(side) for v in side] for side in rest))
    found = dkd_loss(student, teacher, LABELS, temperature, beta)
    assert found.item() == pytest.approx(temperature**2 * total / len(LABELS), rel=1e-5)


def test_dkd_and_kd_are_one_where_beta_is_what_the_teacher_leaves_to_the_others():
    student, teacher, temperature = random_logits(0), random_logits(1), 4.0
    for b, label in enumerate(LABELS.tolist()):
        one = slice(b, b + 1)
        beta = 1 - softened(teacher[b].tolist(), temperature)[label]
        decoupled = dkd_loss(student[one], teacher[one], LABELS[one], temperature, beta)
        assert decoupled.item() == pytest.approx(kd_loss(student[one], teacher[one], temperature).item(), rel=1e-5)


def test_dkd_of_a_sample_without_label_has_the_teachers_choice_as_its_target():
    student, teacher = random_logits(0), random_logits(1)
    unlabelled = torch.where(torch.arange(6) % 2 == 0, UNLABELLED, LABELS)
    filled = torch.where(unlabelled == UNLABELLED, teacher.argmax(1), LABELS)
    assert not torch.equal(filled, LABELS)
    found, expected = (dkd_loss(student, teacher, labels, 4.0, 8.0) for labels in (unlabelled, filled))
    assert torch.equal(found, expected)


def test_dist_by_hand():
    student, teacher, temperature = random_logits(0), random_logits(1), 2.0
    q, p = (np.array([softened(row, temperature) for row in side.tolist()]) for side in (student, teacher))
    inter = 1 - np.mean([np.corrcoef(q[b], p[b])[0, 1] for b in range(6)])
    intra = 1 - np.mean([np.corrcoef(q[:, c], p[:, c])[0, 1] for c in range(4)])
    found = dist_loss(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(temperature**2 * (inter + intra), rel=1e-5)


@pytest.mark.parametrize("sure", [1.0, 300.0])
def test_losses_of_logits_of_two_alike_are_nothing_and_have_finite_gradients(sure):
    teacher = sure * random_logits(1).float()
    student = teacher.clone().requires_grad_()
    losses = {
        "kd": kd_loss(student, teacher, 1.0),
        "dkd": dkd_loss(student, teacher, LABELS, 1.0, 8.0),
        "dist": dist_loss(student, teacher, temperature=1.0),
    }
    for name, loss in losses.items():
        # A class that is never predicted correlates with nothing, so of sure networks DIST keeps a constant.
        assert (name == "dist" and sure > 1) or loss.item() == pytest.approx(0, abs=1e-5)
        assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-3
