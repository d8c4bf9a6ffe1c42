"""Tables of what the gate judged: the ledger, the three questions, the candidates, and the attempts at pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.gram.verdict import QUESTIONS
from edgekd.report.format import NOTHING, duration, milliseconds, number, percent, share, size, small
from edgekd.report.questions import evidence_of
from edgekd.report.table import BOUND, Column, Table, figure_columns, metric_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.gram.gate import Ledger, LedgerRow
    from edgekd.gram.output_kind import OutputName
    from edgekd.gram.verdict import Answered
    from edgekd.report.questions import EvidenceName
    from edgekd.report.results import TargetResult
    from edgekd.stages.trained import PruneAttempt

#: The column of each kind of output's divergence.
_DIVERGENCES: dict[OutputName, str] = {
    "classes": "KL",
    "multilabel": "KL",
    "regression": "error",
    "dense-classes": "KL",
    "sequence-classes": "KL",
    "embedding": "Δcos",
    "custom": "error",
}


def ledger_table(ledger: Ledger, samples: str = "samples") -> Table:
    """Return the table of a ledger: the figures of each stage, the output's first, and what they are held against.

    Args:
        ledger: The ledger.
        samples: What it compares, e.g. "test samples".
    """
    divergence, changed, metric, drift = ledger_columns(ledger).values()
    figures = (divergence.removesuffix(BOUND), divergence, changed, metric, drift.removesuffix(BOUND), drift, "gate")
    columns = figure_columns("stage", *figures)
    rows = (*map(_ledger_row, ledger.rows), _limits_row(ledger))
    if all(row.flips is None for row in ledger.rows):
        place = [column.name for column in columns].index(changed)
        columns = (*columns[:place], *columns[place + 1 :])
        rows = tuple((*row[:place], *row[place + 1 :]) for row in rows)
    return Table("Ledger", columns, rows, _ledger_notes(ledger, samples))


def ledger_columns(ledger: Ledger) -> dict[EvidenceName, str]:
    """Return the column of each figure that the gate judges in the rows of a ledger."""
    return {
        "divergence": _DIVERGENCES[ledger.kind] + BOUND,
        "changed": "nearest" if ledger.kind == "embedding" else "flips",
        "loss": metric_name(ledger.metric),
        "drift": f"drift{BOUND}",
    }


def _ledger_row(row: LedgerRow) -> tuple[str, ...]:
    drift, diverged = row.to_reference, row.first.divergence if row.first else None
    return (
        row.stage,
        small(diverged.mean if diverged else None),
        small(diverged.high if diverged else None),
        percent(row.flips),
        number(row.metric),
        small(drift.mean if drift else None),
        small(drift.bound if drift else None),
        row.verdict or NOTHING,
    )


def _limits_row(ledger: Ledger) -> tuple[str, ...]:
    limits, before = ledger.limits, ledger.row(ledger.reference).metric
    sign, change = ("≥", -limits.max_metric_drop) if limits.higher_is_better else ("≤", limits.max_metric_drop)
    metric = NOTHING if before is None else f"{sign} {before + change:.4f}"
    flips = NOTHING if ledger.kind == "embedding" else f"≤ {limits.max_flips * 100:.3g}%"
    diverged = f"≤ {limits.divergence(ledger.kind):g}"
    return ("limit", NOTHING, diverged, flips, metric, NOTHING, f"≤ {limits.tau_fail:g}", NOTHING)


def _ledger_notes(ledger: Ledger, samples: str) -> tuple[str, ...]:
    last = ledger.rows[-1]
    drift = last.to_reference
    clusters = f" in {drift.clusters} groups" if drift and drift.clusters else ""
    better = "higher" if ledger.limits.higher_is_better else "lower"
    direction = "not measured, there are no labels" if last.metric is None else f"{better} is better"
    counted = f"{ledger.metric}: {direction}; {drift.samples if drift else 0} {samples}{clusters}."
    warns = f"the drift warns above {ledger.limits.tau_pass:g}"
    bounds = f"{BOUND.strip()}: one-sided bounds of {ledger.confidence:.0%}; {warns}."
    ends = [row for row in ledger.rows if row.stage == ledger.reference or row is last]
    learned = [f"{row.stage} {small(row.to_teacher.mean)}" for row in ends if row.to_teacher]
    teacher = (f"Drift from the teacher, not judged: {', '.join(learned)}.",) if learned else ()
    within = ("drift: of the cosines between samples within each tap; the taps do not compare with each other.",)
    repairs = tuple(f"{row.stage}: {row.note}." for row in ledger.rows if row.note)
    first, *others = ledger.kinds
    divergence, changed, *_ = ledger_columns(ledger).values()
    several = (
        f"{divergence.removesuffix(BOUND)} and {changed}: of output '{first}'; the second question has all outputs."
    )
    return (
        counted,
        bounds,
        *([several] if others else []),
        *teacher,
        *(within if drift and drift.scope == "intra" else ()),
        *repairs,
    )


def question_table(ledger: Ledger, answered: Answered) -> Table:
    """Return the table of the figures that the answer to a question rests on, each with its bounds and its limit."""
    rows = tuple(
        (figure.label, figure.write(figure.value), figure.bounds, figure.wanted)
        for figure in evidence_of(ledger, answered)
    )
    names = ("measured", f"{ledger.confidence:.0%} bounds", "limit")
    return Table(QUESTIONS[answered.question], figure_columns("figure", *names), rows)


def candidate_table(result: TargetResult) -> Table:
    """Return the table of candidates, on which samples they were judged, and why one of them ships, or none."""
    figures = (*ledger_columns(result.ledger).values(), "gate", "p50 ms", "size")
    columns = (*figure_columns("candidate", *figures), Column("", right=False))
    rows = tuple(
        (
            candidate.name,
            small(candidate.divergence.high if candidate.divergence else None),
            percent(candidate.flips),
            number(candidate.metric),
            small(candidate.bound),
            candidate.verdict,
            milliseconds(candidate.p50.value_ms) if candidate.p50 else "not measured",
            size(candidate.size_bytes),
            ("ships" if result.released else "shown") if candidate.name == result.chosen else "",
        )
        for candidate in result.candidates
    )
    judged = f"Judged and chosen on {result.chosen_on}; the ledger has what was chosen on the test samples."
    return Table("Candidates", columns, rows, (*([judged] if result.chosen_on else []), choice_sentence(result)))


def choice_sentence(result: TargetResult) -> str:
    """Say which candidate ships, and why; or why none does, and which is shown."""
    if result.released:
        return f"{result.chosen} ships: {result.choice}."
    limits, verdicts = result.ledger.limits, [candidate.verdict for candidate in result.candidates]
    if verdicts and not any(map(limits.releases, verdicts)):
        return f"None ships: {result.choice}. {result.chosen} is shown for analysis."
    return (
        f"None ships: {result.chosen} was chosen ({result.choice}), and the gate rejects it on the test samples. It is "
        "shown for analysis."
    )


def undecided_note(result: TargetResult) -> str | None:
    """Return what became of a build that the samples are too few to judge, and which key says so; None of others."""
    if result.ledger.verdict != "undecided":
        return None
    kept = "released all the same" if result.ledger.released else "not released"
    return f"{kept}, since gate.undecided is '{result.ledger.limits.undecided}'"


def pruning_table(attempts: Sequence[PruneAttempt]) -> Table:
    """Return the table of the attempts at pruning, each judged on the validation split."""
    answers = next((attempt.row.first for attempt in attempts if attempt.row.first), None)
    divergence = _DIVERGENCES[answers.kind if answers else "classes"] + BOUND
    names = ("ratio", "epochs", "parameters", divergence, "flips", f"drift{BOUND}", "gate", "time")
    rows = tuple(_attempt(number, attempt) for number, attempt in enumerate(attempts, 1))
    samples = answers.samples if answers else 0
    judged = f"Judged against the unpruned student on {samples} samples of the validation split."
    reasons = (f"{place}: {attempt.reason}." for place, attempt in enumerate(attempts, 1) if attempt.reason)
    return Table("Attempts at pruning", figure_columns("attempt", *names), rows, (judged, *reasons, *_ratios(attempts)))


def _attempt(place: int, attempt: PruneAttempt) -> tuple[str, ...]:
    row = attempt.row
    return (
        str(place),
        share(attempt.ratio),
        str(attempt.epochs),
        f"{attempt.parameters:,}",
        small(row.first.divergence.high if row.first else None),
        percent(row.flips),
        small(row.to_reference.bound if row.to_reference else None),
        row.verdict or NOTHING,
        duration(attempt.seconds),
    )


def _ratios(attempts: Sequence[PruneAttempt]) -> tuple[str, ...]:
    """Return a sentence on each attempt whose encoders have ratios of their own."""
    return tuple(
        f"{place}: of {', '.join(f'{encoder} {share(ratio)}' for encoder, ratio in attempt.ratios.items())}."
        for place, attempt in enumerate(attempts, 1)
        if attempt.ratios
    )
