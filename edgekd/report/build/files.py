"""The report of a build as files: ``report.json`` for machines, ``report.md`` and ``report.html`` for readers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from edgekd.files import write_text
from edgekd.gram.verdict import QUESTIONS
from edgekd.report.build.markdown import report_markdown
from edgekd.report.build.robustness import robustness_details
from edgekd.report.build.row import build_row
from edgekd.report.build.training_picture import FOLDER, write_pictures
from edgekd.report.escape import json_text
from edgekd.report.questions import evidence_of
from edgekd.report.results import REPORT, SCHEMA_VERSION, BuildReport, TargetResult
from edgekd.report.schema import BudgetResult, QuestionDetails, ReportFile, TargetDetails
from edgekd.runtime.manifest import map_leaves

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.files import JsonObject
    from edgekd.gram.verdict import Answered


#: What :func:`write_report` writes: files, and the folder of the pictures.
REPORT_PLACES = (REPORT, "report.md", "report.html", f"{FOLDER}/")


def write_report(report: BuildReport, folder: Path) -> None:
    """Write ``report.json``, ``report.md`` with its pictures, and ``report.html`` into ``folder``, each atomically.

    The page is made of what was written: it shows what ``edgekd report`` will.
    """
    from edgekd.report.compare.formats import Comparison
    from edgekd.report.compare.page import as_html
    from edgekd.report.compare.read import read_run
    from edgekd.report.compare.rows import sort_entries

    text = json_text(report_json(report), indent=2)
    write_text(folder / REPORT, text + "\n")
    write_pictures(report, folder)
    write_text(folder / "report.md", report_markdown(report))
    write_text(folder / "report.html", as_html(Comparison(sort_entries(read_run(folder), "p50"))))


def report_json(report: BuildReport) -> JsonObject:
    """Return the whole report as JSON values, of the form of :class:`~edgekd.report.schema.ReportFile`.

    Each null in a row has its reason in the row's ``not_measured``, by dotted path. Elsewhere a figure that is not
    finite is null, and ``not_finite`` says what it was.
    """
    content = msgspec.to_builtins(_report_file(report))
    not_finite: dict[str, str] = {}

    def replace(path: str, value: object) -> object:
        if not isinstance(value, float) or math.isfinite(value):
            return value
        not_finite[path] = str(value)
        return None

    content = map_leaves(content, replace)
    return {**content, "not_finite": not_finite}


def _report_file(report: BuildReport) -> ReportFile:
    return ReportFile(
        schema_version=SCHEMA_VERSION,
        recipe=report.recipe,
        task=report.task,
        seed=report.seed,
        verdict=report.verdict,
        released=report.released,
        versions=report.versions,
        rows=tuple(build_row(result) for result in report.targets),
        targets=tuple(_target_details(result) for result in report.targets),
        stages=report.stages,
        training={name: _training(history) for name, history in report.training.items()},
        pruning=report.pruning,
        robustness=robustness_details(report),
        not_finite={},
        refused=report.refused,
    )


def _question(result: TargetResult, answered: Answered) -> QuestionDetails:
    """Return the answer to one question with the figures that it rests on."""
    return QuestionDetails(
        question=answered.question,
        asked=QUESTIONS[answered.question],
        verdict=answered.verdict,
        reasons=answered.reasons,
        figures=evidence_of(result.ledger, answered),
    )


def _training(history: list[dict[str, float]]) -> list[dict[str, float | None]]:
    """Return the epochs with the same figures in each: None for a share that nothing could be held against."""
    names = dict.fromkeys(name for epoch in history for name in epoch)
    names |= dict.fromkeys(name.replace("weight.", "share.", 1) for name in names if name.startswith("weight."))
    return [{name: epoch.get(name) for name in names} for epoch in history]


def _target_details(result: TargetResult) -> TargetDetails:
    """Return what stands behind a target's row."""
    budgets = (
        BudgetResult(check.name, check.unit, check.limit, check.measured, check.kept) for check in result.budget_checks
    )
    return TargetDetails(
        target=result.target,
        bundle=result.bundle,
        sizes_bytes=result.sizes,
        candidates=result.candidates,
        choice=result.choice,
        chosen_on=result.chosen_on,
        questions=tuple(_question(result, answered) for answered in result.ledger.questions),
        facts=result.facts,
        budgets=tuple(budgets),
        ledger=result.ledger,
        profile=result.profile,
        profile_reason=result.profile_reason,
        details=result.details,
    )
