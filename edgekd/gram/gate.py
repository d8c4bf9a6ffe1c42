"""The ledger and the gate: what each stage kept, and whether the build may be released."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from edgekd.gram.drift import Drift, flips, measure_drift

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgekd.gram.intervals import Bootstrap
    from edgekd.gram.probe import Probe

Verdict = Literal["pass", "warn", "fail"]

#: Rows of the ledger: the pruned network just cut, the same after its fine-tune, and what ran on the device.
CUT, FINETUNED, DEVICE = "cut", "finetuned", "device"

#: Rows that are not gated: what compression starts from ("float" is a network that was imported from ONNX), and the
#: network just cut, before its fine-tune. Every other row is gated.
UNGATED = ("teacher", "student", CUT, "float")

#: What compression is measured against: the first of these that there is.
_REFERENCES = ("student", "float")

#: A figure at its limit keeps it: 0.9125 - 0.8975 is a little more than 0.015.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class GateLimits:
    """Limits that a build must keep; see :class:`edgekd.config.recipe.GateConfig` for each."""

    tau_pass: float
    tau_fail: float
    max_flips: float
    max_metric_drop: float
    higher_is_better: bool = True


@dataclass(frozen=True)
class GateRules:
    """How the rows of a ledger are judged.

    Attributes:
        metric: Name of the task metric.
        limits: Limits that the build must keep.
        bootstrap: How the drift is bounded.
    """

    metric: str
    limits: GateLimits
    bootstrap: Bootstrap


@dataclass(frozen=True)
class LedgerRow:
    """One stage's row of the ledger.

    Attributes:
        stage: Name of the row.
        metric: Task metric on the probe's samples; None where it was not measured.
        to_teacher: Drift from the teacher: what was learned. None for the teacher itself, and where there is none.
        to_reference: Drift from the reference: what compression broke. None for the reference and the teacher.
        flips: Share of samples whose top-1 class differs from the reference's; None for the reference and the teacher,
            and where the logits are not a classifier's.
        verdict: Verdict of the gate; None for a row that is not gated.
        reasons: Why it did not simply pass.
        note: What the stage did, e.g. "encoders.accel.conv2 to float32".
    """

    stage: str
    metric: float | None
    to_teacher: Drift | None
    to_reference: Drift | None
    flips: float | None
    verdict: Verdict | None
    reasons: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Ledger:
    """The same probe after every stage, and the gate's verdict.

    Attributes:
        metric: Name of the task metric.
        reference: The row that later ones are measured against: "student", or "float" where there is none.
        limits: Limits that the build must keep.
        confidence: Confidence of the bounds.
        rows: One row for each stage.
        verdict: Verdict on what ships, the last row: rows that a repair has mended do not count.
    """

    metric: str
    reference: str
    limits: GateLimits
    confidence: float
    rows: tuple[LedgerRow, ...]
    verdict: Verdict

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why what ships does not simply pass."""
        return self.rows[-1].reasons

    @property
    def metric_change(self) -> float | None:
        """The metric of what ships less the reference's; None where either was not measured."""
        before = next((row.metric for row in self.rows if row.stage == self.reference), None)
        shipped = self.rows[-1].metric
        return None if shipped is None or before is None else shipped - before

    def row(self, stage: str) -> LedgerRow:
        """Return the row of a stage."""
        return next(row for row in self.rows if row.stage == stage)


def keep_ledger(
    probes: Mapping[str, Probe],
    metrics: Mapping[str, float | None],
    rules: GateRules,
    groups: NDArray[np.generic] | None,
    known: Iterable[LedgerRow] = (),
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Ledger:
    """Compare the probes of the stages and judge them.

    Args:
        probes: The probe of each row, in the order of the ledger, among them "student" or "float".
        metrics: For each row the task metric on the probe's samples; None where it was not measured and does not gate.
        rules: How the rows are judged.
        groups: Cluster of each sample [N]; None where all are independent.
        known: Rows that another ledger of the same probes has already; they are not computed again.
        notes: For some rows what the stage did.

    Raises:
        ValueError: The probes are not of the same samples, or none of them is a reference.
    """
    reference = next((stage for stage in _REFERENCES if stage in probes), None)
    if reference is None:
        raise ValueError(f"a ledger needs a reference, one of {_REFERENCES}, but has {list(probes)}")
    limits, bootstrap = rules.limits, rules.bootstrap
    have = {row.stage: row for row in known}
    rows = []
    for stage, probe in probes.items():
        if stage in have:
            rows.append(have[stage])
            continue
        to_teacher = to_reference = flipped = verdict = None
        reasons: tuple[str, ...] = ()
        if stage != "teacher" and "teacher" in probes:
            to_teacher = measure_drift(probe, probes["teacher"], groups, bootstrap)
        if stage not in ("teacher", reference):
            to_reference = measure_drift(probe, probes[reference], groups, bootstrap)
            flipped = flips(probe, probes[reference])
            if stage not in UNGATED:
                drop = _metric_drop(metrics[reference], metrics[stage], limits)
                verdict, reasons = judge(to_reference, flipped, drop, limits)
        note = notes.get(stage, "")
        rows.append(LedgerRow(stage, metrics[stage], to_teacher, to_reference, flipped, verdict, reasons, note))
    return Ledger(rules.metric, reference, limits, bootstrap.confidence, tuple(rows), rows[-1].verdict or "pass")


def _metric_drop(before: float | None, after: float | None, limits: GateLimits) -> float | None:
    """Return how much worse the metric became, positive when worse; None where it was not measured."""
    if before is None or after is None:
        return None
    return before - after if limits.higher_is_better else after - before


def judge(
    drift: Drift, flipped: float | None, metric_drop: float | None, limits: GateLimits
) -> tuple[Verdict, tuple[str, ...]]:
    """Judge one stage. Drift does not see the fusion head, nor what was trained on it: flips and metric gate too.

    A figure that is not a number fails; one that was not measured is not judged.

    Args:
        drift: Drift from the reference.
        flipped: Share of samples whose top-1 class changed; None where it was not measured.
        metric_drop: How much worse the task metric is, positive when worse; None where it was not measured.
        limits: Limits that must be kept.
    """
    failures, warnings = [], []
    if not drift.bound <= limits.tau_fail:
        worst = "pair" if drift.scope == "sample" else "modality"
        failures.append(
            f"Gram drift bound {drift.bound:.4f} is above {limits.tau_fail:g} "
            f"(worst {worst} {drift.worst_pair}, {drift.worst_pair_mean:.4f})"
        )
    elif drift.bound > limits.tau_pass:
        warnings.append(f"Gram drift bound {drift.bound:.4f} is above {limits.tau_pass:g}")
    if flipped is not None and not flipped <= limits.max_flips + _ROUNDING:
        failures.append(f"{flipped * 100:.3g}% of top-1 classes changed, more than {limits.max_flips * 100:.3g}%")
    if metric_drop is not None and not metric_drop <= limits.max_metric_drop + _ROUNDING:
        failures.append(f"the metric is {metric_drop:.4f} worse, more than {limits.max_metric_drop:g}")
    verdict: Verdict = "fail" if failures else "warn" if warnings else "pass"
    return verdict, tuple(failures + warnings)
