"""The figures behind the three questions of the gate: each with its bounds, its limit, and whether it keeps that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekd.gram.output_kind import MEASURES
from edgekd.gram.verdict import AT_LIMIT, VERDICTS, Verdict, judge_structure
from edgekd.report.format import NOTHING, percent, small

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.gram.gate import Ledger, LedgerRow
    from edgekd.gram.intervals import Estimate
    from edgekd.gram.verdict import Answered

EvidenceName = Literal[
    "metric", "teacher", "constant", "gain", "divergence", "changed", "loss", "error", "missing", "drift", "worst"
]


@dataclass(frozen=True)
class Evidence:
    """One figure that the answer to a question rests on.

    Attributes:
        name: Which figure it is.
        label: What it is, in words.
        value: The figure.
        low: Its lower bound; None where it has none.
        high: Its upper bound; None where it has none.
        limit: Its limit; None where it has none.
        warns: From where on it warns; None where that is its limit, or it has none.
        upper: Whether it may be at most the limit; otherwise it must be at least the limit.
        share: Whether it is a part of a whole, which is written as a percentage.
        verdict: Whether it keeps its limit; None where it has none, or where it did not matter for the answer.
    """

    name: EvidenceName
    label: str
    value: float
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    warns: float | None = None
    upper: bool = True
    share: bool = False
    verdict: Verdict | None = None

    def write(self, value: float) -> str:
        """Write the figure, or a bound of it."""
        return percent(value) if self.share else small(value)

    @property
    def bounds(self) -> str:
        """The bounds in words, e.g. ``"0.0008 to 0.0031"``."""
        ends = [end for end in (self.low, self.high) if end is not None]
        if not ends:
            return NOTHING
        if any(map(math.isinf, ends)):
            return "too few samples"
        return f"at most {self.write(ends[0])}" if self.low is None else " to ".join(map(self.write, ends))

    @property
    def wanted(self) -> str:
        """The limit in words, e.g. ``"≤ 0.02"``."""
        if self.limit is None:
            return NOTHING
        if not self.upper and not self.limit:
            return "> 0"
        limit = f"{self.limit * 100:.3g}%" if self.share else f"{self.limit:.4g}"
        return f"{'≤' if self.upper else '≥'} {limit}"


def evidence_of(ledger: Ledger, answered: Answered) -> tuple[Evidence, ...]:
    """Return the figures that the answer to a question about what ships rests on; none where it was not asked."""
    row, verdict = ledger.rows[-1], answered.verdict
    if verdict is None:
        return ()
    if answered.question == "learned":
        return tuple(_learned(ledger, verdict))
    return tuple(_behaviour(ledger, row, verdict) if answered.question == "behaviour" else _structure(ledger, row))


def row_verdicts(ledger: Ledger, row: LedgerRow) -> dict[EvidenceName, Verdict]:
    """Return the gate's verdict on each figure of a row, by the figure's name; empty where the row is not gated."""
    if row.verdict is None or row.to_reference is None:
        return {}
    found = [*_structure(ledger, row, row.verdict), *_behaviour(ledger, row, row.behaviour or row.verdict)]
    return {figure.name: figure.verdict for figure in found if figure.verdict}


def least_metric(ledger: Ledger) -> float | None:
    """Return the metric from which on the student learned enough; None where that cannot be told."""
    teacher = next((row.metric for row in ledger.rows if row.stage == "teacher"), None)
    if teacher is None or ledger.constant is None:
        return None
    return ledger.constant.metric + ledger.limits.min_learned * (teacher - ledger.constant.metric)


def _learned(ledger: Ledger, verdict: Verdict) -> Iterator[Evidence]:
    higher, constant, least = ledger.limits.higher_is_better, ledger.constant, least_metric(ledger)
    values = {row.stage: row.metric for row in ledger.rows}
    own, teacher = values[ledger.reference], values.get("teacher")
    if own is not None:
        enough = least is not None and (own >= least if higher else own <= least)
        state: Verdict | None = None if least is None else "pass" if enough else verdict
        label = f"{ledger.metric} of the {ledger.reference}"
        yield Evidence("metric", label, own, limit=least, upper=not higher, verdict=state)
    if teacher is not None:
        yield Evidence("teacher", "that of the teacher", teacher)
    if constant is not None:
        always = f"always {constant.answer}"
        yield Evidence("constant", f"that of answering {always}", constant.metric)
        gain = constant.gain
        state = "pass" if gain.low > 0 else verdict
        yield Evidence(
            "gain", f"better than {always} by", gain.mean, gain.low, gain.high, 0.0, None, False, False, state
        )


def _behaviour(ledger: Ledger, row: LedgerRow, verdict: Verdict) -> Iterator[Evidence]:
    limits = ledger.limits
    named = {("" if len(row.answers) == 1 else f"{name}: "): answers for name, answers in row.answers.items()}
    for at, answers in named.items():
        label, limit = f"{at}{MEASURES[answers.kind]}", limits.divergence(answers.kind)
        yield _bounded("divergence", label, answers.divergence, limit, verdict)
        if answers.changed is not None and answers.kind == "embedding":
            near, label = answers.changed, f"{at}nearest that are others"
            yield Evidence("changed", label, near.mean, near.low, near.high, share=True)
        elif answers.changed is not None:
            label = f"{at}answers changed"
            yield _bounded("changed", label, answers.changed, limits.max_flips, verdict, share=True)
    if row.loss is not None:
        yield _bounded("loss", f"{ledger.metric} worse by", row.loss, limits.max_metric_drop, verdict)
    for at, answers in named.items():
        error = answers.error
        yield Evidence("error", f"{at}relative error of a sample", error.mean, error.low, error.high)
    most = limits.max_missing_flips
    for name, changed in row.missing.items():
        state: Verdict = "pass" if changed.mean <= most + AT_LIMIT else "warn"
        label = f"answers changed without {name}"
        yield Evidence("missing", label, changed.mean, changed.low, changed.high, most, share=True, verdict=state)


def _bounded(
    name: EvidenceName, label: str, value: Estimate, limit: float, verdict: Verdict, *, share: bool = False
) -> Evidence:
    """Return a figure that must be at most its limit.

    One that is not shown to be within its limit has the answer's own verdict. Where the answer is "pass" it did not
    matter; where it is "fail" the figure may be within the limit as measured, but for its bound.
    """
    state: Verdict | None = verdict
    if value.high <= limit + AT_LIMIT:
        state = "pass"
    elif verdict == "pass":
        state = None
    elif verdict == "fail" and value.mean <= limit + AT_LIMIT:
        state = "undecided"
    return Evidence(name, label, value.mean, value.low, value.high, limit, share=share, verdict=state)


def _structure(ledger: Ledger, row: LedgerRow, most: Verdict = "fail") -> Iterator[Evidence]:
    """Yield the drift; it is no worse than ``most``: behaviour that stayed excuses structure that moved."""
    drift, limits = row.to_reference, ledger.limits
    if drift is None:
        return
    verdict = min(judge_structure(drift, limits).verdict or "pass", most, key=VERDICTS.index)
    yield Evidence(
        "drift", "Gram drift", drift.mean, None, drift.bound, limits.tau_fail, limits.tau_pass, verdict=verdict
    )
    what = "pair" if drift.scope == "sample" else "modality"
    yield Evidence("worst", f"worst {what}, {drift.worst_pair}", drift.worst_pair_mean)
