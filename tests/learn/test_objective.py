import pytest
import torch
from small import CLASSES, TAPS, Remembers, TwoTowers, reporter, split
from torch import nn

from edgekd.gram.align import GramKind, gram_distance
from edgekd.gram.matrix import SOFTNESS
from edgekd.learn.balance import Balance
from edgekd.learn.losses.logits import cross_entropy, kd_loss
from edgekd.learn.objective import Distillation, Supervised
from edgekd.learn.reference import Live
from edgekd.learn.taps import Tapped
from edgekd.learn.task import collate
from edgekd.learn.terms import Where
from edgekd.recipe import LossConfig, Tap

DEFAULT = LossConfig()
SHARES = {"intra": 1.0, "sample": 0.1, "joint": 3.0}


def batch(count=12, seed=3):
    samples = split("train", count, seed=seed)
    return collate([samples[index] for index in range(count)])


def inputs_of(batch):
    return list(batch.inputs.values())


@pytest.fixture
def networks():
    torch.manual_seed(0)
    networks = [TwoTowers(), TwoTowers(hidden=24, width=12), TwoTowers(width=10)]
    tapped = [Tapped(network, TAPS) for network in networks]
    for one in tapped:
        one.__enter__()
    return tapped


def gram(scope, student, reference):
    return gram_distance(student, [reference], GramKind(scope), softness=SOFTNESS)


def distillation(student, teacher, anchor=None, config=DEFAULT, observer=None):
    reference = Live(teacher)
    kept = reference if anchor is None else Live(anchor)
    where = Where(list(TAPS), student.taps, (anchor or teacher).taps, "teacher" if anchor is None else "student")
    return Distillation(student, reference, kept, config, where, reporter(observer))


def norm_on(loss, tensors):
    gradients = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return torch.sqrt(sum((g**2).sum() for g in gradients if g is not None)).item()


def check_shares(student, anchor, teacher, objective, batch, on):
    """Each Gram's weighted gradient is its share of the logit losses', measured here with autograd."""
    config = objective.config
    with torch.no_grad():
        wanted, reference = teacher(inputs_of(batch))[0], anchor(inputs_of(batch))[1]
    reading = student.read(inputs_of(batch))
    tensors = list(on(reading).values())
    base = config.ce * cross_entropy(reading.logits, batch.labels)
    base = base + config.kd * kd_loss(reading.logits, wanted, config.temperature)
    for scope, share in config.extra.items():
        ratio = norm_on(gram(scope, reading.embeddings, reference), tensors) / norm_on(base, tensors)
        assert objective.balance.weights[scope] * ratio == pytest.approx(share, rel=1e-4)


def test_each_gram_holds_its_share_of_the_gradient(networks):
    student, teacher, _ = networks
    objective = distillation(student, teacher, config=LossConfig(extra=SHARES))
    for _ in range(5):
        objective(batch(), 0.0)
    check_shares(student, teacher, teacher, objective, batch(), lambda reading: reading.embeddings)


class ConvTowers(nn.Module):
    """Taps that are pooled: what the network reads on is the map, not the embedding."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(6, 8, 1), nn.Conv1d(5, 8, 1)
        self.fc = nn.Linear(2 * 8 * 4, CLASSES)

    def forward(self, a, b):
        maps = [conv(x[..., None].expand(-1, -1, 4).cumsum(2)) for conv, x in ((self.a, a), (self.b, b))]
        return self.fc(torch.cat(maps, 1).flatten(1))


def test_a_pooled_tap_holds_its_share_too(networks):
    _, teacher, _ = networks
    torch.manual_seed(0)
    with Tapped(ConvTowers(), {name: Tap(module=name, pool="spatial") for name in "ab"}) as student:
        objective = distillation(student, teacher, config=LossConfig(extra=SHARES))
        objective(batch(), 0.0)
        assert min(objective.balance.weights.values()) > 1e-3
        check_shares(student, teacher, teacher, objective, batch(), lambda reading: reading.outputs)


def test_the_loss_is_the_sum_of_its_parts(networks):
    student, teacher, _ = networks
    config = LossConfig(ce=0.3, kd=0.6, temperature=2.0, extra={"intra": 1.0, "sample": 0.5})
    loss, figures = distillation(student, teacher, config=config)(batch(), 0.0)
    expected = 0.3 * figures["ce"] + 0.6 * figures["kd"]
    expected += sum(figures[f"weight.{scope}"] * figures[f"loss.{scope}"] for scope in config.extra)
    assert loss.item() == pytest.approx(float(expected), rel=1e-6)
    assert set(figures) == {
        "ce", "kd", "loss.intra", "loss.sample", "weight.intra", "weight.sample", "share.intra", "share.sample",
    }  # fmt: skip


@pytest.mark.parametrize("extra", [{}, {"intra": 0.0}], ids=["none", "share 0"])
def test_without_extra_losses_it_is_plain_distillation(networks, extra):
    student, teacher, _ = networks
    loss, figures = distillation(student, teacher, config=LossConfig(extra=extra))(batch(), 0.0)
    logits, wanted = (tapped(inputs_of(batch()))[0] for tapped in (student, teacher))
    expected = 0.1 * cross_entropy(logits, batch().labels) + 0.9 * kd_loss(logits, wanted, 4.0)
    assert loss.item() == pytest.approx(expected.item())
    assert set(figures) == {"ce", "kd"}


def test_the_anchor_gives_the_gram_and_the_teacher_the_logits(networks):
    student, teacher, anchor = networks
    _, figures = distillation(student, teacher, anchor, LossConfig(extra={"intra": 1.0}))(batch(), 0.0)
    logits, embeddings = student(inputs_of(batch()))
    grams = {name: float(gram("intra", embeddings, t(inputs_of(batch()))[1]).detach()) for name, t in
             {"teacher": teacher, "anchor": anchor}.items()}  # fmt: skip
    assert float(figures["loss.intra"]) == pytest.approx(grams["anchor"])
    assert float(figures["loss.intra"]) != pytest.approx(grams["teacher"])
    assert float(figures["kd"]) == pytest.approx(kd_loss(logits, teacher(inputs_of(batch()))[0], 4.0).item())


def test_teacher_and_anchor_are_frozen_and_in_evaluation_mode(networks):
    student, teacher, anchor = networks
    student.model.train()
    loss, _ = distillation(student, teacher, anchor)(batch(), 0.0)
    loss.backward()
    for reference in (teacher, anchor):
        assert not reference.model.training
        assert not any(p.requires_grad or p.grad is not None for p in reference.model.parameters())
    assert student.model.training
    assert all(p.grad is not None for p in student.model.parameters())


def test_supervised_is_the_cross_entropy(networks):
    loss, figures = Supervised(networks[0])(batch(), 0.0)
    assert float(loss) == pytest.approx(float(cross_entropy(networks[0](inputs_of(batch()))[0], batch().labels)))
    assert figures == {}


def run_until_measured(objective):
    for _ in range(Balance.FIRST + 1):
        objective(batch(4), 0.0)


def test_a_gram_without_a_measure_is_reported_once(networks):
    student, teacher, _ = networks
    student.model.encoders.requires_grad_(False)
    observer = Remembers()
    objective = distillation(student, teacher, config=LossConfig(extra={"intra": 1.0}), observer=observer)
    run_until_measured(objective)
    objective(batch(4), 0.0)
    assert objective.balance.weights == {"intra": 0.0}
    assert len(observer.warnings) == 1
    assert "the weight of the loss 'intra' fell to 0" in observer.warnings[0]


class Beside(TwoTowers):
    """The tapped modules lie beside the way to the logits."""

    def __init__(self):
        super().__init__()
        self.aside = nn.ModuleDict({name: nn.Linear(8, 4) for name in "ab"})

    def forward(self, a, b):
        for name, x in (("a", a), ("b", b)):
            self.aside[name](self.encoders[name](x))
        return super().forward(a, b)


def test_a_tap_beside_the_way_to_the_logits_is_reported_too(networks):
    _, teacher, _ = networks
    observer = Remembers()
    with Tapped(Beside(), {name: Tap(module=f"aside.{name}") for name in "ab"}) as student:
        run_until_measured(distillation(student, teacher, config=LossConfig(extra={"intra": 1.0}), observer=observer))
    assert "no gradient of the logit losses reaches the embeddings" in observer.warnings[0]


def test_a_healthy_gram_is_not_reported(networks):
    student, teacher, _ = networks
    observer = Remembers()
    run_until_measured(distillation(student, teacher, observer=observer))
    assert observer.warnings == []
