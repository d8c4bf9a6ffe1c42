"""A fine-tune that the Gram anchor holds and that learns the wrong classes all the same, on a real task."""

import copy

import pytest
from small import reporter

from edgekd.config.recipe import DistillConfig, GateConfig, LossConfig, QatConfig, TeacherConfig
from edgekd.devices.targets import load_target
from edgekd.gram.gate import GateRules, keep_ledger
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.metric import LabelledSamples, LedgerMetrics
from edgekd.gram.output_kind import OutputKind
from edgekd.gram.probe import Probe
from edgekd.gram.verdict import GateLimits
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.tasks.digits import Digits
from edgekd.training.distillation import distill, teacher
from edgekd.training.loop.evaluate import ground_truth
from edgekd.training.loop.weights import build, load_weights
from edgekd.training.qat import stage as qat
from edgekd.training.stage_run import StageRun
from edgekd.training.taps.taps import Taps, resolve_taps
from edgekd.training.task.loading import LoadedTask
from edgekd.training.task.protocol import ArraySplit

KINDS = {"logits": OutputKind()}
LIMITS = {key: getattr(GateConfig(), key) for key in ("tau_pass", "tau_fail", "max_flips", "max_metric_drop")}

#: Labels alone teach, and no teacher's logits contradict them; the anchor is strong.
POISON = QatConfig(
    epochs=10, learning_rate=2e-3, loss=LossConfig(ce=1, kd=0, extra={"sample": 100.0, "intra": 10.0})
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Teacher and student as they should be, and the student after a fine-tune on labels that are all off by one."""
    digits = Digits()
    task = LoadedTask(digits, digits.splits(), ())
    taps = Taps(*(resolve_taps(kind, {}, digits.student_taps, task.modalities) for kind in ("teacher", "student")))
    folders = {name: tmp_path_factory.mktemp(name) for name in ("teacher", "student", "finetuned")}
    trained = {
        "teacher": teacher.run(task, taps.teacher, TeacherConfig(epochs=5), StageRun(0, folders["teacher"], reporter()))
    }
    network = load_weights(build(digits.teacher, 0), folders["teacher"] / WEIGHTS)
    config = DistillConfig(epochs=10)
    trained["student"] = distill.run(task, network, taps, config, StageRun(0, folders["student"], reporter()))
    student = load_weights(build(digits.student, 0), folders["student"] / WEIGHTS)

    train = task.splits["train"]
    wrong = ArraySplit(train.ids, train.inputs, (train.labels + 1) % len(digits.classes))
    poisoned = LoadedTask(digits, {**task.splits, "train": wrong}, ())
    networks = qat.QatNetworks(network, student, copy.deepcopy(student))
    scheme = load_target("cpu").scheme
    trained["finetuned"] = qat.run(
        poisoned, networks, taps, scheme, POISON, StageRun(0, folders["finetuned"], reporter())
    )

    probes = {name: Probe.load(folder / PROBE) for name, folder in folders.items()}
    labels = ground_truth(task.splits["test"]).labels
    return probes, LabelledSamples(labels, None, task.metric).measure(probes, "student")


def judged(measured, **limits):
    probes, metrics = measured
    return keep_ledger(
        probes, metrics, GateRules("accuracy", GateLimits(**{**LIMITS, **limits}), Bootstrap(), KINDS), None
    )


def test_a_student_that_keeps_its_gram_and_has_lost_its_accuracy_is_refused(measured):
    ledger = judged(measured)
    student, tuned = ledger.row("student"), ledger.row("finetuned")
    assert student.metric > 0.8
    assert tuned.metric < 0.3
    assert tuned.to_reference.bound < GateConfig().tau_pass
    assert ledger.verdict == tuned.verdict == "fail"
    assert {answer.question: answer.verdict for answer in ledger.questions} == {
        "learned": "pass",
        "behaviour": "fail",
        "structure": "pass",
    }
    (reason,) = tuned.reasons
    assert "worse, more than 0.015" in reason


def test_its_gram_alone_would_have_passed(measured):
    behind = {"max_flips": 1.0, "max_metric_drop": 1.0, "max_divergence": 1000.0}
    assert judged(measured, **behind).verdict == "pass"


def test_its_answers_refuse_it_without_labels(measured):
    probes, _ = measured
    rules = GateRules("accuracy", GateLimits(**LIMITS), Bootstrap(), KINDS)
    reasons = keep_ledger(probes, LedgerMetrics(dict.fromkeys(probes)), rules, None).reasons
    assert reasons[0].startswith("KL divergence")
    assert "of the answers changed" in reasons[1]


def test_the_metric_refuses_it_whatever_may_change(measured):
    assert judged(measured, max_flips=1.0, max_divergence=1000.0).verdict == "fail"


def test_where_the_metric_may_fall_its_answers_refuse_it(measured):
    """A metric that may fall as far as it can excuses no changed answer."""
    ledger = judged(measured, max_metric_drop=1.0)
    assert ledger.verdict == "fail"
    assert ledger.reasons[0].startswith("KL divergence")
