"""The report as one Markdown page that a reader can check figure by figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.gram.verdict import QUESTIONS
from edgekd.report.build.latency_tables import branch_table, latency_table, measurement_lines, method_notes
from edgekd.report.build.robustness import robustness_table
from edgekd.report.build.training_picture import FOLDER, file_name
from edgekd.report.details.tables import detail_lines, detail_tables
from edgekd.report.escape import json_text, markdown_code, markdown_text
from edgekd.report.format import NOTHING, duration, number
from edgekd.report.ledger_tables import candidate_table, ledger_table, pruning_table, question_table, undecided_note
from edgekd.report.results import SHIPPED
from edgekd.report.table import Column, Table, describe, engine_table, legend, markdown, summary_table
from edgekd.stages.trained import KEPT, kept_epoch

if TYPE_CHECKING:
    from edgekd.gram.gate import Ledger
    from edgekd.report.results import BudgetCheck, BuildReport, TargetResult
    from edgekd.runtime.measure.results import Profile

#: What each verdict means.
MEANING = {
    "pass": "the engine keeps what the student learned",
    "warn": "usable, with reservations",
    "undecided": "the test samples are too few to tell",
    "fail": "rejected by the gate",
}


def report_markdown(report: BuildReport) -> str:
    """Return the report as Markdown: verdict first, then every figure with its unit, its n and its reference."""
    tables = [table for r in report.targets for table in (ledger_table(r.ledger), engine_table(r))]
    parts = [
        f"# {markdown_text(report.name)}: {report.verdict.upper()}",
        f"Recipe {markdown_code(report.recipe)}, seed {report.seed}. {MEANING[report.verdict].capitalize()}.",
        *(line for result in report.targets for line in _verdict(result)),
        *(f"- **REFUSED** {target}: {reason}" for target, reason in report.refused.items()),
        *(f"- **WARNING** {markdown_text(warning)}" for warning in report.warnings),
        markdown(summary_table(report)),
        *(part for result in report.targets for part in _target(result)),
        markdown(robustness_table(report)).replace("###", "##", 1),
        markdown(legend(*tables)).replace("###", "##", 1),
        "## How it was built",
        markdown(stages_table(report)),
        *([markdown(pruning_table(report.pruning))] if report.pruning else []),
        markdown(training_table(report)),
        *_pictures(report),
        markdown(facts_table("Versions", report.versions)),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def run_lines(bundle: str) -> tuple[str, ...]:
    """Return the Python that runs a bundle."""
    return (
        "import edgekd",
        f"with edgekd.load({json_text(bundle)}) as engine:",
        "    outputs = engine.run(inputs)",
    )


def _verdict(result: TargetResult) -> list[str]:
    """Return the verdict with its reasons, then what is less severe, then what to change."""
    told = [
        *result.reasons,
        *(f"warning: {told}" for told in filter(None, (undecided_note(result), *result.warnings, result.remark))),
        *([f"where it began, and what to change: {advice}"] if (advice := "; ".join(result.ledger.advice)) else []),
    ]
    reasons = "".join(f"\n  - {markdown_text(reason)}" for reason in told)
    path = markdown_code(result.shown_bundle)
    where = f"bundle {path}" if result.released else f"no bundle was released; what was rejected is {path}"
    return [f"- **{result.verdict.upper()}** {markdown_text(result.target)}: {where}{reasons}"]


def _questions(ledger: Ledger) -> list[str]:
    """Return each question that was asked, with its verdict, its figures and the reasons."""
    return [
        part
        for answered in ledger.questions
        if answered.verdict
        for part in (
            f"### {QUESTIONS[answered.question]} {answered.verdict.upper()}",
            markdown(question_table(ledger, answered)).partition("\n")[2],
            "\n".join(f"- {markdown_text(reason)}" for reason in answered.reasons),
        )
        if part.strip()
    ]


def _target(result: TargetResult) -> list[str]:
    parts = [
        f"## {markdown_text(describe(result))}",
        markdown(ledger_table(result.ledger, "test samples")),
        *_questions(result.ledger),
        *_details(result),
        markdown(engine_table(result)),
    ]
    if len(result.candidates) > 1:
        parts.append(markdown(candidate_table(result)))
    parts += ["\n".join(f"- {markdown_text(fact)}" for fact in result.facts)] if result.facts else []
    if result.profile:
        parts += [
            markdown(latency_table(result.profile, _raw(result.target, result.profile))),
            *_more(result, result.profile),
            markdown(facts_table("Machine", result.profile.machine)),
        ]
    checks = [f"- {_kept(check)}: {markdown_text(str(check))}" for check in result.budget_checks]
    if checks:
        parts += ["### Budgets", "\n".join(checks)]
    parts.append(
        "The logits of `deploy.onnx`, which has no embedding outputs, differ from those of `probe.onnx` by "
        f"{number(result.deploy_logit_error, '.3g')} at most on the test samples."
    )
    if result.released:
        heading = "### Run it, from the folder of this file"
        parts.append("\n".join([heading, "", "```python", *run_lines(result.shown_bundle), "```"]))
    return parts


def _details(result: TargetResult) -> list[str]:
    """Return the classes, groups and samples of each output."""
    parts = []
    for name, details in result.details.items():
        of = f" of {markdown_text(name)}" if len(result.details) > 1 else ""
        parts.append(f"### What is right, and what changed{of}")
        parts.append("\n".join(f"- {markdown_text(line)}" for line in detail_lines(details)))
        parts += [markdown(table) for table in detail_tables(details)]
    return parts


def _more(result: TargetResult, profile: Profile) -> list[str]:
    """Return what was measured besides latency: the time by branch of every engine, and the rest of what ships."""
    shipped = result.measured(SHIPPED)
    lines = measurement_lines(shipped) if shipped else ()
    return [markdown(branch_table(profile)), "\n".join(f"- {markdown_text(line)}" for line in lines)]


def _raw(target: str, profile: Profile) -> tuple[str, ...]:
    raw = ", ".join(f"{target}/latency/{engine.raw_file}" for engine in profile.engines)
    return (
        *method_notes(profile),
        f"Every timed inference, in ns: {raw}; of computing alone beside each, .compute.npy.",
    )


def _kept(check: BudgetCheck) -> str:
    if check.measured is None:
        return "**open**"
    return "kept" if check.kept else "**not kept**"


def facts_table(title: str, facts: dict[str, str]) -> Table:
    """Return a table of names and their values."""
    return Table(title, (Column("what", right=False), Column("is", right=False)), tuple(facts.items()))


def training_table(report: BuildReport) -> Table:
    """Return the table of each training's kept epoch: losses, and the weights that kept added ones at their share."""
    kept = {name: kept_epoch(epochs) for name, epochs in report.training.items()}
    figures = dict.fromkeys(figure for epoch in kept.values() for figure in epoch if figure != KEPT)
    cells = (
        (number(epoch[figure], ".4g") if figure in epoch else NOTHING for epoch in kept.values()) for figure in figures
    )
    rows = tuple((figure, *row) for figure, row in zip(figures, cells, strict=True))
    epochs = ", ".join(
        f"{name} {entries.index(kept[name]) + 1} of {len(entries)}" for name, entries in report.training.items()
    )
    note = (
        "Means over the epoch whose weights were kept: "
        f"{epochs or 'none, nothing was trained'}. Every epoch is in report.json."
    )
    return Table("Training", (Column("figure", right=False), *(Column(name) for name in kept)), rows, (note,))


def _pictures(report: BuildReport) -> list[str]:
    """Return the Markdown that shows each training's picture, which lies beside the report."""
    content = "losses, shares of the gradient, validation metric and Gram drift by epoch"
    return [f"![{markdown_text(name)}: {content}]({FOLDER}/{file_name(name)})" for name in report.training]


def stages_table(report: BuildReport) -> Table:
    """Return the table of stages with their times; a stage that was up to date took none in this build."""
    times = ("up to date" if stage.cached else duration(stage.seconds) for stage in report.stages)
    rows = tuple((stage.name, time, stage.summary) for stage, time in zip(report.stages, times, strict=True))
    return Table("Stages", (Column("stage", right=False), Column("time"), Column("outcome", right=False)), rows)
