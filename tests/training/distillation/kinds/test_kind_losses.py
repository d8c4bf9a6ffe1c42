"""The default losses of each kind of output, against formulas that are written out here."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.gram.output_kind import OutputKind
from edgekd.stages.labels import UNLABELLED
from edgekd.training.distillation.answer_losses import AnswerLosses
from edgekd.training.distillation.kinds.facts import OutputFacts
from edgekd.training.distillation.kinds.likelihood import drawn_likelihood
from edgekd.training.distillation.kinds.registry import KIND_LOSSES, joined_outputs


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def losses(kind, temperature=1.0, variance=None, **options):
    facts = OutputFacts(OutputKind(kind, **options), temperature, variance)
    loss = KIND_LOSSES[kind]
    return (lambda x, y: float(loss.supervised(x, y, facts))), (lambda s, t: float(loss.distilled(s, t, facts)))


LAYOUTS = {
    "classes": ((6, 3), (6,)),
    "dense-classes": ((2, 3, 4, 5), (2, 4, 5)),
    "sequence-classes": ((4, 5, 3), (4, 5)),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_scores_of_classes_have_cross_entropy_and_kl_at_every_place(kind):
    shape, places = LAYOUTS[kind]
    supervised, distilled = losses(kind, temperature=2.0)
    student, teacher = draw(*shape), draw(*shape, seed=1)
    target = torch.randint(0, 3, places, generator=torch.Generator().manual_seed(2))
    target.view(-1)[0] = UNLABELLED
    axis = -1 if kind == "sequence-classes" else 1
    rows, known = (np.moveaxis(x.double().numpy(), axis, -1).reshape(-1, 3) for x in (student, teacher))
    flat = target.flatten().numpy()
    expected = -np.log(softmax(rows)[np.arange(len(flat)), flat.clip(0)])[flat >= 0].mean()
    assert supervised(student, target) == pytest.approx(expected, rel=1e-5)
    p, q = softmax(known / 2), softmax(rows / 2)
    assert distilled(student, teacher) == pytest.approx(4 * (p * np.log(p / q)).sum(-1).mean(), rel=1e-4)
    assert distilled(teacher, teacher) == pytest.approx(0, abs=1e-6)
    assert supervised(student, torch.full_like(target, UNLABELLED)) == 0


def test_probabilities_are_taken_as_such():
    logits, target = draw(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    of_logits, of_probabilities = losses("classes")[0], losses("classes", probabilities=True)[0]
    assert of_probabilities(logits.softmax(1), target) == pytest.approx(of_logits(logits, target), rel=1e-5)
    labels = (draw(6, 3, seed=1) > 0).float()
    of_logits, of_probabilities = losses("multilabel")[0], losses("multilabel", probabilities=True)[0]
    assert of_probabilities(logits.sigmoid(), labels) == pytest.approx(of_logits(logits, labels), rel=1e-4)


def test_ctc_sums_over_all_alignments():
    supervised, _ = losses("sequence-classes", blank=0)
    output = draw(1, 3, 3)
    p = softmax(output[0].double().numpy())
    ways = [w for w in np.ndindex(3, 3, 3) if collapse(w) == [1, 2]]
    expected = -math.log(sum(p[0, a] * p[1, b] * p[2, c] for a, b, c in ways)) / 2
    assert supervised(output, torch.tensor([[1, 2, UNLABELLED]])) == pytest.approx(expected, rel=1e-5)
    assert supervised(output, torch.tensor([[0, 1, 2]])) == pytest.approx(expected, rel=1e-5)
    assert supervised(output, torch.full((1, 3), UNLABELLED)) == 0


def collapse(steps):
    return [step for index, step in enumerate(steps) if step and (index == 0 or step != steps[index - 1])]


def test_labels_have_binary_cross_entropy_where_they_are_known():
    supervised, distilled = losses("multilabel", temperature=3.0)
    student, teacher = draw(5, 4), draw(5, 4, seed=1)
    target = (draw(5, 4, seed=2) > 0).float()
    target[0, 0], target[1, 1] = math.nan, -100
    p, t = 1 / (1 + np.exp(-student.double().numpy())), target.numpy()
    error = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    assert supervised(student, target) == pytest.approx(error[t >= 0].mean(), rel=1e-5)
    q, r = (1 / (1 + np.exp(-x.double().numpy() / 3)) for x in (student, teacher))
    divergence = r * np.log(r / q) + (1 - r) * np.log((1 - r) / (1 - q))
    assert distilled(student, teacher) == pytest.approx(9 * divergence.mean(), rel=1e-4)


def test_numbers_have_their_squared_error_in_units_of_what_varies():
    supervised, distilled = losses("regression", variance=torch.tensor([4.0, 1e4]))
    student, teacher, target = draw(5, 2), draw(5, 2, seed=1), draw(5, 2, seed=2)
    target[0, 1] = math.nan
    error = (student - target).double().numpy() ** 2 / [4, 1e4]
    assert supervised(student, target) == pytest.approx(np.nanmean(error), rel=1e-5)
    assert distilled(student, teacher) == pytest.approx(((student - teacher).numpy() ** 2 / [4, 1e4]).mean(), rel=1e-5)
    flat, _ = losses("regression", variance=torch.tensor(4.0))
    assert flat(draw(5, 1), draw(5, seed=2)) == pytest.approx(float(((draw(5) - draw(5, seed=2)) ** 2).mean() / 4))


def test_a_number_that_is_not_known_gives_no_gradient():
    output = draw(3, 2).requires_grad_()
    facts = OutputFacts(OutputKind("regression"), 1.0, torch.ones(2))
    target = torch.tensor([[1.0, math.nan], [math.nan, math.nan], [0.0, 1.0]])
    KIND_LOSSES["regression"].supervised(output, target, facts).backward()
    assert (output.grad == 0).tolist() == [[False, True], [True, True], [False, False]]


def test_embeddings_are_drawn_to_those_of_their_label():
    supervised, distilled = losses("embedding")
    z, labels = draw(6, 4), torch.tensor([0, 0, 1, 1, 1, UNLABELLED])
    unit = (z / z.norm(dim=1, keepdim=True)).double().numpy()
    similar = np.exp(unit @ unit.T / 0.1)
    np.fill_diagonal(similar, 0)
    share = similar / similar.sum(1, keepdims=True)
    alike = [[1], [0], [3, 4], [2, 4], [2, 3]]
    expected = np.mean([-np.log(share[row, others]).mean() for row, others in enumerate(alike)])
    assert supervised(z, labels) == pytest.approx(expected, rel=1e-5)
    assert supervised(z, torch.arange(6)) == 0
    other = draw(6, 4, seed=1)
    cosines = (unit * (other / other.norm(dim=1, keepdim=True)).numpy()).sum(1)
    assert distilled(z, other) == pytest.approx(1 - cosines.mean(), rel=1e-5)
    wide = draw(6, 9, seed=1)
    between = [x @ x.T for x in (unit, (wide / wide.norm(dim=1, keepdim=True)).double().numpy())]
    assert distilled(z, wide) == pytest.approx(((between[0] - between[1]) ** 2).mean(), rel=1e-5)


def test_several_outputs_are_summed_by_their_weights():
    kinds = {"a": OutputKind(), "b": OutputKind("regression")}
    answers = {"a": draw(4, 3), "b": draw(4, 2)}
    targets = {"a": torch.tensor([0, 1, 2, 0]), "b": draw(4, 2, seed=1)}
    both = AnswerLosses(kinds, {"a": 0.5, "b": 3.0})
    alone = [
        float(AnswerLosses({name: kinds[name]}).supervised({name: answers[name]}, targets[name])) for name in kinds
    ]
    assert float(both.supervised(answers, targets)) == pytest.approx(0.5 * alone[0] + 3 * alone[1], rel=1e-6)
    assert float(both.distilled(answers, answers, 4.0)) == pytest.approx(0, abs=1e-6)


def test_several_teachers_labels_have_their_mean_probability_and_embeddings_their_mean_direction():
    one, other = draw(4, 3), draw(4, 3, seed=1)
    labels = joined_outputs([one, other], OutputKind("multilabel"))
    torch.testing.assert_close(labels.sigmoid(), (one.sigmoid() + other.sigmoid()) / 2)
    given = joined_outputs([one.sigmoid(), other.sigmoid()], OutputKind("multilabel", probabilities=True))
    torch.testing.assert_close(given, (one.sigmoid() + other.sigmoid()) / 2)
    steps = joined_outputs([draw(2, 4, 3), draw(2, 4, 3, seed=1)], OutputKind("sequence-classes"))
    torch.testing.assert_close(steps.exp().sum(-1), torch.ones(2, 4))
    embedding = joined_outputs([one, 100 * other], OutputKind("embedding"))
    units = [nn.functional.normalize(x, dim=1) for x in (one, other)]
    torch.testing.assert_close(embedding, (units[0] + units[1]) / 2)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("classes", (4, 3)),
        ("dense-classes", (4, 3, 2)),
        ("multilabel", (4, 3)),
        ("regression", (4, 3)),
        ("embedding", (4, 3)),
    ],
)
def test_a_likelihood_of_what_is_drawn_has_a_gradient_of_mean_zero(kind, shape):
    output = draw(*shape).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(shape)
    for _ in range(2000):
        (gradient,) = torch.autograd.grad(drawn_likelihood({"x": output}, {"x": OutputKind(kind)}, generator), output)
        total += gradient / 2000
    assert gradient.abs().max() > 0.1
    assert total.abs().max() < 0.1
