import math

import pytest
import torch
from torch.nn import functional

from edgekd.learn.losses import SOFTNESS, cross_entropy, gram_losses, kd_loss
from edgekd.learn.task import UNLABELLED

SCOPES = ("sample", "intra", "cross", "joint")


def gram_loss(student, teacher, scope):
    return gram_losses(student, teacher, [scope])[scope]


def embeddings(seed, width=6, batch=5, names="abc"):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, width, generator=generator) for name in names}


def soft_unit(z):
    mean = sum(float(row @ row) for row in z) / len(z)
    return [row / math.sqrt(float(row @ row) + SOFTNESS * mean) for row in z]


def by_hand(student, teacher, scope):
    """The loss with plain loops: every entry that the scope compares, each once, over the number off the diagonal."""
    ours, theirs = ({name: soft_unit(z) for name, z in side.items()} for side in (student, teacher))
    names, batch = list(student), len(student["a"])
    rows = [(name, b) for b in range(batch) for name in names]
    keep = {
        "sample": lambda m, b, n, c: b == c,
        "intra": lambda m, b, n, c: m == n,
        "cross": lambda m, b, n, c: names.index(m) < names.index(n),
        "joint": lambda m, b, n, c: True,
    }[scope]
    squares = {
        (m, b, n, c): (float(ours[m][b] @ ours[n][c]) - float(theirs[m][b] @ theirs[n][c])) ** 2
        for m, b in rows
        for n, c in rows
        if keep(m, b, n, c)
    }
    off_diagonal = sum((m, b) != (n, c) for m, b, n, c in squares)
    return sum(squares.values()) / off_diagonal


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("width", [6, 11], ids=["same width", "other width"])
def test_every_scope_by_hand(scope, width):
    student, teacher = embeddings(0), embeddings(1, width)
    assert float(gram_loss(student, teacher, scope)) == pytest.approx(by_hand(student, teacher, scope), rel=1e-5)


@pytest.mark.parametrize("scope", SCOPES)
def test_two_alike_have_no_loss(scope):
    student = embeddings(0)
    assert float(gram_loss(student, {name: z.clone() for name, z in student.items()}, scope)) == 0
    # A common rotation and scale leave every inner product of unit vectors as it is.
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    rotated = {name: 3 * z @ rotation for name, z in student.items()}
    assert float(gram_loss(student, rotated, scope)) < 1e-10


def test_each_scope_sees_what_it_is_for():
    teacher = embeddings(0, batch=16)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    rotated = {**teacher, "b": teacher["b"] @ rotation}
    seen = {scope: float(gram_loss(rotated, teacher, scope)) > 1e-3 for scope in SCOPES}
    assert seen == {"sample": True, "intra": False, "cross": True, "joint": True}


@pytest.mark.parametrize("scope", SCOPES)
def test_autocast_changes_nothing(scope):
    student, teacher = embeddings(0), embeddings(1)
    plain = gram_loss(student, teacher, scope)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gram_loss(student, teacher, scope), plain)
    assert plain.dtype == torch.float32


def test_autocast_changes_nothing_of_kd():
    ours, theirs = torch.randn(4, 3), torch.randn(4, 3)
    plain = kd_loss(ours, theirs, 4.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kd_loss(ours, theirs, 4.0), plain)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_gradient_goes_to_the_student_alone(scope):
    student, teacher = ({n: z.requires_grad_() for n, z in embeddings(seed).items()} for seed in (0, 1))
    gram_loss(student, teacher, scope).backward()
    assert all(z.grad.abs().sum() > 0 for z in student.values())
    assert all(z.grad is None for z in teacher.values())


@pytest.mark.parametrize("scope", SCOPES)
def test_modalities_of_two_widths_have_no_gram_loss(scope):
    student = {"a": torch.randn(4, 3), "b": torch.randn(4, 5)}
    with pytest.raises(ValueError, match=r"must share a width.*a 3, b 5"):
        gram_loss(student, {"a": torch.randn(4, 7), "b": torch.randn(4, 7)}, scope)


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
