"""Distillation with losses of every sort, whole: what is read where, what is trained, what is kept."""

import dataclasses

import pytest
import torch
from small import CONV_TAPS, TAPS, ConvTowers, Remembers, TwoTowers, loaded, reporter
from stopping import Stopped, StopsAfter, stop

from edgekd.config.recipe import DistillConfig, LossConfig, Tap, Term, Training
from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.stages.artifacts import WEIGHTS
from edgekd.training.distillation import distill
from edgekd.training.distillation.loss_registry import shipped_losses
from edgekd.training.distillation.losses.logits import cross_entropy, kd_loss
from edgekd.training.distillation.losses.relations import sp_loss
from edgekd.training.distillation.setup import DistillationNetworks, distillation_setup
from edgekd.training.loop.evaluate import probe
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.weights import build
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import TappedModel, Taps
from edgekd.training.task.protocol import collate

LOSSES = list(shipped_losses())

BOTH = Taps(TAPS, TAPS)


def run(folder, task, teacher, extra, taps=BOTH, observer=None, **config):
    settings = DistillConfig(**{"epochs": 4, "batch_size": 16, "loss": LossConfig(extra=extra), **config})
    return distill.run(task, teacher, taps, settings, StageRun(0, folder, reporter(observer)))


def teacher(seed=1, **options):
    return build(lambda: TwoTowers(**{"width": 12, **options}), seed)


def batch_of(task, count=16):
    return collate([task.splits["train"][index] for index in range(count)])


def test_an_epoch_tells_the_metric_and_the_drift_on_the_validation_split(tmp_path):
    task, network = loaded(), teacher()
    trained = run(tmp_path, task, network, {"intra": 1.0, "sample": 0.1})
    for epoch in trained.history:
        assert {"validation", "drift"} < set(epoch)
    student = build(TwoTowers, 0)
    student.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"])
    val = task.splits["val"]
    ours, theirs = (probe(model, TAPS, val) for model in (student, network))
    assert trained.history[-1]["validation"] == task.metric(ours.answer, val.labels.numpy())
    assert trained.history[-1]["drift"] == pytest.approx(measure_drift(ours, theirs, None, Bootstrap(resamples=1)).mean)


def objective_and_reading(task, models, taps, config, batch):
    with distillation_setup(task, models, taps, config, 0, reporter()) as (objective, _):
        loss, figures = objective(batch, 0.0)
        return objective, loss, figures


def test_own_taps_are_read_and_the_balance_is_measured_there():
    task, student, network = loaded(), build(TwoTowers, 0), teacher()
    own = {side: {name: f"encoders.{name}.0" for name in "ab"} for side in ("student", "teacher")}
    config = LossConfig(extra={"sp": Term(share=2.0, **own)})
    batch = batch_of(task)
    objective, _, figures = objective_and_reading(task, DistillationNetworks(student, network), BOTH, config, batch)

    hidden = {name: Tap(module=f"encoders.{name}.0") for name in "ab"}
    with TappedModel(student, hidden) as ours, TappedModel(network, hidden) as theirs:
        reading, known = (tapped.read(list(batch.inputs.values())) for tapped in (ours, theirs))
    expected = sum(sp_loss(reading.embeddings[name], known.embeddings[name].detach()) for name in "ab") / 2
    assert figures["loss.sp"].item() == pytest.approx(expected.item(), rel=1e-5)
    base = 0.1 * cross_entropy(reading.answers["logits"], batch.labels) + 0.9 * kd_loss(
        reading.answers["logits"], known.answers["logits"].detach(), 4.0
    )

    def norm(loss):
        gradients = torch.autograd.grad(loss, list(reading.outputs.values()), retain_graph=True)
        return torch.cat([gradient.flatten() for gradient in gradients]).norm().item()

    assert objective.balance.weights["sp"] * norm(expected) / norm(base) == pytest.approx(2.0, rel=1e-4)


def test_one_module_pooled_in_two_ways_is_read_in_both():
    task, student, network = loaded(), build(ConvTowers, 0), build(lambda: ConvTowers(12), 1)
    raw = {name: Tap(module=name, pool="spatial") for name in "ab"}
    first = {name: Tap(module=name, pool="first") for name in "ab"}
    extra = {
        "network": Term(loss="sp"),
        "same": Term(loss="sp", student=raw, teacher=raw),
        "other": Term(loss="sp", student=first, teacher=first),
    }
    taps = Taps(CONV_TAPS, CONV_TAPS)
    _, _, figures = objective_and_reading(
        task, DistillationNetworks(student, network), taps, LossConfig(extra=extra), batch_of(task)
    )
    assert torch.equal(figures["loss.network"], figures["loss.same"])
    assert not torch.isclose(figures["loss.network"], figures["loss.other"])


MAPS = {side: {name: Tap(module=name, pool="spatial") for name in "ab"} for side in ("student", "teacher")}
EVERY = {name: Term(**MAPS) if name == "ickd" else 1.0 for name in LOSSES}


def test_every_loss_trains_at_once_with_modalities_missing(tmp_path):
    task = loaded(network=ConvTowers)
    train = task.splits["train"]
    lacking = dataclasses.replace(
        train, present={"a": torch.arange(90) % 3 > 0, "b": torch.arange(90) % 4 > 0}, labels=train.labels
    )
    task = dataclasses.replace(task, splits={**task.splits, "train": lacking})
    observer = Remembers()
    trained = run(tmp_path, task, build(lambda: ConvTowers(12), 1), EVERY, Taps(CONV_TAPS, CONV_TAPS), observer)
    assert {f"loss.{name}" for name in LOSSES} < set(trained.history[-1])
    assert observer.warnings == []
    assert all(trained.history[-1][f"share.{name}"] == pytest.approx(1.0, abs=0.2) for name in LOSSES)


def distil(folder, observer=None):
    """Train with projections that a checkpoint must carry; return the student, the projections and the history."""
    task, student = loaded(), build(lambda: TwoTowers(dropout=0.3), 0)
    config = LossConfig(extra={"fd": Term(warm_up=0.3), "intra": 1.0})
    with distillation_setup(task, DistillationNetworks(student, teacher()), BOTH, config, 5, reporter()) as (
        objective,
        validate,
    ):
        before = [parameter.detach().clone() for parameter in objective.parameters()]
        run_ = Fit(Training(epochs=5, batch_size=16), 5, folder, reporter(observer))
        history = fit(student, objective, task.splits["train"], validate, run_)
        after = [parameter.detach() for parameter in objective.parameters()]
    return [*student.state_dict().values(), *after], history, before


def test_projections_are_trained_and_a_stopped_run_goes_on_with_them_bit_for_bit(tmp_path):
    undisturbed, history, before = distil(tmp_path / "undisturbed")
    projections = undisturbed[-len(before) :]
    assert [tuple(p.shape) for p in projections] == [(12, 8), (12,), (12, 8), (12,)]
    assert not any(torch.equal(p, q) for p, q in zip(projections, before, strict=True))
    assert history[-1]["loss.fd"] < history[0]["loss.fd"]
    with pytest.raises(Stopped):
        distil(tmp_path / "stopped", StopsAfter(2, stop))
    torch.manual_seed(999)
    again, resumed, _ = distil(tmp_path / "stopped")
    assert resumed == history
    assert all(torch.equal(p, q) for p, q in zip(again, undisturbed, strict=True))


def test_the_seed_decides_a_student_that_is_distilled_with_projections(tmp_path):
    for name in ("first", "again"):
        torch.manual_seed(hash(name) % 1000)
        run(tmp_path / name, loaded(), teacher(), {"fitnet": 1.0}, epochs=1)
    assert (tmp_path / "first" / WEIGHTS).read_bytes() == (tmp_path / "again" / WEIGHTS).read_bytes()


def test_a_fine_tune_reads_the_students_table_on_both_sides():
    task, student, kept = loaded(), build(TwoTowers, 0), build(TwoTowers, 3)
    own = {"student": {name: f"encoders.{name}.0" for name in "ab"}, "teacher": TAPS}
    config = LossConfig(extra={"sp": Term(**own)})
    batch = batch_of(task)
    _, _, figures = objective_and_reading(task, DistillationNetworks(student, teacher(), kept), BOTH, config, batch)
    hidden = {name: Tap(module=f"encoders.{name}.0") for name in "ab"}
    with torch.no_grad(), TappedModel(student, hidden) as ours, TappedModel(kept, hidden) as theirs:
        pairs = [tapped(list(batch.inputs.values()))[1] for tapped in (ours, theirs)]
    expected = sum(sp_loss(pairs[0][name], pairs[1][name]) for name in "ab") / 2
    assert figures["loss.sp"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_hooks_are_gone_afterwards():
    task, student, network = loaded(), build(TwoTowers, 0), teacher()
    with distillation_setup(task, DistillationNetworks(student, network), BOTH, LossConfig(), 0, reporter()):
        assert any(module._forward_hooks for module in student.modules())
    for model in (student, network):
        assert not any(module._forward_hooks for module in model.modules())
