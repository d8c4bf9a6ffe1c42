import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekd.gram.matrix import (
    cross_gram,
    intra_gram,
    joint_gram,
    normalize,
    pair_cosines,
    pair_indices,
    pair_names,
    sample_gram,
    stack,
)

SAMPLES, MODALITIES, WIDTH = 5, 3, 4


def random_embeddings(*widths, seed=0):
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(SAMPLES, width)) for name, width in zip("abcd", widths, strict=False)}


@st.composite
def stacks(draw):
    """[B, M, D] without rows so short that their direction is lost in rounding."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(2, 4), st.integers(1, 8)))
    z = draw(arrays(np.float64, shape, elements=st.floats(-1e3, 1e3, width=32)))
    return np.where(np.linalg.norm(z, axis=-1, keepdims=True) > 1e-3, z, 1.0)


FUNCTIONS = {
    "normalize": lambda z: normalize(z[:, 0]),
    "normalize softly": lambda z: normalize(z[:, 0], 0.01),
    "stack": lambda z: stack({"a": z[:, 0], "b": z[:, 1]}),
    "sample": sample_gram,
    "intra": intra_gram,
    "cross": cross_gram,
    "joint": joint_gram,
    "cosines": lambda z: pair_cosines({"a": z[:, 0], "b": z[:, 1]}),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_and_torch_agree(function, dtype):
    z = np.random.default_rng(1).normal(size=(SAMPLES, MODALITIES, WIDTH)).astype(dtype)
    ours, theirs = function(z), function(torch.from_numpy(z))
    assert isinstance(ours, np.ndarray)
    assert isinstance(theirs, torch.Tensor)
    assert ours.dtype == theirs.numpy().dtype == dtype
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-6 if dtype == np.float32 else 1e-12)


@given(stacks())
@settings(max_examples=60, deadline=None)
def test_a_gram_is_symmetric_semi_definite_and_has_a_unit_diagonal(z):
    unit = normalize(z)
    grams = [*sample_gram(unit), *intra_gram(unit), joint_gram(unit)]
    for gram in grams:
        np.testing.assert_allclose(gram, gram.T, atol=1e-12)
        np.testing.assert_allclose(np.diag(gram), 1, atol=1e-9)
        assert np.linalg.eigvalsh(gram).min() > -1e-9
        assert np.abs(gram).max() < 1 + 1e-9


@given(stacks(), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_lengths_do_not_matter(z, factor):
    np.testing.assert_allclose(joint_gram(normalize(z * factor)), joint_gram(normalize(z)), atol=1e-9)


def test_a_gram_by_hand():
    embeddings = {"a": np.array([[2.0, 0.0]]), "b": np.array([[1.0, 1.0]]), "c": np.array([[-3.0, 0.0]])}
    root = math.sqrt(0.5)
    expected = [[1, root, -1], [root, 1, -root], [-1, -root, 1]]
    np.testing.assert_allclose(sample_gram(stack(embeddings))[0], expected, atol=1e-12)


def test_negative_cosines_are_kept():
    z = np.array([[1.0, 2.0], [3.0, -1.0]])
    np.testing.assert_allclose(pair_cosines({"a": z, "b": -z}), [[-1.0], [-1.0]])


def test_zero_rows_stay_zero():
    z = np.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_array_equal(normalize(z), [[0, 0], [0.6, 0.8]])


def test_the_joint_gram_holds_all_others():
    z = stack(random_embeddings(*[WIDTH] * MODALITIES))
    joint = joint_gram(z).reshape(SAMPLES, MODALITIES, SAMPLES, MODALITIES)
    sample, cross = sample_gram(z), cross_gram(z)
    assert cross.shape == (3, SAMPLES, SAMPLES)
    for b in range(SAMPLES):
        np.testing.assert_allclose(joint[b, :, b, :], sample[b])
        for c in range(SAMPLES):
            for m in range(MODALITIES):
                assert joint[b, m, c, m] == pytest.approx(intra_gram(z)[m, b, c])
            for pair, (i, j) in enumerate(zip(*pair_indices(MODALITIES), strict=True)):
                assert joint[b, i, c, j] == pytest.approx(cross[pair, b, c])
                assert cross[pair, b, c] == pytest.approx(z[b, i] @ z[c, j])


def test_pairs_are_in_one_order_everywhere():
    assert pair_indices(4) == ([0, 0, 0, 1, 1, 2], [1, 2, 3, 2, 3, 3])
    embeddings = random_embeddings(*[WIDTH] * 4)
    assert pair_names(list(embeddings)) == ["a-b", "a-c", "a-d", "b-c", "b-d", "c-d"]
    cosines = pair_cosines(embeddings)
    for column, name in enumerate(pair_names(list(embeddings))):
        first, second = (embeddings[modality] for modality in name.split("-"))
        expected = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
        np.testing.assert_allclose(cosines[:, column], expected)


def test_two_widths_have_no_inner_product():
    embeddings = random_embeddings(4, 6)
    with pytest.raises(ValueError, match=r"must share a width.*a 4, b 6; give the encoders one width"):
        stack(embeddings)


@pytest.mark.parametrize("length", [1e-3, 1e-6, 1e-9])
def test_softness_bounds_the_gradient_near_zero_rows(length):
    def gradient(softness):
        z = torch.tensor([[length, 0.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
        normalize(z, softness)[0].sum().backward()
        return z.grad.abs().max().item()

    assert gradient(0.0) > 0.9 / length
    assert gradient(1e-3) < 1 / math.sqrt(1e-3)


@pytest.mark.parametrize("softness", [0.0, 1e-3])
def test_a_batch_of_zero_rows_has_a_finite_gradient(softness):
    z = torch.zeros(3, 2, 4, requires_grad=True)
    (intra_gram(normalize(z, softness)) - 1).square().sum().backward()
    assert torch.isfinite(z.grad).all()


def test_softness_barely_changes_rows_of_usual_length():
    z = np.random.default_rng(0).normal(size=(64, 32))
    np.testing.assert_allclose(normalize(z, 1e-3), normalize(z), atol=1e-3)
