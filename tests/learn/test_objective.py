import pytest
import torch
from small import CLASSES, TAPS, Remembers, TwoTowers, reporter, split
from torch import nn

from edgekd.learn.losses import cross_entropy, gram_losses, kd_loss
from edgekd.learn.objective import Balance, Distillation, Supervised
from edgekd.learn.taps import Tapped
from edgekd.learn.task import collate
from edgekd.recipe import LossConfig, Tap

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
    for scope, share in config.gram.items():
        ratio = norm_on(gram_losses(reading.embeddings, reference, [scope])[scope], tensors) / norm_on(base, tensors)
        assert objective.balance.weights[scope] * ratio == pytest.approx(share, rel=1e-4)


def test_each_gram_holds_its_share_of_the_gradient(networks):
    student, teacher, _ = networks
    objective = Distillation(student, teacher, teacher, LossConfig(gram=SHARES), reporter())
    for _ in range(5):
        objective(batch())
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
        objective = Distillation(student, teacher, teacher, LossConfig(gram=SHARES), reporter())
        objective(batch())
        assert min(objective.balance.weights.values()) > 1e-3
        check_shares(student, teacher, teacher, objective, batch(), lambda reading: reading.outputs)


def test_the_loss_is_the_sum_of_its_parts(networks):
    student, teacher, _ = networks
    config = LossConfig(ce=0.3, kd=0.6, temperature=2.0, gram={"intra": 1.0, "sample": 0.5})
    loss, figures = Distillation(student, teacher, teacher, config, reporter())(batch())
    expected = 0.3 * figures["ce"] + 0.6 * figures["kd"]
    expected += sum(figures[f"weight.{scope}"] * figures[f"gram.{scope}"] for scope in config.gram)
    assert loss.item() == pytest.approx(float(expected), rel=1e-6)
    assert set(figures) == {"ce", "kd", "gram.intra", "gram.sample", "weight.intra", "weight.sample"}


@pytest.mark.parametrize("gram", [{}, {"intra": 0.0}], ids=["none", "share 0"])
def test_without_gram_it_is_plain_distillation(networks, gram):
    student, teacher, _ = networks
    config = LossConfig(gram=gram)
    loss, figures = Distillation(student, teacher, teacher, config, reporter())(batch())
    logits, wanted = (tapped(inputs_of(batch()))[0] for tapped in (student, teacher))
    expected = 0.1 * cross_entropy(logits, batch().labels) + 0.9 * kd_loss(logits, wanted, 4.0)
    assert loss.item() == pytest.approx(expected.item())
    assert set(figures) == {"ce", "kd"}


def test_the_anchor_gives_the_gram_and_the_teacher_the_logits(networks):
    student, teacher, anchor = networks
    _, figures = Distillation(student, teacher, anchor, LossConfig(gram={"intra": 1.0}), reporter())(batch())
    logits, embeddings = student(inputs_of(batch()))
    grams = {name: float(gram_losses(embeddings, t(inputs_of(batch()))[1], ["intra"])["intra"].detach()) for name, t in
             {"teacher": teacher, "anchor": anchor}.items()}  # fmt: skip
    assert float(figures["gram.intra"]) == pytest.approx(grams["anchor"])
    assert float(figures["gram.intra"]) != pytest.approx(grams["teacher"])
    assert float(figures["kd"]) == pytest.approx(float(kd_loss(logits, teacher(inputs_of(batch()))[0], 4.0)))


def test_teacher_and_anchor_are_frozen_and_in_evaluation_mode(networks):
    student, teacher, anchor = networks
    student.model.train()
    loss, _ = Distillation(student, teacher, anchor, LossConfig(), reporter())(batch())
    loss.backward()
    for reference in (teacher, anchor):
        assert not reference.model.training
        assert not any(p.requires_grad or p.grad is not None for p in reference.model.parameters())
    assert student.model.training
    assert all(p.grad is not None for p in student.model.parameters())


def test_supervised_is_the_cross_entropy(networks):
    loss, figures = Supervised(networks[0])(batch())
    assert float(loss) == pytest.approx(float(cross_entropy(networks[0](inputs_of(batch()))[0], batch().labels)))
    assert figures == {}


def test_norms_are_averaged_over_steps():
    balance = Balance({"intra": 2.0})
    for base, extra in [(1.0, 4.0), (3.0, 2.0)]:
        z = torch.zeros(1, requires_grad=True)
        balance.update(base * z.sum(), {"intra": extra * z.sum()}, [z])
    expected = 2.0 * (0.9 * 1 + 0.1 * 3) / (0.9 * 4 + 0.1 * 2)
    assert balance.weights["intra"] == pytest.approx(expected)


def test_after_the_first_steps_norms_are_measured_now_and_then():
    balance = Balance({"intra": 1.0})
    changes = []
    for step in range(Balance.FIRST + 21):
        z = torch.zeros(1, requires_grad=True)
        before = dict(balance.weights)
        balance.update((1.0 + step) * z.sum(), {"intra": z.sum()}, [z])
        changes.append(balance.weights != before)
    assert all(changes[: Balance.FIRST])
    assert [step for step in range(Balance.FIRST, len(changes)) if changes[step]] == [50, 60, 70]


def test_a_weight_is_bounded():
    balance = Balance({"intra": 1.0})
    z = torch.zeros(1, requires_grad=True)
    balance.update(z.sum(), {"intra": 1e-9 * z.sum()}, [z])
    assert balance.weights["intra"] == Balance.LARGEST
    balance = Balance({"intra": 1.0})
    balance.update(z.sum(), {"intra": 0 * z.sum()}, [z])
    assert balance.weights["intra"] == Balance.LARGEST


def test_a_restored_balance_goes_on_as_if_never_stopped():
    def steps(balance, first, last):
        for step in range(first, last):
            z = torch.zeros(1, requires_grad=True)
            balance.update((1 + step % 7) * z.sum(), {"intra": (1 + step % 3) * z.sum()}, [z])

    whole, first, second = (Balance({"intra": 1.0}) for _ in range(3))
    steps(whole, 0, 80)
    steps(first, 0, 53)
    state = first.state()
    steps(first, 53, 75)  # what was handed out does not change behind the checkpoint's back
    second.restore(state)
    steps(second, 53, 80)
    assert second.state() == whole.state()


def run_until_measured(objective):
    for _ in range(Balance.FIRST + 1):
        objective(batch(4))


def test_a_gram_without_a_measure_is_reported_once(networks):
    student, teacher, _ = networks
    observer = Remembers()
    objective = Distillation(student, teacher, teacher, LossConfig(ce=0, kd=0, gram={"intra": 1.0}), reporter(observer))
    run_until_measured(objective)
    objective(batch(4))
    assert objective.balance.weights == {"intra": 0.0}
    assert len(observer.warnings) == 1
    assert "weight of Gram scope 'intra' fell to 0" in observer.warnings[0]


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
        run_until_measured(Distillation(student, teacher, teacher, LossConfig(gram={"intra": 1.0}), reporter(observer)))
    assert "no gradient of the logit losses reaches the embeddings" in observer.warnings[0]


def test_a_healthy_gram_is_not_reported(networks):
    student, teacher, _ = networks
    observer = Remembers()
    run_until_measured(Distillation(student, teacher, teacher, LossConfig(), reporter(observer)))
    assert observer.warnings == []
