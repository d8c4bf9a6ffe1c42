import math

import pytest
import torch

from edgekd.gram.align import GramKind, gram_distance
from edgekd.gram.matrix import SOFTNESS

SCOPES = ("sample", "intra", "cross", "joint")


def gram_loss(student, teacher, scope):
    return gram_distance(student, [teacher], GramKind(scope), softness=SOFTNESS)


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


@pytest.mark.parametrize("scope", ["sample", "cross", "joint"])
def test_modalities_of_two_widths_have_no_inner_products(scope):
    student = {"a": torch.randn(4, 3), "b": torch.randn(4, 5)}
    with pytest.raises(ValueError, match=r"must share a width.*a 3, b 5"):
        gram_loss(student, {"a": torch.randn(4, 7), "b": torch.randn(4, 7)}, scope)
