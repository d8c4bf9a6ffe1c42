import math

import pytest
import torch
from torch.nn import functional

from edgekd.learn.losses.logits import cross_entropy, kd_loss
from edgekd.learn.score import UNLABELLED


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
