"""The gate on real networks: what must fail it, fails it."""

import copy
import math
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
from probes import first, rotate, with_embeddings, with_logits

from edgekd.config.recipe import DistillConfig, GateConfig, TaskConfig, TeacherConfig
from edgekd.gram.distance import GramKind, gram_distance
from edgekd.gram.drift import Drift
from edgekd.gram.gate import GateRules, judge, keep_ledger
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.matrix import SOFTNESS
from edgekd.gram.probe import Probe
from edgekd.gram.verdict import GateLimits
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.stages.labels import accuracy
from edgekd.stages.progress import Silent, StageReporter
from edgekd.training.distillation import distill, teacher
from edgekd.training.distillation.losses.logits import cross_entropy
from edgekd.training.loop.evaluate import batches, ground_truth, probe
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import TappedModel, Taps, resolve_taps
from edgekd.training.task.loading import load_task

DEFAULTS = GateConfig()
LIMITS = GateLimits(DEFAULTS.tau_pass, DEFAULTS.tau_fail, DEFAULTS.max_flips, DEFAULTS.max_metric_drop)


@dataclass(frozen=True)
class Trained:
    task: object
    labels: np.ndarray
    teacher: Probe
    student: Probe
    random: Probe
    perturbed: Probe
    fooling: Probe

    def ledger(self, changed, limits=LIMITS, sign=1):
        probes = {"teacher": self.teacher, "student": self.student, "quantized": changed}
        metrics = {name: sign * accuracy(p.logits, self.labels) for name, p in probes.items()}
        return keep_ledger(probes, metrics, GateRules("accuracy", limits, Bootstrap(resamples=300)), None)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    task = load_task(TaskConfig(name="digits", options={"teacher": {"hidden": [64], "channels": [8, 16], "width": 32}}))
    report = StageReporter(Silent(), "test")
    taps = Taps(*[resolve_taps("student", {}, task.task.student_taps, task.modalities)] * 2)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("teacher", "student")}
    teacher.run(task, taps.teacher, TeacherConfig(epochs=4), StageRun(0, folders["teacher"], report))
    network = load_weights(build(task.task.teacher, 0), folders["teacher"] / WEIGHTS)
    distill.run(task, network, taps, DistillConfig(epochs=4), StageRun(0, folders["student"], report))
    student = load_weights(build(task.task.student, 0), folders["student"] / WEIGHTS)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1 + 0.003 * torch.randn_like(parameter))
    test = task.splits["test"]
    return Trained(
        task=task,
        labels=ground_truth(test).labels,
        teacher=Probe.load(folders["teacher"] / PROBE),
        student=Probe.load(folders["student"] / PROBE),
        random=probe(build(task.task.student, 7), taps.student, test),
        perturbed=probe(student, taps.student, test),
        fooling=probe(taught_wrong(task, student, taps.student), taps.student, test),
    )


def taught_wrong(task, student, taps):
    """Fine-tune on the label after the right one, anchored to the Gram of before."""
    anchor = copy.deepcopy(student).eval()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    with TappedModel(student.train(), taps) as tuned, TappedModel(anchor, taps) as anchored:
        for batch in [*batches(task.splits["train"])] * 20:
            inputs = list(batch.inputs.values())
            logits, embeddings = tuned(inputs)
            with torch.no_grad():
                expected = anchored(inputs)[1]
            gram = gram_distance(embeddings, [expected], GramKind("sample"), softness=SOFTNESS)
            loss = cross_entropy(logits, (batch.labels + 1) % logits.shape[1]) + 1000 * gram
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


def keep(probes, trained, notes=MappingProxyType({})):
    metrics = {stage: accuracy(probe.logits, trained.labels) for stage, probe in probes.items()}
    return keep_ledger(probes, metrics, GateRules("accuracy", LIMITS, Bootstrap(resamples=300)), None, notes=notes)


def permuted(student, modality):
    order = np.random.default_rng(0).permutation(len(student.ids))
    return with_embeddings(student, **{modality: student.embeddings[modality][order]})


def test_the_student_has_learned_what_the_controls_will_break(trained):
    assert accuracy(trained.student.logits, trained.labels) > 0.6
    assert accuracy(trained.random.logits, trained.labels) < 0.3


def test_an_unchanged_student_passes(trained):
    ledger = trained.ledger(trained.student)
    assert (ledger.verdict, ledger.reasons) == ("pass", ())
    row = ledger.row("quantized")
    assert (row.to_reference.bound, row.flips) == (0, 0)
    assert row.to_teacher == ledger.row("student").to_teacher


def test_a_student_with_slightly_other_weights_passes(trained):
    ledger = trained.ledger(trained.perturbed)
    assert ledger.verdict == "pass"
    assert 0 < ledger.row("quantized").to_reference.mean < ledger.row("quantized").to_reference.bound < LIMITS.tau_pass


@pytest.mark.parametrize("modality", ["fou", "mor", "zer"])
@pytest.mark.parametrize("control", [permuted, rotate], ids=["shuffled pairs", "rotated modality"])
def test_a_broken_structure_fails_by_its_gram_alone(trained, control, modality):
    ledger = trained.ledger(control(trained.student, modality))
    assert ledger.verdict == "fail"
    row = ledger.row("quantized")
    # Logits are untouched, so neither flips nor the metric can have seen it.
    assert (row.flips, row.metric) == (0, ledger.row("student").metric)
    assert len(ledger.reasons) == 1
    assert ledger.reasons[0].startswith("Gram drift bound")
    assert modality in row.to_reference.worst_pair
    assert row.to_reference.bound > 2 * LIMITS.tau_fail


def test_a_random_student_fails_by_everything(trained):
    ledger = trained.ledger(trained.random)
    assert ledger.verdict == "fail"
    assert [reason.split()[0] for reason in ledger.reasons] == ["Gram", f"{ledger.row('quantized').flips:.1%}", "the"]


def test_a_broken_fusion_head_fails_by_flips_and_metric(trained):
    noise = np.random.default_rng(0).normal(0, 3, trained.student.logits.shape).astype(np.float32)
    ledger = trained.ledger(with_logits(trained.student, trained.student.logits + noise))
    assert ledger.verdict == "fail"
    assert ledger.row("quantized").to_reference.bound == 0
    assert "of top-1 classes changed, more than 3%" in ledger.reasons[0]
    assert "the metric is" in ledger.reasons[1]


def test_a_student_that_keeps_its_gram_and_has_lost_its_accuracy_is_refused(trained):
    ledger = trained.ledger(trained.fooling)
    row = ledger.row("quantized")
    assert row.metric < 0.5 < ledger.row("student").metric
    assert 0 < row.to_reference.bound < LIMITS.tau_fail
    assert ledger.verdict == "fail"
    failures = [reason for reason in ledger.reasons if "Gram" not in reason]
    assert ["top-1 classes changed" in failures[0], "the metric is" in failures[1]] == [True, True]


@pytest.mark.parametrize("where", ["embeddings", "logits"])
def test_what_is_not_a_number_fails(trained, where):
    broken = getattr(trained.student, where)
    if where == "embeddings":
        broken = np.where(np.arange(len(broken["mor"]))[:, None] == 3, np.nan, broken["mor"])
        ledger = trained.ledger(with_embeddings(trained.student, mor=broken))
        assert "Gram drift bound nan is above" in ledger.reasons[0]
    else:
        ledger = trained.ledger(with_logits(trained.student, np.full_like(broken, np.nan)))
        assert "top-1 classes changed" in ledger.reasons[0]
    assert ledger.verdict == "fail"


def test_between_the_two_limits_it_warns(trained):
    bound = trained.ledger(trained.perturbed).row("quantized").to_reference.bound
    ledger = trained.ledger(trained.perturbed, replace(LIMITS, tau_pass=bound / 2, tau_fail=bound * 2))
    assert ledger.verdict == "warn"
    assert ledger.reasons == (f"Gram drift bound {bound:.4f} is above {bound / 2:g}",)


def test_of_several_stages_what_ships_counts(trained):
    probes = {
        "teacher": trained.teacher,
        "student": trained.student,
        "finetuned": trained.random,
        "device": trained.student,
    }
    ledger = keep(probes, trained)
    assert [(row.stage, row.verdict) for row in ledger.rows] == [
        ("teacher", None),
        ("student", None),
        ("finetuned", "fail"),
        ("device", "pass"),
    ]
    assert (ledger.verdict, ledger.reasons) == ("pass", ())
    assert keep({**probes, "device": trained.random}, trained).verdict == "fail"


def test_the_network_just_cut_is_shown_and_not_judged(trained):
    ledger = keep({"student": trained.student, "cut": trained.random, "finetuned": trained.student}, trained)
    row = ledger.row("cut")
    assert row.to_reference.bound > LIMITS.tau_fail
    assert row.flips > LIMITS.max_flips
    assert (row.verdict, row.reasons) == (None, ())
    assert ledger.verdict == "pass"


def test_the_order_of_the_stages_is_that_of_the_probes(trained):
    stages = ["student", "quantized", "repair 1", "repair 2", "device"]
    notes = {"repair 1": "encoders.fou.0 to float32"}
    ledger = keep(dict.fromkeys(stages, trained.student), trained, notes)
    assert [(row.stage, row.note) for row in ledger.rows] == [(stage, notes.get(stage, "")) for stage in stages]


def test_rows_that_are_known_are_not_computed_again(trained):
    before = keep({"student": trained.student, "finetuned": trained.random}, trained).rows
    probes = {"student": trained.student, "finetuned": trained.random, "device": trained.student}
    ledger = keep_ledger(probes, dict.fromkeys(probes), GateRules("accuracy", LIMITS, Bootstrap()), None, before)
    assert ledger.rows[:2] == before
    assert (ledger.row("device").verdict, ledger.verdict) == ("pass", "pass")


def test_a_network_that_was_imported_is_its_own_reference(trained):
    ledger = keep({"float": trained.student, "quantized": trained.perturbed}, trained)
    assert ledger.reference == "float"
    row, quantized = ledger.rows
    assert (row.verdict, row.to_reference, row.flips, row.to_teacher) == (None, None, None, None)
    assert quantized.to_teacher is None
    assert (quantized.verdict, quantized.to_reference.bound > 0) == ("pass", True)


def test_a_ledger_without_a_reference_is_refused(trained):
    with pytest.raises(ValueError, match=r"one of \('student', 'float'\), but has \['teacher', 'device'\]"):
        keep({"teacher": trained.teacher, "device": trained.student}, trained)


def test_without_labels_flips_and_drift_gate(trained):
    def ledger(changed):
        probes = {"student": trained.student, "quantized": changed}
        return keep_ledger(probes, dict.fromkeys(probes), GateRules("accuracy", LIMITS, Bootstrap(resamples=300)), None)

    assert (ledger(trained.perturbed).verdict, ledger(trained.perturbed).row("quantized").metric) == ("pass", None)
    noise = np.random.default_rng(0).normal(0, 3, trained.student.logits.shape).astype(np.float32)
    (reason,) = ledger(with_logits(trained.student, trained.student.logits + noise)).reasons
    assert "of top-1 classes changed" in reason
    (reason,) = ledger(permuted(trained.student, "fou")).reasons
    assert "Gram drift bound" in reason


def test_a_network_that_is_no_classifier_is_gated_by_drift_and_metric(trained):
    maps = np.ones((len(trained.student), 4, 5), np.float32)
    probes = {"float": with_logits(trained.student, maps), "quantized": with_logits(trained.student, -maps)}
    ledger = keep_ledger(probes, dict.fromkeys(probes, 0.5), GateRules("mAP", LIMITS, Bootstrap(resamples=300)), None)
    assert (ledger.verdict, ledger.row("quantized").flips) == ("pass", None)
    ledger = keep_ledger(
        probes, {"float": 0.5, "quantized": 0.4}, GateRules("mAP", LIMITS, Bootstrap(resamples=300)), None
    )
    assert ledger.reasons == ("the metric is 0.1000 worse, more than 0.015",)


def test_one_modality_is_gated_within_itself(trained):
    def alone(probe):
        return Probe(probe.ids, probe.logits, {"mor": probe.embeddings["mor"]})

    assert keep({"float": alone(trained.student), "device": alone(trained.perturbed)}, trained).verdict == "pass"
    assert (
        keep({"float": alone(trained.student), "device": rotate(alone(trained.student), "mor")}, trained).verdict
        == "pass"
    )
    ledger = keep({"float": alone(trained.student), "device": alone(permuted(trained.student, "mor"))}, trained)
    assert ledger.row("device").to_reference.scope == "intra"
    (reason,) = ledger.reasons
    assert "(worst modality mor, " in reason


def test_a_metric_may_be_better_when_lower(trained):
    lower = replace(LIMITS, higher_is_better=False)
    # Negated accuracy: a random student's is higher, which is worse.
    assert any("the metric is" in reason for reason in trained.ledger(trained.random, lower, sign=-1).reasons)
    # Plain accuracy read as an error: a random student's is lower, which is better.
    assert not any("the metric is" in reason for reason in trained.ledger(trained.random, lower).reasons)


def test_few_samples_fail_where_many_pass(trained):
    def verdict(count):
        probes = {"teacher": trained.teacher, "student": trained.student, "quantized": trained.perturbed}
        probes = {name: first(p, count) for name, p in probes.items()}
        return keep_ledger(
            probes, dict.fromkeys(probes, 1.0), GateRules("accuracy", LIMITS, Bootstrap(resamples=300)), None
        ).verdict

    assert verdict(400) == "pass"
    assert verdict(1) == "fail"


def drift_with(bound):
    return Drift(0.001, bound, "a-b", 0.002, 0.0, None, None, 100, None, "sample")


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
        (0, None, None, "pass"),
        (0, None, 1, "fail"),
        (0, 1, None, "fail"),
        (math.nan, None, None, "fail"),
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
