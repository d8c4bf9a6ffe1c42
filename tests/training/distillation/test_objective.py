import dataclasses

import pytest
import torch
from msgspec.structs import replace
from small import CONV_TAPS, TAPS, Beside, ConvTowers, Remembers, TwoTowers, reporter, split

from edgekd.config.recipe import LossConfig, Tap, Term, Training
from edgekd.gram.distance import GramKind, gram_distance
from edgekd.gram.matrix import SOFTNESS
from edgekd.stages.labels import UNLABELLED
from edgekd.training.distillation.gradient_balance import GradientBalance
from edgekd.training.distillation.loss_registry import shipped_losses
from edgekd.training.distillation.loss_taps import LossTaps
from edgekd.training.distillation.losses.logits import cross_entropy, kd_loss
from edgekd.training.distillation.objective import DistillationObjective, SupervisedObjective
from edgekd.training.distillation.outputs import BatchOutputs
from edgekd.training.distillation.references import LiveReference, float_outputs
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.taps.taps import TappedModel
from edgekd.training.task.protocol import collate

LOSSES = list(shipped_losses())

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
    tapped = [TappedModel(network, TAPS) for network in networks]
    for one in tapped:
        one.__enter__()
    return tapped


def gram(scope, student, reference):
    return gram_distance(student, [reference], GramKind(scope), softness=SOFTNESS)


def distillation(student, teacher, anchor=None, config=DEFAULT, observer=None):
    reference = LiveReference(teacher)
    kept = reference if anchor is None else LiveReference(anchor)
    where = LossTaps(list(TAPS), student.taps, (anchor or teacher).taps, "teacher" if anchor is None else "student")
    return DistillationObjective(student, reference, kept, config, where, reporter(observer))


def norm_on(loss, tensors):
    gradients = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return torch.sqrt(sum((g**2).sum() for g in gradients if g is not None)).item()


def check_shares(student, anchor, teacher, objective, batch, on):
    """Each Gram's weighted gradient is its share of the logit losses', measured here with autograd."""
    config = objective.config
    with torch.no_grad():
        wanted, reference = teacher(inputs_of(batch))[0]["logits"], anchor(inputs_of(batch))[1]
    reading = student.read(inputs_of(batch))
    tensors = list(on(reading).values())
    base = config.ce * cross_entropy(reading.answers["logits"], batch.labels)
    base = base + config.kd * kd_loss(reading.answers["logits"], wanted, config.temperature)
    for scope, share in config.extra.items():
        ratio = norm_on(gram(scope, reading.embeddings, reference), tensors) / norm_on(base, tensors)
        assert objective.balance.weights[scope] * ratio == pytest.approx(share, rel=1e-4)


def test_each_gram_holds_its_share_of_the_gradient(networks):
    student, teacher, _ = networks
    objective = distillation(student, teacher, config=LossConfig(extra=SHARES))
    for _ in range(5):
        objective(batch(), 0.0)
    check_shares(student, teacher, teacher, objective, batch(), lambda reading: reading.embeddings)


def test_a_pooled_tap_holds_its_share_too(networks):
    _, teacher, _ = networks
    torch.manual_seed(0)
    with TappedModel(ConvTowers(), CONV_TAPS) as student:
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
    logits, wanted = (tapped(inputs_of(batch()))[0]["logits"] for tapped in (student, teacher))
    expected = 0.1 * cross_entropy(logits, batch().labels) + 0.9 * kd_loss(logits, wanted, 4.0)
    assert loss.item() == pytest.approx(expected.item())
    assert set(figures) == {"ce", "kd"}


def test_the_anchor_gives_the_gram_and_the_teacher_the_logits(networks):
    student, teacher, anchor = networks
    _, figures = distillation(student, teacher, anchor, LossConfig(extra={"intra": 1.0}))(batch(), 0.0)
    answers, embeddings = student(inputs_of(batch()))
    logits = answers["logits"]
    grams = {name: float(gram("intra", embeddings, t(inputs_of(batch()))[1]).detach()) for name, t in
             {"teacher": teacher, "anchor": anchor}.items()}  # fmt: skip
    assert float(figures["loss.intra"]) == pytest.approx(grams["anchor"])
    assert float(figures["loss.intra"]) != pytest.approx(grams["teacher"])
    assert float(figures["kd"]) == pytest.approx(kd_loss(logits, teacher(inputs_of(batch()))[0]["logits"], 4.0).item())


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
    loss, figures = SupervisedObjective(networks[0])(batch(), 0.0)
    assert float(loss) == pytest.approx(
        float(cross_entropy(networks[0](inputs_of(batch()))[0]["logits"], batch().labels))
    )
    assert figures == {}


def run_until_measured(objective):
    for _ in range(GradientBalance.FIRST + 1):
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


def test_a_tap_beside_the_way_to_the_logits_is_reported_too(networks):
    _, teacher, _ = networks
    observer = Remembers()
    with TappedModel(Beside(), {name: Tap(module=f"aside.{name}") for name in "ab"}) as student:
        run_until_measured(distillation(student, teacher, config=LossConfig(extra={"intra": 1.0}), observer=observer))
    assert "no gradient of the logit losses reaches the embeddings" in observer.warnings[0]


def test_a_healthy_gram_is_not_reported(networks):
    student, teacher, _ = networks
    observer = Remembers()
    run_until_measured(distillation(student, teacher, observer=observer))
    assert observer.warnings == []


#: One of each loss, where it can be measured on networks with maps.
MAPS = {name: Tap(module=name, pool="spatial") for name in "ab"}
EVERY = {name: Term(loss=name, student=MAPS, teacher=MAPS) if name == "ickd" else Term(loss=name) for name in LOSSES}


class InFull(ConvTowers):
    """Computes in fp32 whatever autocast says, so that what follows is all that it can change."""

    def forward(self, a, b):
        with torch.autocast("cpu", enabled=False):
            return super().forward(a, b)


@pytest.fixture
def with_maps():
    torch.manual_seed(0)
    with TappedModel(InFull(), CONV_TAPS) as student, TappedModel(InFull(12), CONV_TAPS) as teacher:
        yield student, teacher


def test_autocast_changes_no_bit_of_any_loss(with_maps):
    objective = distillation(*with_maps, config=LossConfig(extra=EVERY)).prepare(batch(), 0)
    state = objective.state()
    plain = objective(batch(), 0.5)
    objective.restore(state)
    with torch.autocast("cpu", torch.bfloat16):
        cast = objective(batch(), 0.5)
    assert torch.equal(plain[0], cast[0])
    assert plain[1] == cast[1]
    assert {f"loss.{name}" for name in LOSSES} < set(plain[1])
    assert all(plain[1][f"loss.{name}"].dtype == torch.float32 for name in LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_loss_goes_to_the_student_and_its_projection_alone(with_maps, name):
    student, teacher = with_maps
    config = LossConfig(ce=0, kd=0, extra={name: replace(EVERY[name], weight=1.0)})
    objective = distillation(student, teacher, config=config).prepare(batch(), 0)
    objective(batch(), 0.0)[0].backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(student.model.get_submodule(side).weight.grad.abs().sum() > 0 for side in "ab")
    assert len(objective.parameters()) == {"fd": 4, "fitnet": 4, "ickd": 8}.get(name, 0)
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_a_logged_share_is_the_measured_ratio(networks):
    student, teacher, _ = networks
    config = LossConfig(extra={"intra": Term(weight=3.0), "fd": 0.5, "sample": Term(share=2.0, warm_up=0.5)})
    objective = distillation(student, teacher, config=config).prepare(batch(), 0)
    _, figures = objective(batch(), 0.25)
    reading, known = student.read(inputs_of(batch())), objective.teacher(batch())
    tensors = list(reading.outputs.values())
    seen = BatchOutputs(float_outputs(reading), known.answers, known.networks, batch().labels, {}, batch().labels)
    base = config.ce * cross_entropy(reading.answers["logits"], batch().labels)
    base = base + config.kd * kd_loss(reading.answers["logits"], known.answers["logits"], config.temperature)
    factors = {"intra": 1.0, "fd": 1.0, "sample": 0.5}
    for name, extra in objective.extras.items():
        weighted = objective.balance.weights[name] * factors[name] * extra(seen)
        assert figures[f"share.{name}"] == pytest.approx(norm_on(weighted, tensors) / norm_on(base, tensors), rel=1e-4)
    assert figures["weight.intra"] == 3.0
    assert figures["share.fd"] == pytest.approx(0.5)
    assert figures["share.sample"] == pytest.approx(1.0), "half of its share, half way through the warm-up"


def test_the_schedule_is_in_the_loss(networks):
    student, teacher, _ = networks
    config = LossConfig(extra={"intra": Term(weight=10.0, warm_up=0.5, decay="linear")})
    objective = distillation(student, teacher, config=config)
    for progress, factor in [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 0.5)]:
        loss, figures = objective(batch(), progress)
        expected = 0.1 * figures["ce"] + 0.9 * figures["kd"] + factor * 10 * figures["loss.intra"]
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_frozen_encoders_train_their_head_and_say_that_the_gram_does_nothing(networks, tmp_path):
    student, teacher, _ = networks
    student.model.encoders.requires_grad_(False)
    before = student.model.head[1].weight.clone()
    observer = Remembers()
    objective = distillation(student, teacher, observer=observer)
    run = Fit(Training(epochs=3, batch_size=8), 0, tmp_path, reporter())
    history = fit(student.model, objective, split("train", 48), lambda: {"validation": 0.0}, run)
    assert history[-1]["weight.intra"] == history[-1]["weight.sample"] == 0
    assert "share.intra" not in history[-1], "a share of nothing is no number"
    assert len(observer.warnings) == 2
    assert not torch.equal(student.model.head[1].weight, before)


def test_a_fixed_weight_needs_no_other_loss(networks, tmp_path):
    student, teacher, _ = networks
    observer = Remembers()
    config = LossConfig(ce=0, kd=0, extra={"intra": Term(weight=5.0)})
    objective = distillation(student, teacher, config=config, observer=observer)
    run = Fit(Training(epochs=4, batch_size=8, learning_rate=1e-2), 0, tmp_path, reporter())
    history = fit(student.model, objective, split("train", 48), lambda: {"validation": 0.0}, run)
    assert history[-1]["loss.intra"] < 0.5 * history[0]["loss.intra"]
    assert observer.warnings == []


@pytest.mark.parametrize("labelled", [0, 5], ids=["none", "some"])
def test_samples_without_a_label_learn_from_the_teacher(networks, labelled):
    student, teacher, _ = networks
    full = batch()
    labels = torch.where(torch.arange(12) < labelled, full.labels, UNLABELLED)
    objective = distillation(student, teacher, config=LossConfig(extra={"intra": 1.0, "dkd": 1.0}))
    loss, figures = objective(dataclasses.replace(full, labels=labels, targets=labels), 0.0)
    loss.backward()
    logits = student(inputs_of(full))[0]["logits"]
    expected = cross_entropy(logits[:labelled], full.labels[:labelled]).item() if labelled else 0.0
    assert figures["ce"].item() == pytest.approx(expected)
    assert figures["kd"] > 0
    assert all(p.grad.isfinite().all() and p.grad.any() for p in student.model.parameters())


def test_preparing_moves_no_generator_and_the_seed_decides_projections(networks):
    student, teacher, _ = networks
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(9)
        objective = distillation(student, teacher, config=LossConfig(extra={"fd": 1.0})).prepare(batch(2), seed)
        weights.append(objective.parameters()[0].detach())
        drawn = torch.rand(1)
        torch.manual_seed(9)
        assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].shape == (12, 8)
