"""The gate on real networks: what must fail it, fails it."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from edgekd.gram.drift import Bootstrap, Drift
from edgekd.gram.gate import Limits, judge, keep_ledger
from edgekd.gram.probe import Probe
from edgekd.learn import distill, teacher
from edgekd.learn.evaluate import probe, truth
from edgekd.learn.result import PROBE, WEIGHTS
from edgekd.learn.taps import Taps, resolve_taps
from edgekd.learn.task import accuracy, load_task
from edgekd.learn.weights import build, load_weights
from edgekd.progress import Silent, StageReporter
from edgekd.recipe import DistillConfig, GateConfig, TaskConfig, TeacherConfig

DEFAULTS = GateConfig()
LIMITS = Limits(DEFAULTS.tau_pass, DEFAULTS.tau_fail, DEFAULTS.max_flips, DEFAULTS.max_metric_drop)


@dataclass(frozen=True)
class Trained:
    task: object
    labels: np.ndarray
    teacher: Probe
    student: Probe
    random: Probe
    perturbed: Probe

    def ledger(self, changed, limits=LIMITS, sign=1):
        probes = {"teacher": self.teacher, "student": self.student, "quantized": changed}
        metrics = {name: sign * accuracy(p.logits, self.labels) for name, p in probes.items()}
        return keep_ledger(probes, metrics, "accuracy", None, limits, Bootstrap(resamples=300))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    task = load_task(TaskConfig(name="digits", options={"teacher": {"hidden": [64], "channels": [8, 16], "width": 32}}))
    report = StageReporter(Silent(), "test")
    taps = Taps(*[resolve_taps("student", {}, task.task.student_taps, task.modalities)] * 2)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("teacher", "student")}
    teacher.run(task, taps.teacher, TeacherConfig(epochs=4), 0, folders["teacher"], report)
    network = load_weights(build(task.task.teacher, 0), folders["teacher"] / WEIGHTS)
    distill.run(task, network, taps, DistillConfig(epochs=4), 0, folders["student"], report)
    student = load_weights(build(task.task.student, 0), folders["student"] / WEIGHTS)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1 + 0.003 * torch.randn_like(parameter))
    test = task.splits["test"]
    return Trained(
        task=task,
        labels=truth(test).labels,
        teacher=Probe.load(folders["teacher"] / PROBE),
        student=Probe.load(folders["student"] / PROBE),
        random=probe(build(task.task.student, 7), taps.student, test),
        perturbed=probe(student, taps.student, test),
    )


def permuted(student, modality):
    order = np.random.default_rng(0).permutation(len(student.ids))
    return replace(student, embeddings={**student.embeddings, modality: student.embeddings[modality][order]})


def rotated(student, modality):
    z = student.embeddings[modality]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(z.shape[1],) * 2))[0]
    return replace(student, embeddings={**student.embeddings, modality: (z @ rotation).astype(np.float32)})


def test_the_student_has_learned_what_the_controls_will_break(trained):
    assert accuracy(trained.student.logits, trained.labels) > 0.6
    assert accuracy(trained.random.logits, trained.labels) < 0.3


def test_an_unchanged_student_passes(trained):
    ledger = trained.ledger(trained.student)
    assert (ledger.verdict, ledger.reasons) == ("pass", ())
    row = ledger.row("quantized")
    assert (row.to_student.bound, row.flips) == (0, 0)
    assert row.to_teacher == ledger.row("student").to_teacher


def test_a_student_with_slightly_other_weights_passes(trained):
    ledger = trained.ledger(trained.perturbed)
    assert ledger.verdict == "pass"
    assert 0 < ledger.row("quantized").to_student.mean < ledger.row("quantized").to_student.bound < LIMITS.tau_pass


@pytest.mark.parametrize("modality", ["fou", "mor", "zer"])
@pytest.mark.parametrize("control", [permuted, rotated], ids=["shuffled pairs", "rotated modality"])
def test_a_broken_structure_fails_by_its_gram_alone(trained, control, modality):
    ledger = trained.ledger(control(trained.student, modality))
    assert ledger.verdict == "fail"
    row = ledger.row("quantized")
    # Logits are untouched, so neither flips nor the metric can have seen it.
    assert (row.flips, row.metric) == (0, ledger.row("student").metric)
    assert len(ledger.reasons) == 1
    assert ledger.reasons[0].startswith("quantized: Gram drift bound")
    assert modality in row.to_student.worst_pair
    assert row.to_student.bound > 2 * LIMITS.tau_fail


def test_a_random_student_fails_by_everything(trained):
    ledger = trained.ledger(trained.random)
    assert ledger.verdict == "fail"
    assert [reason.split()[1] for reason in ledger.reasons] == ["Gram", f"{ledger.row('quantized').flips:.1%}", "the"]


def test_a_broken_fusion_head_fails_by_flips_and_metric(trained):
    noise = np.random.default_rng(0).normal(0, 3, trained.student.logits.shape).astype(np.float32)
    ledger = trained.ledger(replace(trained.student, logits=trained.student.logits + noise))
    assert ledger.verdict == "fail"
    assert ledger.row("quantized").to_student.bound == 0
    assert "of top-1 classes changed, more than 3.0%" in ledger.reasons[0]
    assert "the metric is" in ledger.reasons[1]


@pytest.mark.parametrize("where", ["embeddings", "logits"])
def test_what_is_not_a_number_fails(trained, where):
    broken = getattr(trained.student, where)
    if where == "embeddings":
        broken = {**broken, "mor": np.where(np.arange(len(broken["mor"]))[:, None] == 3, np.nan, broken["mor"])}
        ledger = trained.ledger(replace(trained.student, embeddings=broken))
        assert "Gram drift bound nan is above" in ledger.reasons[0]
    else:
        ledger = trained.ledger(replace(trained.student, logits=np.full_like(broken, np.nan)))
        assert "top-1 classes changed" in ledger.reasons[0]
    assert ledger.verdict == "fail"


def test_between_the_two_limits_it_warns(trained):
    bound = trained.ledger(trained.perturbed).row("quantized").to_student.bound
    ledger = trained.ledger(trained.perturbed, replace(LIMITS, tau_pass=bound / 2, tau_fail=bound * 2))
    assert ledger.verdict == "warn"
    assert ledger.reasons == (f"quantized: Gram drift bound {bound:.4f} is above {bound / 2:g}",)


def test_of_several_stages_the_worst_verdict_counts(trained):
    probes = {
        "teacher": trained.teacher,
        "student": trained.student,
        "pruned": trained.random,
        "engine": trained.student,
    }
    metrics = {name: accuracy(p.logits, trained.labels) for name, p in probes.items()}
    ledger = keep_ledger(probes, metrics, "accuracy", None, LIMITS, Bootstrap(resamples=300))
    assert [(row.stage, row.verdict) for row in ledger.rows] == [
        ("teacher", None),
        ("student", None),
        ("pruned", "fail"),
        ("engine", "pass"),
    ]
    assert ledger.verdict == "fail"
    assert all(reason.startswith("pruned: ") for reason in ledger.reasons)


def test_a_metric_may_be_better_when_lower(trained):
    lower = replace(LIMITS, higher_is_better=False)
    # Negated accuracy: a random student's is higher, which is worse.
    assert any("the metric is" in reason for reason in trained.ledger(trained.random, lower, sign=-1).reasons)
    # Plain accuracy read as an error: a random student's is lower, which is better.
    assert not any("the metric is" in reason for reason in trained.ledger(trained.random, lower).reasons)


def test_few_samples_fail_where_many_pass(trained):
    def few(probe, count):
        z = {name: z[:count] for name, z in probe.embeddings.items()}
        return Probe(probe.ids[:count], probe.logits[:count], z)

    def verdict(count):
        probes = {"teacher": trained.teacher, "student": trained.student, "quantized": trained.perturbed}
        probes = {name: few(p, count) for name, p in probes.items()}
        return keep_ledger(
            probes, dict.fromkeys(probes, 1.0), "accuracy", None, LIMITS, Bootstrap(resamples=300)
        ).verdict

    assert verdict(400) == "pass"
    assert verdict(1) == "fail"


def drift_with(bound):
    return Drift(0.001, bound, "a-b", 0.002, 0.0, None, None, 100, None)


@pytest.mark.parametrize(
    ("bound", "flipped", "drop", "expected"),
    [
        (LIMITS.tau_pass, LIMITS.max_flips, LIMITS.max_metric_drop, "pass"),
        (LIMITS.tau_pass * 1.001, 0, 0, "warn"),
        (LIMITS.tau_fail, 0, -1, "warn"),
        (LIMITS.tau_fail * 1.001, 0, 0, "fail"),
        (0, LIMITS.max_flips * 1.001, 0, "fail"),
        (0, 0, LIMITS.max_metric_drop * 1.001, "fail"),
        (math.nan, 0, 0, "fail"),
        (0, math.nan, 0, "fail"),
        (0, 0, math.nan, "fail"),
    ],
)
def test_limits_are_inclusive_and_nan_is_over_every_one(bound, flipped, drop, expected):
    verdict, reasons = judge(drift_with(bound), flipped, drop, LIMITS)
    assert verdict == expected
    assert len(reasons) == (expected != "pass")


def test_a_figure_at_its_limit_keeps_it():
    # 0.9125 - 0.8975, as two accuracies on 400 samples differ: a little more than 0.015 in binary.
    limits = replace(LIMITS, max_metric_drop=0.015)
    assert limits.max_metric_drop < 0.9125 - 0.8975
    assert judge(drift_with(0.0), limits.max_flips, 0.9125 - 0.8975, limits) == ("pass", ())
