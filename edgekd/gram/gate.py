"""The ledger and the gate: what each stage kept, and whether the build may be released."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgekd.gram.answers import Answers, compare_outputs  # msgspec reads their annotations
from edgekd.gram.drift import Drift, measure_drift
from edgekd.gram.intervals import Estimate  # noqa: TC001
from edgekd.gram.metric import ConstantAnswer  # noqa: TC001
from edgekd.gram.output_kind import OutputName  # noqa: TC001  # msgspec reads their annotations
from edgekd.gram.verdict import (
    Answered,
    GateLimits,
    Measured,
    Verdict,
    join_answers,
    judge_behaviour,
    judge_learned,
    judge_structure,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgekd.gram.answers import Sameness
    from edgekd.gram.intervals import Bootstrap
    from edgekd.gram.metric import LedgerMetrics
    from edgekd.gram.output_kind import OutputKind
    from edgekd.gram.probe import Probe

#: Rows of the ledger: the pruned network just cut, the same after its fine-tune, and what ran on the device.
CUT, FINETUNED, DEVICE = "cut", "finetuned", "device"

#: Rows of a model that is built as it is: beside its float reference, and alone, where nothing else is its measure.
AS_IS, GIVEN = "as is", "given"

#: Rows that are not gated: what compression starts from ("float" is a network that was imported from ONNX), and the
#: network just cut, before its fine-tune. Every other row is gated.
UNGATED = ("teacher", "student", CUT, "float", GIVEN)

#: What compression is measured against: the first of these that there is.
_REFERENCES = ("student", "float", GIVEN)

#: Why nothing says what the quantization of a model cost that was given without its float reference.
_ALONE = (
    "nothing was compared with a float network, for none was given (--reference FLOAT.onnx): what its precision costs "
    "is not measured"
)
#: Rows of a ledger in which nothing is INT8.
_FLOAT = {*UNGATED, FINETUNED, "exported", DEVICE}


@dataclass(frozen=True)
class GateRules:
    """How the rows of a ledger are judged.

    Attributes:
        metric: Name of the task metric.
        limits: Limits that the build must keep.
        bootstrap: How means are bounded.
        kinds: What each of the network's outputs is, by name, in order.
        same: The task's own word on which share of each sample's answer changed; None to go by the kinds.
    """

    metric: str
    limits: GateLimits
    bootstrap: Bootstrap
    kinds: Mapping[str, OutputKind]
    same: Sameness | None = None


@dataclass(frozen=True)
class LedgerRow:
    """One stage's row of the ledger.

    Attributes:
        stage: Name of the row.
        metric: Task metric on the probe's samples; None where it was not measured.
        loss: How much worse the metric is than the reference's, positive where it is worse; None for the reference and
            the teacher, and where it was not measured.
        answers: Each output beside the reference's, sample by sample; empty for the reference and the teacher.
        to_teacher: Drift from the teacher: what was learned. None for the teacher itself, and where there is none.
        to_reference: Drift from the reference: what compression broke. None for the reference and the teacher.
        verdict: Verdict of the gate; None for a row that is not gated.
        reasons: The reasons for that verdict.
        warnings: What is less severe than the verdict.
        note: What the stage did, e.g. "encoders.accel.conv2 to float32".
        missing: By modality the share of answers that differ from the reference's where that modality is absent in
            both; empty where that was not measured.
        behaviour: Whether it still answers the same; None for a row that is not gated.
    """

    stage: str
    metric: float | None
    loss: Estimate | None
    answers: dict[str, Answers]
    to_teacher: Drift | None
    to_reference: Drift | None
    verdict: Verdict | None
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    note: str = ""
    missing: dict[str, Estimate] = field(default_factory=dict)
    behaviour: Verdict | None = None

    @property
    def samples(self) -> int:
        """Number of samples that were compared with the reference's; 0 for the reference and the teacher."""
        return self.to_reference.samples if self.to_reference else 0

    @property
    def first(self) -> Answers | None:
        """The first output beside the reference's; None for the reference and the teacher."""
        return next(iter(self.answers.values()), None)

    @property
    def flips(self) -> float | None:
        """Share of the first output's answers that changed, e.g. top-1 classes; None where nothing is decided."""
        return self.first.changed.mean if self.first and self.first.changed else None


@dataclass(frozen=True)
class Ledger:
    """The same probe after every stage, and the gate's verdict.

    Attributes:
        metric: Name of the task metric.
        reference: The row that later ones are measured against: "student", "float" where there is none, or "given",
            a model as it is, of which no float network is known.
        kinds: What each of the network's outputs is, by name, in order.
        limits: Limits that the build must keep.
        confidence: Confidence of the bounds.
        rows: One row for each stage.
        questions: The answers to the three questions about what ships.
        verdict: Verdict on what ships, the last row: rows that a repair has mended do not count.
        reasons: The reasons for that verdict, and no others.
        warnings: What is less severe than the verdict.
        advice: Which stage did it, and what to change; empty where the verdict is "pass".
        constant: The best answer that is always the same; None without labels, or where the network is no classifier.
    """

    metric: str
    reference: str
    kinds: dict[str, OutputName]
    limits: GateLimits
    confidence: float
    rows: tuple[LedgerRow, ...]
    questions: tuple[Answered, ...]
    verdict: Verdict
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    advice: tuple[str, ...]
    constant: ConstantAnswer | None = None

    @property
    def kind(self) -> OutputName:
        """What the first output is."""
        return next(iter(self.kinds.values()))

    @property
    def metric_change(self) -> float | None:
        """The metric of what ships less the reference's; None where either was not measured."""
        before = next((row.metric for row in self.rows if row.stage == self.reference), None)
        shipped = self.rows[-1].metric
        return None if shipped is None or before is None else shipped - before

    @property
    def released(self) -> bool:
        """Whether a build with this verdict is released."""
        return self.limits.releases(self.verdict)

    def row(self, stage: str) -> LedgerRow:
        """Return the row of a stage."""
        return next(row for row in self.rows if row.stage == stage)


def keep_ledger(
    probes: Mapping[str, Probe],
    figures: LedgerMetrics,
    rules: GateRules,
    groups: NDArray[np.generic] | None,
    known: Iterable[LedgerRow] = (),
    notes: Mapping[str, str] = MappingProxyType({}),
    missing: Mapping[str, Estimate] = MappingProxyType({}),
) -> Ledger:
    """Compare the probes of the stages and judge them.

    Args:
        probes: The probe of each row, in the order of the ledger, among them "student" or "float".
        figures: The task metric of the rows, as far as it was measured.
        rules: How the rows are judged.
        groups: Cluster of each sample [N]; None where all are independent.
        known: Rows that another ledger of the same probes has already; they are not computed again.
        notes: For some rows what the stage did.
        missing: Of the last row the share of changed answers with each modality absent.

    Raises:
        ValueError: The probes are not of the same samples, or none of them is a reference.
    """
    reference = reference_of(probes)
    have = {row.stage: row for row in known}
    last = list(probes)[-1]
    rows = []
    for stage in probes:
        if stage in have:
            rows.append(have[stage])
            continue
        absent = dict(missing) if stage == last else {}
        rows.append(_row(stage, probes, figures, rules, groups, notes.get(stage, ""), absent))
    return _judged(rules, reference, figures, tuple(rows))


def rejected_before(ledger: Ledger, before: Ledger) -> Ledger:
    """Return the ledger of what was rejected on other samples already, as which it stays rejected.

    Args:
        ledger: The ledger on the test samples.
        before: The ledger on the validation samples, whose verdict is "fail".
    """
    reasons = tuple(f"on the validation samples: {reason}" for reason in before.reasons)
    if ledger.verdict == "fail":
        return replace(ledger, reasons=(*ledger.reasons, *reasons))
    warnings = (*ledger.reasons, *ledger.warnings)
    return replace(ledger, verdict="fail", reasons=reasons, warnings=warnings, advice=before.advice)


def reference_of(probes: Iterable[str]) -> str:
    """Return which of a ledger's rows the others are measured against.

    Raises:
        ValueError: None of them is a reference.
    """
    names = list(probes)
    reference = next((stage for stage in _REFERENCES if stage in names), None)
    if reference is None:
        raise ValueError(f"a ledger needs a reference, one of {_REFERENCES}, but has {names}")
    return reference


def _row(
    stage: str,
    probes: Mapping[str, Probe],
    figures: LedgerMetrics,
    rules: GateRules,
    groups: NDArray[np.generic] | None,
    note: str,
    missing: dict[str, Estimate],
) -> LedgerRow:
    reference = reference_of(probes)
    metric, loss = figures.values.get(stage), figures.losses.get(stage)
    to_teacher = to_reference = verdict = behaviour = None
    answers: dict[str, Answers] = {}
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    if stage != "teacher" and "teacher" in probes:
        to_teacher = measure_drift(probes[stage], probes["teacher"], groups, rules.bootstrap)
    if stage not in ("teacher", reference):
        to_reference = measure_drift(probes[stage], probes[reference], groups, rules.bootstrap)
        answers = compare_outputs(probes[stage], probes[reference], rules.kinds, groups, rules.bootstrap, rules.same)
        if stage not in UNGATED:
            asked = _ask(Measured(answers, loss, to_reference, missing, figures.gain), rules)
            verdict, reasons, warnings = join_answers(None, *asked, rules.limits, _names(rules))
            behaviour = asked[0].verdict
    return LedgerRow(
        stage, metric, loss, answers, to_teacher, to_reference, verdict, reasons, warnings, note, missing, behaviour
    )


def _ask(measured: Measured, rules: GateRules) -> tuple[Answered, Answered]:
    """Answer the two questions about what compression did: behaviour, and structure."""
    behaviour = judge_behaviour(measured, rules.limits, rules.bootstrap.confidence)
    return behaviour, judge_structure(measured.drift, rules.limits)


def judge(measured: Measured, rules: GateRules) -> tuple[Verdict, tuple[str, ...], tuple[str, ...]]:
    """Judge one row against the reference, whatever the student learned.

    Args:
        measured: What was measured against the reference.
        rules: How it is judged.

    Returns:
        As :func:`edgekd.gram.verdict.join_answers`.
    """
    return join_answers(None, *_ask(measured, rules), rules.limits, _names(rules))


def _names(rules: GateRules) -> list[OutputName]:
    return [kind.name for kind in rules.kinds.values()]


def _judged(rules: GateRules, reference: str, figures: LedgerMetrics, rows: tuple[LedgerRow, ...]) -> Ledger:
    """Return the ledger, whose verdict is on its last row."""
    limits, last = rules.limits, rows[-1]
    learned = judge_learned(rules.metric, figures, reference, limits)
    if last.answers and last.to_reference is not None:
        measured = Measured(last.answers, last.loss, last.to_reference, last.missing, figures.gain)
        behaviour, structure = _ask(measured, rules)
        alone = bool(last.missing) and judge(replace(measured, missing={}), rules)[0] == "pass"
    else:  # what ships is the reference itself
        behaviour, structure, alone = Answered("behaviour", None), Answered("structure", None), False
    if reference == GIVEN and behaviour.verdict in (None, "pass"):
        behaviour = Answered("behaviour", "warn", (_ALONE,), behaviour.figures)
    verdict, reasons, warnings = join_answers(learned, behaviour, structure, limits, _names(rules))
    return Ledger(
        metric=rules.metric,
        reference=reference,
        kinds={name: kind.name for name, kind in rules.kinds.items()},
        limits=limits,
        confidence=rules.bootstrap.confidence,
        rows=rows,
        questions=(learned, behaviour, structure),
        verdict=verdict,
        reasons=reasons,
        warnings=warnings,
        advice=_advice(learned, rows, verdict, figures, alone),
        constant=figures.constant,
    )


def _advice(
    learned: Answered, rows: tuple[LedgerRow, ...], verdict: Verdict, figures: LedgerMetrics, alone: bool
) -> tuple[str, ...]:
    """Say which stage did it, by how much, and which keys of the recipe to change.

    Args:
        learned: Whether the student learned.
        rows: The rows, the last of which ships.
        verdict: The verdict on it.
        figures: The metric of the rows.
        alone: Whether it would pass but for what changed with a modality absent.
    """
    if verdict == "pass":
        return ()
    if learned.verdict == verdict and figures.teacher_gain is not None and figures.teacher_gain <= 0:
        return (
            "the teacher is no better than a constant answer either, so no student can be: first see whether the "
            "labels are right, whether the metric is one that a constant answer satisfies, and teacher.epochs",
        )
    if learned.verdict == verdict:
        what = "failed" if verdict == "fail" else "is behind"
        return (
            f"the student is what {what}, before anything was compressed: more distill.epochs, more data, another "
            "distill.learning_rate, or a wider student",
        )
    if alone:
        stages = {row.stage for row in rows}
        float_alone = FINETUNED in stages and stages <= _FLOAT  # then it was pruning, and no key of INT8 helps
        keys = (
            "less for its branch in prune.ratios"
            if float_alone
            else "quantize.repair = 'best', another quantize.calibration"
        )
        return (
            f"with a modality absent the others no longer hide what compression did: {keys}, or modality dropout in "
            "training",
        )
    first = next((row for row in rows if row.verdict == rows[-1].verdict), None)
    if first is None or rows[-1].verdict in (None, "pass"):
        return ()
    before = [row.stage for row in rows[: rows.index(first)] if row.verdict not in (None, first.verdict)]
    said = f"it is so from the row '{first.stage}' on" + (f"; {', '.join(before)} did better" if before else "")
    return (said, *_keys(first, verdict))


def _keys(row: LedgerRow, verdict: Verdict) -> tuple[str, ...]:
    if verdict == "undecided":
        return (
            "more samples in the split that is judged decide; gate.undecided says whether such a build is released",
        )
    return (_CAUSES.get(row.stage, _INT8),)


#: What to change where a network is rejected from some row on.
_CAUSES = {
    FINETUNED: "the pruned float network did it, before INT8: a smaller prune.ratio, more prune.epochs, or, where its "
    "metric rose, more distill.epochs",
    "qat": "the fine-tune for INT8 did it: more quantize.qat.epochs, or a smaller quantize.qat.learning_rate",
    DEVICE: "the engine on the device did it, not its graph: another quantize.precision, or another version of it",
    AS_IS: "the model was so when it was given: quantize it otherwise, or give the float model and let edgekd do it",
    "exported": "the float network's own graph did it: edgekd blame ranks nothing there; report it",
}

_INT8 = "INT8 did it: quantize.calibration, quantize.repair = 'best', or quantize.precision; edgekd blame ranks"
