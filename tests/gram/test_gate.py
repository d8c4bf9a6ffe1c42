"""The gate on real networks: what must fail it, fails it."""

import copy
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
from probes import first, rotate, with_embeddings, with_logits

from edgekd.config.recipe import DistillConfig, GateConfig, TaskConfig, TeacherConfig
from edgekd.gram.distance import GramKind, gram_distance
from edgekd.gram.gate import GateRules, keep_ledger, reference_of, rejected_before
from edgekd.gram.intervals import Bootstrap, Estimate
from edgekd.gram.matrix import SOFTNESS
from edgekd.gram.metric import LabelledSamples, LedgerMetrics
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import Probe
from edgekd.gram.verdict import GateLimits
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.stages.metrics import accuracy
from edgekd.stages.progress import Silent, StageReporter
from edgekd.training.distillation import distill, teacher
from edgekd.training.distillation.losses.logits import cross_entropy
from edgekd.training.loop.evaluate import batches, ground_truth, probe
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import TappedModel, Taps, resolve_taps
from edgekd.training.task.loading import load_task

DEFAULTS = GateConfig()
LIMITS = GateLimits(
    DEFAULTS.tau_pass, DEFAULTS.tau_fail, DEFAULTS.max_flips, DEFAULTS.max_metric_drop, min_learned=0.75
)


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

        def metric(logits, labels):
            return sign * accuracy(logits, labels)

        samples = LabelledSamples(self.labels, None, metric, limits.higher_is_better)
        return keep_ledger(probes, samples.measure(probes, "student"), rules(limits), None)


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
            answers, embeddings = tuned(inputs)
            with torch.no_grad():
                expected = anchored(inputs)[1]
            gram = gram_distance(embeddings, [expected], GramKind("sample"), softness=SOFTNESS)
            logits = answers["logits"]
            loss = cross_entropy(logits, (batch.labels + 1) % logits.shape[1]) + 1000 * gram
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


def rules(limits=LIMITS, kind="classes"):
    return GateRules("accuracy", limits, Bootstrap(resamples=300), {"logits": OutputKind(kind)})


def keep(probes, trained, notes=MappingProxyType({}), limits=LIMITS):
    metrics = LabelledSamples(trained.labels, None, accuracy).measure(probes, reference_of(probes))
    return keep_ledger(probes, metrics, rules(limits), None, notes=notes)


def unlabelled(probes, limits=LIMITS, kind="classes"):
    return keep_ledger(probes, LedgerMetrics(dict.fromkeys(probes)), rules(limits, kind), None)


def permuted(student, modality):
    order = np.random.default_rng(0).permutation(len(student.ids))
    return with_embeddings(student, **{modality: student.embeddings[modality][order]})


def test_the_student_has_learned_what_the_controls_will_break(trained):
    assert accuracy(trained.student.answer, trained.labels) > 0.6
    assert accuracy(trained.random.answer, trained.labels) < 0.3


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
def test_a_broken_structure_with_the_same_answers_warns_and_where_it_counts_fails(trained, control, modality):
    ledger = trained.ledger(control(trained.student, modality))
    row = ledger.row("quantized")
    # Logits are untouched, so neither flips nor the metric can have seen it.
    assert (row.flips, row.metric) == (0, ledger.row("student").metric)
    learned, behaviour, structure = ledger.questions
    assert (learned.verdict, behaviour.verdict, structure.verdict) == ("pass", "pass", "fail")
    assert (ledger.verdict, len(ledger.reasons)) == ("warn", 1)
    assert ledger.reasons[0].startswith("Gram drift")
    assert modality in row.to_reference.worst_pair
    assert row.to_reference.mean > LIMITS.tau_fail
    strict = trained.ledger(control(trained.student, modality), replace(LIMITS, structure="strict"))
    assert (strict.verdict, strict.reasons) == ("fail", ledger.reasons)
    probes = {"float": trained.student, "quantized": control(trained.student, modality)}
    assert unlabelled(probes, kind="embedding").verdict == "fail"


def test_a_random_student_fails_by_everything(trained):
    ledger = trained.ledger(trained.random)
    assert ledger.verdict == "fail"
    assert [reason.split()[0] for reason in ledger.reasons] == ["the", "Gram"]
    assert ledger.reasons[0].startswith("the metric is ")


def test_a_broken_fusion_head_fails_by_its_answers_alone(trained):
    noise = np.random.default_rng(0).normal(0, 3, trained.student.answer.shape).astype(np.float32)
    ledger = trained.ledger(with_logits(trained.student, trained.student.answer + noise))
    assert ledger.verdict == "fail"
    assert ledger.row("quantized").to_reference.bound == 0
    assert [answer.verdict for answer in ledger.questions] == ["pass", "fail", "pass"]
    (reason,) = ledger.reasons
    assert "the metric is" in reason


def test_a_student_that_keeps_its_gram_and_has_lost_its_accuracy_is_refused(trained):
    ledger = trained.ledger(trained.fooling)
    row = ledger.row("quantized")
    assert row.metric < 0.5 < ledger.row("student").metric
    assert 0 < row.to_reference.bound < LIMITS.tau_fail
    assert ledger.verdict == "fail"
    (failure,) = ledger.reasons
    assert "the metric is" in failure
    assert all("Gram" in warning for warning in ledger.warnings)


@pytest.mark.parametrize("where", ["embeddings", "logits"])
def test_what_is_not_a_number_fails(trained, where):
    broken = trained.student.embeddings if where == "embeddings" else trained.student.answer
    if where == "embeddings":
        broken = np.where(np.arange(len(broken["mor"]))[:, None] == 3, np.nan, broken["mor"])
        ledger = trained.ledger(with_embeddings(trained.student, mor=broken))
        assert "embeddings are not numbers" in ledger.reasons[0]
    else:
        ledger = trained.ledger(with_logits(trained.student, np.full_like(broken, np.nan)))
        assert "outputs are not numbers" in ledger.reasons[0]
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
    ledger = keep_ledger(probes, LedgerMetrics(dict.fromkeys(probes)), rules(), None, before)
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
    with pytest.raises(ValueError, match=r"one of \('student', 'float', 'given'\), but has \['teacher', 'device'\]"):
        keep({"teacher": trained.teacher, "device": trained.student}, trained)


def test_without_labels_the_outputs_and_drift_gate(trained):
    def ledger(changed):
        return unlabelled({"student": trained.student, "quantized": changed})

    assert (ledger(trained.perturbed).verdict, ledger(trained.perturbed).row("quantized").metric) == ("pass", None)
    noise = np.random.default_rng(0).normal(0, 3, trained.student.answer.shape).astype(np.float32)
    broken = ledger(with_logits(trained.student, trained.student.answer + noise))
    assert broken.verdict == "fail"
    assert broken.reasons[0].startswith("KL divergence")
    assert "of the answers changed, more than 5%" in broken.reasons[1]
    assert broken.questions[0].verdict is None
    (reason,) = ledger(permuted(trained.student, "fou")).reasons
    assert "Gram drift" in reason


def test_a_network_that_is_no_classifier_is_held_to_its_numbers(trained):
    maps = trained.student.answer[:, :, None] * np.ones(5, np.float32)
    probes = {"float": with_logits(trained.student, maps), "quantized": with_logits(trained.student, -maps)}
    ledger = unlabelled(probes, kind="regression")
    assert (ledger.verdict, ledger.row("quantized").flips) == ("fail", None)
    assert ledger.reasons[0].startswith("element ") or ledger.reasons[0].startswith("squared error")
    assert unlabelled({**probes, "quantized": probes["float"]}, kind="regression").verdict == "pass"


def test_a_student_at_chance_is_never_released(trained):
    constant = np.zeros_like(trained.student.answer)
    constant[:, 3] = 1
    for useless in (trained.random, with_logits(trained.student, constant)):
        ledger = keep({"teacher": trained.teacher, "student": useless, "device": useless}, trained)
        learned, behaviour, structure = ledger.questions
        assert (learned.verdict, behaviour.verdict, structure.verdict) == ("fail", "pass", "pass")
        (reason,) = ledger.reasons
        assert reason.startswith(("the student learned nothing", "the student is not shown to have learned anything"))
        assert (ledger.verdict, ledger.released) == ("fail", False)
        assert "distill.epochs" in ledger.advice[0]
    imported = keep({"float": trained.random, "device": trained.random}, trained)
    assert (imported.verdict, imported.questions[0].verdict) == ("warn", "warn")  # its labels may be others


def test_where_the_teacher_learned_nothing_either_the_advice_says_so(trained):
    """More epochs for the student would not help; nor would they where a constant answer satisfies the metric."""

    def advice(teacher, metric=accuracy, higher_is_better=True):
        probes = {"teacher": teacher, "student": trained.random, "device": trained.random}
        samples = LabelledSamples(trained.labels, None, metric, higher_is_better)
        ledger = keep_ledger(probes, samples.measure(probes, "student"), rules(), None)
        assert ledger.verdict == "fail"
        return ledger.advice[0]

    def recall(logits, labels):
        return float((logits[labels == 0].argmax(axis=1) == 0).mean())

    def misses(logits, labels):
        return 100 - 100 * accuracy(logits, labels)

    at_chance = with_logits(trained.teacher, np.roll(trained.teacher.answer, 1, axis=1))
    for told in (advice(at_chance), advice(trained.teacher, recall), advice(at_chance, misses, higher_is_better=False)):
        assert told.startswith("the teacher is no better than a constant answer either")
        assert "distill.epochs" not in told
    for told in (advice(trained.teacher), advice(trained.teacher, misses, higher_is_better=False)):
        assert told.startswith("the student is what failed")


def test_the_advice_for_an_absent_modality_names_keys_of_what_was_done(trained):
    missing = {"image": Estimate(0.2, 0.15, 0.25)}

    def advice(*stages):
        probes = {"teacher": trained.teacher, "student": trained.student} | dict.fromkeys(stages, trained.student)
        samples = LabelledSamples(trained.labels, None, accuracy).measure(probes, "student")
        ledger = keep_ledger(probes, samples, rules(), None, missing=missing)
        assert ledger.verdict == "warn"
        return ledger.advice[0]

    pruned = advice("finetuned", "exported", "device")
    assert "prune.ratios" in pruned
    assert "quantize" not in pruned
    assert "quantize.repair" in advice("finetuned", "quantized", "device")


def test_a_student_far_behind_its_teacher_warns_with_what_to_try(trained):
    flipped = np.where((np.arange(len(trained.labels)) % 3 == 0)[:, None], -1, 1) * trained.student.answer
    behind = with_logits(trained.student, flipped.astype(np.float32))
    ledger = keep({"teacher": trained.teacher, "student": behind, "device": behind}, trained)
    assert (ledger.verdict, ledger.questions[0].verdict) == ("warn", "warn")
    assert "of the teacher's accuracy above the best constant answer, less than 75%" in ledger.reasons[0]
    assert "distill.epochs" in ledger.reasons[0]


def test_reasons_of_a_failure_never_hold_warnings(trained):
    limits = replace(LIMITS, tau_pass=1e-6)
    noise = np.random.default_rng(0).normal(0, 3, trained.student.answer.shape).astype(np.float32)
    broken = with_logits(trained.perturbed, trained.perturbed.answer + noise)
    ledger = trained.ledger(broken, limits)
    assert ledger.verdict == "fail"
    assert not any("Gram" in reason for reason in ledger.reasons)
    assert any("Gram drift bound" in warning for warning in ledger.warnings)


def test_the_advice_names_the_stage_that_did_it(trained):
    stages = {"student": trained.student, "finetuned": trained.random, "quantized": trained.random}
    said, keys = keep(stages, trained).advice
    assert "from the row 'finetuned' on" in said
    assert "prune.ratio" in keys
    stages = {"student": trained.student, "finetuned": trained.perturbed, "quantized": trained.random}
    said, keys = keep(stages, trained).advice
    assert "from the row 'quantized' on; finetuned did better" in said
    assert "quantize.calibration" in keys
    assert keep({"student": trained.student, "quantized": trained.perturbed}, trained).advice == ()


def test_what_was_rejected_on_other_samples_stays_rejected(trained):
    passing = keep({"student": trained.student, "device": trained.student}, trained)
    failing = keep({"student": trained.student, "device": trained.random}, trained)
    rejected = rejected_before(passing, failing)
    assert (rejected.verdict, rejected.released) == ("fail", False)
    assert rejected.reasons == tuple(f"on the validation samples: {reason}" for reason in failing.reasons)
    assert rejected_before(failing, failing).reasons[: len(failing.reasons)] == failing.reasons


def test_one_modality_is_gated_within_itself(trained):
    def alone(probe):
        return Probe(probe.ids, probe.outputs, {"mor": probe.embeddings["mor"]})

    assert keep({"float": alone(trained.student), "device": alone(trained.perturbed)}, trained).verdict == "pass"
    rotated = {"float": alone(trained.student), "device": rotate(alone(trained.student), "mor")}
    assert keep(rotated, trained).verdict == "pass"
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


def test_few_samples_leave_undecided_what_many_let_pass(trained):
    def ledger(count):
        probes = {"student": trained.student, "quantized": trained.perturbed}
        probes = {name: first(p, count) for name, p in probes.items()}
        metrics = LabelledSamples(trained.labels[:count], None, accuracy).measure(probes, "student")
        return keep_ledger(probes, metrics, rules(), None)

    assert ledger(400).verdict == "pass"
    for count in (1, 2, 4):
        few = ledger(count)
        assert (few.questions[1].verdict, few.verdict == "pass") == ("undecided", False)
        assert f"n = {count} sample" in " ".join(few.reasons + few.warnings)
