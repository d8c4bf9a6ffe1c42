import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as hypothesis_arrays

from edgekd.gram.distance import SMOOTH, GramKind, gram_distance
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.matrix import SOFTNESS
from edgekd.gram.probe import Probe

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


#: Every combination of what does not change the shape of the Gram.
NORMALIZATIONS, DISTANCES = ("cosine", "frobenius", "none"), ("mse", "l1", "smooth_l1", "frobenius")
KINDS = [
    GramKind(scope, centered, how, distance)
    for scope in SCOPES
    for centered in (False, True)
    for how in NORMALIZATIONS
    for distance in DISTANCES
]
NAMES = "abc"
#: The third sample has one modality, the last none.
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]], float)
#: Pairs a-b, a-c, b-c count 0.5, 2, 1.
WEIGHTS = np.array([[1, 0.5, 2], [0.5, 1, 1], [2, 1, 1]])


def name_of(kind):
    return f"{kind.scope}-{'centered-' if kind.centered else ''}{kind.normalize}-{kind.distance}"


def arrays(seed, widths, batch=5):
    random = np.random.default_rng(seed)
    return {name: random.normal(0.3, 1, (batch, width)) for name, width in zip(NAMES, widths, strict=False)}


def tensors(side, dtype=torch.float64):
    return {name: torch.tensor(z, dtype=dtype) for name, z in side.items()}


def rows_by_hand(side, kind, present, softness):
    """For each sample and modality that is there its row, centred and scaled."""
    rows = {}
    for m, (name, z) in enumerate(side.items()):
        there = [b for b in range(len(z)) if present is None or present[b][m]]
        if not there:
            continue
        middle = sum(z[b] for b in there) / len(there) if kind.centered else 0
        moved = {b: z[b] - middle for b in there}
        mean = sum(float(row @ row) for row in moved.values()) / len(there)
        for b, row in moved.items():
            length = math.sqrt(float(row @ row) + softness * mean) if kind.normalize == "cosine" else 1
            rows[name, b] = row / length
    return rows


def blocks_by_hand(rows, names, kind, weights):
    """For each Gram the entries that count, each with its weight."""

    def weight(m, n):
        i, j = sorted((names.index(m), names.index(n)))
        if kind.scope == "intra":
            return 1.0
        if i == j:
            return float(not kind.pairs or any(m in pair.split("-") for pair in kind.pairs))
        if kind.pairs and f"{names[i]}-{names[j]}" not in kind.pairs:
            return 0.0
        return 1.0 if weights is None else weights[i][j]

    blocks = {}
    for m, b in rows:
        for n, c in rows:
            key = {
                "sample": b if b == c else None,
                "intra": m if m == n else None,
                "cross": (m, n) if names.index(m) < names.index(n) else None,
                "joint": "all",
            }[kind.scope]
            if key is not None and weight(m, n):
                blocks.setdefault(key, {})[(m, b), (n, c)] = weight(m, n)
    return blocks.values()


def distance_by_hand(ours, references, kind, present=None, weights=None, softness=0.0):
    """The definition with plain loops over single entries."""
    sides = [rows_by_hand(side, kind, present, softness) for side in (ours, *references)]
    total = count = 0.0
    norms = []
    for block in blocks_by_hand(sides[0], list(ours), kind, weights):
        grams = []
        for rows in sides:
            gram = {entry: float(rows[entry[0]] @ rows[entry[1]]) for entry in block}
            norm = math.sqrt(sum(g * g for g in gram.values())) if kind.normalize == "frobenius" else 1
            grams.append({entry: g / norm for entry, g in gram.items()})
        mine, others = grams[0], grams[1:]
        differences = {entry: mine[entry] - sum(gram[entry] for gram in others) / len(others) for entry in block}
        counts = [entry for entry in block if kind.normalize != "cosine" or entry[0] != entry[1]]
        if counts:
            norms.append(math.sqrt(sum(w * differences[entry] ** 2 for entry, w in block.items())))
        count += sum(block[entry] for entry in counts)
        for entry, w in block.items():
            d = abs(differences[entry])
            smooth = d * d / (2 * SMOOTH) if d < SMOOTH else d - SMOOTH / 2
            total += w * {"mse": d * d, "l1": d, "smooth_l1": smooth, "frobenius": 0}[kind.distance]
    if kind.distance == "frobenius":
        return sum(norms) / len(norms) if norms else 0.0
    return total / count if count else 0.0


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_every_kind_by_hand_in_numpy_and_torch(kind):
    ours, references = arrays(0, [4, 4, 4]), [arrays(1, [7, 7, 7]), arrays(2, [3, 3, 3])]
    for present in (None, PRESENT):
        for pairs, weights in [((), None), (("a-b", "b-c"), None), ((), WEIGHTS), (("a-c",), WEIGHTS)]:
            for others, softness in [(references[:1], 0.0), (references, SOFTNESS)]:
                chosen = replace(kind, pairs=pairs)
                expected = distance_by_hand(ours, others, chosen, present, weights, softness)
                found = gram_distance(ours, others, chosen, present, weights, softness)
                assert found == pytest.approx(expected, rel=1e-9, abs=1e-11), (present, pairs, weights)
                torched = gram_distance(
                    tensors(ours),
                    [tensors(side) for side in others],
                    chosen,
                    None if present is None else torch.tensor(present),
                    None if weights is None else torch.tensor(weights),
                    softness,
                )
                assert torched.item() == pytest.approx(found, rel=1e-9, abs=1e-11)
    assert expected > 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_numpy_equals_torch_and_changes_no_dtype(data):
    kind = data.draw(st.sampled_from(KINDS))
    batch, modalities = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    numbers = st.floats(-10, 10, width=32)
    width = data.draw(st.integers(1, 4))
    shape = (2, modalities, batch, width)
    sides = data.draw(hypothesis_arrays(np.float32, shape, elements=numbers)).astype(np.float64)
    present = data.draw(st.none() | hypothesis_arrays(np.bool_, (batch, modalities)))
    present = None if present is None else present.astype(np.float64)
    ours, theirs = (dict(zip(NAMES, side, strict=False)) for side in sides)
    found = gram_distance(ours, [theirs], kind, present, softness=SOFTNESS)
    mask = None if present is None else torch.tensor(present)
    torched = gram_distance(tensors(ours), [tensors(theirs)], kind, mask, softness=SOFTNESS)
    assert np.isfinite(found)
    rounding = 4 * np.finfo(np.float64).eps / SOFTNESS  # where all is as good as zero, nothing else is left
    assert torched.item() == pytest.approx(float(found), rel=1e-7, abs=rounding)
    mask = None if mask is None else mask.float()
    single = gram_distance(
        tensors(ours, torch.float32), [tensors(theirs, torch.float32)], kind, mask, softness=SOFTNESS
    )
    assert single.dtype == torch.float32


def test_l1_of_a_samples_gram_is_the_drift():
    ours, theirs = arrays(0, [4, 4, 4], batch=9), arrays(1, [6, 6, 6], batch=9)
    ids = np.array([str(b) for b in range(9)])
    probes = [Probe(ids, {"logits": np.eye(9, dtype=np.float32)}, side) for side in (ours, theirs)]
    drift = measure_drift(*probes, None, Bootstrap(resamples=1))
    assert drift.scope == "sample"
    assert gram_distance(ours, [theirs], GramKind("sample", distance="l1")) == pytest.approx(drift.mean, rel=1e-9)


def cka_by_hand(x, y):
    """Biased linear CKA: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with centring matrices."""
    middle = np.eye(len(x)) - 1 / len(x)
    ours, theirs = (middle @ side @ side.T @ middle for side in (x, y))
    return np.trace(ours @ theirs) / math.sqrt(np.trace(ours @ ours) * np.trace(theirs @ theirs))


def test_centred_intra_of_unit_norm_is_cka():
    batch = 9
    ours, theirs = arrays(0, [4, 5, 6], batch), arrays(1, [7, 3, 6], batch)
    kind = GramKind("intra", centered=True, normalize="frobenius")
    for name in NAMES:
        cka = cka_by_hand(ours[name], theirs[name])
        found = gram_distance({name: ours[name]}, [{name: theirs[name]}], kind)
        assert found == pytest.approx(2 * (1 - cka) / batch**2, rel=1e-9)
    mean = sum(2 * (1 - cka_by_hand(ours[name], theirs[name])) / batch**2 for name in NAMES) / 3
    assert gram_distance(ours, [theirs], kind) == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.scope == "intra"], ids=name_of)
def test_within_modalities_widths_may_differ(kind):
    ours, theirs = arrays(0, [4, 5, 2]), arrays(1, [7, 3, 6])
    for present in (None, PRESENT):
        expected = distance_by_hand(ours, [theirs], kind, present, softness=SOFTNESS)
        found = gram_distance(ours, [theirs], kind, present, softness=SOFTNESS)
        assert found == pytest.approx(expected, rel=1e-9)


def test_a_pair_that_is_none_of_the_modalities():
    with pytest.raises(ValueError, match="no pair 'a-d' of the modalities; did you mean 'a-b'"):
        gram_distance(arrays(0, [2, 2]), [arrays(1, [2, 2])], GramKind("cross", pairs=("a-d",)))


def test_rows_that_are_missing_are_dropped():
    ours, theirs = arrays(0, [4, 4]), arrays(1, [7, 7])
    there = {"a": [0, 2, 3], "b": [1, 2, 3, 4]}
    present = np.array([[float(b in there[name]) for name in "ab"] for b in range(5)])
    kind = GramKind("intra", centered=True)
    entries = {name: len(rows) * (len(rows) - 1) for name, rows in there.items()}
    parts = {
        name: gram_distance({name: ours[name][rows]}, [{name: theirs[name][rows]}], kind, softness=SOFTNESS)
        for name, rows in there.items()
    }
    expected = sum(entries[name] * part for name, part in parts.items()) / sum(entries.values())
    assert gram_distance(ours, [theirs], kind, present, softness=SOFTNESS) == pytest.approx(expected, rel=1e-12)
    both = {"ours": {name: z[2:4] for name, z in ours.items()}, "theirs": {name: z[2:4] for name, z in theirs.items()}}
    expected = gram_distance(both["ours"], [both["theirs"]], GramKind("sample"))
    assert gram_distance(ours, [theirs], GramKind("sample"), present) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_a_sample_with_nothing_is_as_if_it_were_not_there(kind):
    ours, theirs = arrays(0, [4, 4, 4]), arrays(1, [7, 7, 7])
    rest = [{name: z[:4] for name, z in side.items()} for side in (ours, theirs)]
    present = np.ones((5, 3))
    present[4] = 0
    found = gram_distance(ours, [theirs], kind, present, softness=SOFTNESS)
    assert found == pytest.approx(gram_distance(rest[0], [rest[1]], kind, softness=SOFTNESS), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_all_present_is_as_if_nothing_were_said(kind):
    ours, theirs = arrays(0, [4, 4, 4]), arrays(1, [7, 7, 7])
    said = gram_distance(ours, [theirs], kind, np.ones((5, 3)), softness=SOFTNESS)
    assert said == pytest.approx(gram_distance(ours, [theirs], kind, softness=SOFTNESS), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_what_stands_in_for_a_missing_input_counts_nowhere(kind):
    present = torch.tensor(PRESENT)
    found = []
    for scale in (0.0, 100.0):
        ours, theirs = tensors(arrays(0, [4, 4, 4])), tensors(arrays(1, [7, 7, 7]))
        for m, name in enumerate(NAMES):
            for side in (ours, theirs):
                side[name][present[:, m] == 0] = scale
            ours[name].requires_grad_()
        loss = gram_distance(ours, [theirs], kind, present, softness=SOFTNESS)
        loss.backward()
        found.append([loss.detach(), *(ours[name].grad for name in NAMES)])
        for m, name in enumerate(NAMES):
            assert not ours[name].grad[present[:, m] == 0].any()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert any(gradient.any() for gradient in found[0][1:])


@pytest.mark.parametrize("softness", [0.0, SOFTNESS])
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_zero_rows_and_identical_sides_give_finite_gradients(kind, softness):
    theirs = tensors(arrays(1, [4, 4, 4]), torch.float32)
    alike = {name: z.clone() for name, z in theirs.items()}
    row = {**alike, "a": torch.cat([torch.zeros(1, 4), theirs["a"][1:]])}
    dead = {**alike, "b": torch.zeros(5, 4)}
    nothing = {name: torch.zeros(5, 4) for name in NAMES}
    mask = torch.tensor(PRESENT, dtype=torch.float32)
    for ours, reference in [(alike, theirs), (row, theirs), (dead, theirs), (nothing, theirs), (nothing, nothing)]:
        for present in (None, mask, torch.zeros_like(mask)):
            student = {name: z.clone().requires_grad_() for name, z in ours.items()}
            loss = gram_distance(student, [reference], kind, present, softness=softness)
            loss.backward()
            assert torch.isfinite(loss)
            assert all(torch.isfinite(z.grad).all() for z in student.values())
            if ours is reference or ours is alike or (present is not None and not present.any()):
                assert loss.item() == pytest.approx(0, abs=1e-5)
