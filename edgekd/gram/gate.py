"""The ledger and the gate: what each stage kept, and whether the build may be released."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekd.gram.drift import Bootstrap, Drift, flips, measure_drift

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from edgekd.gram.probe import Probe

Verdict = Literal["pass", "warn", "fail"]

#: Stages in the order of the ledger; those after "student" are gated against the student.
STAGES = ("teacher", "student", "pruned", "exported", "quantized", "engine")
GATED = STAGES[2:]


#: A figure at its limit keeps it: 0.9125 - 0.8975 is a little more than 0.015.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Limits:
    """What a build must keep; see :class:`edgekd.recipe.GateConfig` for each."""

    tau_pass: float
    tau_fail: float
    max_flips: float
    max_metric_drop: float
    higher_is_better: bool = True


@dataclass(frozen=True)
class Row:
    """One stage's line in the ledger.

    Attributes:
        stage: one of :data:`STAGES`.
        metric: the task metric on the probe's samples.
        to_teacher: drift against the teacher: what was learned. None for the teacher itself.
        to_student: drift against the unpruned student: what compression broke. None up to the student.
        flips: share of samples whose top-1 class differs from the student's. None up to the student.
        verdict: None for a stage that is not gated.
        reasons: why it did not simply pass.
    """

    stage: str
    metric: float
    to_teacher: Drift | None
    to_student: Drift | None
    flips: float | None
    verdict: Verdict | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Ledger:
    """The same probe after every stage, with the confidence of its bounds, and the gate's verdict over all of them."""

    metric: str
    limits: Limits
    confidence: float
    rows: tuple[Row, ...]
    verdict: Verdict

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every reason for a warning or a failure, with its stage."""
        return tuple(f"{row.stage}: {reason}" for row in self.rows for reason in row.reasons)

    def row(self, stage: str) -> Row:
        """Return the row of a stage."""
        return next(row for row in self.rows if row.stage == stage)


def keep_ledger(
    probes: Mapping[str, Probe],
    metrics: Mapping[str, float],
    metric: str,
    groups: np.ndarray[Any, Any] | None,
    limits: Limits,
    bootstrap: Bootstrap,
    known: Iterable[Row] = (),
) -> Ledger:
    """Compare the stages' probes and judge them.

    Args:
        probes: by stage, in the order of :data:`STAGES`; "teacher" and "student" must be there.
        metrics: by stage, the task metric on the probe's samples.
        metric: its name.
        groups: each sample's cluster, or None.
        limits: what the build must keep.
        bootstrap: how the drift is bounded.
        known: rows that another ledger of the same probes has already; they are not computed again.

    Raises:
        ValueError: the probes are not of the same samples.
    """
    rows = []
    have = {row.stage: row for row in known}
    for stage in (stage for stage in STAGES if stage in probes):
        if stage in have:
            rows.append(have[stage])
            continue
        probe = probes[stage]
        gated = stage in GATED
        to_teacher = measure_drift(probe, probes["teacher"], groups, bootstrap) if stage != "teacher" else None
        to_student = measure_drift(probe, probes["student"], groups, bootstrap) if gated else None
        flipped = flips(probe, probes["student"]) if gated else None
        verdict: Verdict | None = None
        reasons: tuple[str, ...] = ()
        if to_student is not None and flipped is not None:
            drop = metrics["student"] - metrics[stage]
            verdict, reasons = judge(to_student, flipped, drop if limits.higher_is_better else -drop, limits)
        rows.append(Row(stage, metrics[stage], to_teacher, to_student, flipped, verdict, reasons))
    verdicts = {row.verdict for row in rows}
    overall: Verdict = "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "pass"
    return Ledger(metric, limits, bootstrap.confidence, tuple(rows), overall)


def judge(drift: Drift, flipped: float, metric_drop: float, limits: Limits) -> tuple[Verdict, tuple[str, ...]]:
    """Judge one stage. Drift does not see the fusion head, nor what was trained on it: flips and metric gate too.

    A figure that is not a number fails.

    Args:
        drift: against the unpruned student.
        flipped: share of samples whose top-1 class changed.
        metric_drop: how much worse the task metric is, positive when worse.
        limits: what must be kept.
    """
    failures, warnings = [], []
    if not drift.bound <= limits.tau_fail:
        failures.append(
            f"Gram drift bound {drift.bound:.4f} is above {limits.tau_fail:g} "
            f"(worst pair {drift.worst_pair}, {drift.worst_pair_mean:.4f})"
        )
    elif drift.bound > limits.tau_pass:
        warnings.append(f"Gram drift bound {drift.bound:.4f} is above {limits.tau_pass:g}")
    if not flipped <= limits.max_flips + _ROUNDING:
        failures.append(f"{flipped:.1%} of top-1 classes changed, more than {limits.max_flips:.1%}")
    if not metric_drop <= limits.max_metric_drop + _ROUNDING:
        failures.append(f"the metric is {metric_drop:.4f} worse, more than {limits.max_metric_drop:g}")
    verdict: Verdict = "fail" if failures else "warn" if warnings else "pass"
    return verdict, tuple(failures + warnings)
