"""The page of one build, in the order in which a reader asks: does it pass, how good is it, why, how was it made?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.report import format as formats
from edgekd.report.build.details import details_html
from edgekd.report.build.latency_tables import latency_table, measurement_lines, method_notes
from edgekd.report.build.markdown import MEANING, facts_table, run_lines, stages_table, training_table
from edgekd.report.build.robustness import robustness_table
from edgekd.report.build.training_picture import training_figure
from edgekd.report.compare.checks import tiles_html
from edgekd.report.compare.html import reason_list, table_html, verdict_badge
from edgekd.report.compare.questions import question_cards
from edgekd.report.compare.sections import gram_pictures, ledger_html, ledger_pictures, time_pictures
from edgekd.report.escape import escape
from edgekd.report.ledger_tables import candidate_table, choice_sentence, ledger_table, pruning_table, undecided_note
from edgekd.report.results import SHIPPED
from edgekd.report.table import describe, engine_table, legend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekd.report.compare.rows import Entry
    from edgekd.report.results import BuildReport, TargetResult
    from edgekd.report.table import Table


def build_header(report: BuildReport) -> list[str]:
    """Return the project's name with the verdict of the build, and what was built."""
    return [
        f"<h1>{escape(report.name)} {verdict_badge(report.verdict)}</h1>",
        f"<p>{escape(MEANING[report.verdict].capitalize())}. Recipe {escape(report.recipe)}, seed {report.seed}.</p>",
    ]


def target_section(index: int, entry: Entry, result: TargetResult, alone: bool) -> str:
    """Return what a reader asks about one target: the verdict first, then each figure, then what stands behind it.

    Args:
        index: Number of the target's row in the table.
        entry: The row, and what stands behind it.
        result: What the build says of the target.
        alone: Whether it is the only target, which needs no number.
    """
    number = "" if alone else f'<span class="number">{index}</span> '
    parts = [
        f'<section data-row="{index}" aria-labelledby="row-{index}">',
        f'<h2 id="row-{index}">{number}{escape(describe(result))} {verdict_badge(result.verdict)}</h2>',
        *_verdict(result),
        tiles_html(entry),
        question_cards(index, entry.ledger),
        *_run(result),
        *_part(
            "What each stage kept, and the limits",
            [ledger_html(index, entry), *_pictures(ledger_pictures(index, entry))],
        ),
        *details_html(index, result.details),
        *_part("How fast and how small", _speed(index, entry, result)),
        *_candidates(index, result),
        *_part("Gram matrices", gram_pictures(index, entry)),
        "</section>",
    ]
    return "\n".join(parts)


def _verdict(result: TargetResult) -> Iterator[str]:
    """Yield the reasons of the verdict, where the bundle is, and what else is to say of the engine."""
    path = result.shown_bundle
    where = f"The bundle is {path}" if result.released else f"No bundle was released; what was rejected is {path}"
    yield reason_list(result.reasons)
    yield from _list("Warnings", tuple(filter(None, (undecided_note(result), *result.warnings, result.remark))))
    yield from _list("Where it began, and what to change", result.ledger.advice)
    yield f"<p>{escape(f'{where}. {choice_sentence(result)}')}</p>"
    if result.facts:
        yield f"<p>{escape(' '.join(f'{fact}.' if fact[-1:] != '.' else fact for fact in result.facts))}</p>"


def _list(head: str, told: Sequence[str]) -> Iterator[str]:
    """Yield sentences under a word or two; nothing where there is none."""
    if told:
        yield f'<p class="aside">{escape(head)}</p>{reason_list(told, "told")}'


def _run(result: TargetResult) -> Iterator[str]:
    """Yield the lines that run the bundle in an application."""
    if result.released:
        code = "\n".join(map(escape, run_lines(result.shown_bundle)))
        lines = f'<pre tabindex="0" aria-label="Python that runs the bundle">{code}</pre>'
        yield from _part("Run it, from the folder of this page", [lines])


def _speed(index: int, entry: Entry, result: TargetResult) -> Iterator[str]:
    yield table_html(engine_table(result), f"Engines {index}")
    yield from _pictures(time_pictures(index, entry))
    shipped = result.measured(SHIPPED)
    if result.profile and shipped:
        yield f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in measurement_lines(shipped))}</ul>"
        latencies = table_html(latency_table(result.profile, method_notes(result.profile)), f"Latencies {index}")
        yield _details("Every latency with its interval", latencies)


def _candidates(index: int, result: TargetResult) -> Iterator[str]:
    if len(result.candidates) > 1:
        yield from _part("Candidates, and which ships", [table_html(candidate_table(result), f"Candidates {index}")])


def common_sections(report: BuildReport, entries: Sequence[Entry]) -> Iterator[str]:
    """Yield what all targets share: who refused, robustness, training, how the build ran, what the words mean."""
    if report.refused:
        reasons = reason_list(tuple(f"{target}: {reason}" for target, reason in report.refused.items()))
        yield _section("refused", "What was not built", [reasons])
    if report.warnings:
        yield _section("warned", "What looked odd on the way", [reason_list(report.warnings)])
    robustness = table_html(robustness_table(report), "Robustness")
    yield _section("robustness", "What if a sensor fails", [robustness])
    yield _section("trained", "How it was trained", _training(report))
    if report.pruning:
        yield _section(
            "pruned", "How it was pruned", [table_html(pruning_table(report.pruning), "Attempts at pruning")]
        )
    yield _section("built", "How it was built", _made(report))
    meanings = legend(*(ledger_table(entry.ledger) for entry in entries), *(map(engine_table, report.targets)))
    yield _section("meanings", "How to read the tables", [definitions(meanings)])


def definitions(table: Table) -> str:
    """Return names and their meanings as a list of definitions."""
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in table.rows)
    return f"<dl>{pairs}</dl>"


def _training(report: BuildReport) -> Iterator[str]:
    """Yield a picture for each network that was trained, and the figures of its kept epoch."""
    if not report.training:
        yield "<p>Nothing was trained in this build.</p>"
        return
    metric = report.targets[0].ledger.metric if report.targets else "metric"
    yield '<div class="pictures">'
    for index, (name, history) in enumerate(report.training.items(), 1):
        epochs = f"{len(history)} epoch{'s' * (len(history) != 1)}"
        picture = training_figure(f"training-{index}", name, history, metric)
        yield f"<div><h3>{escape(name)}, {epochs}</h3>{picture}</div>"
    yield "</div>"
    yield _details("The kept epoch in figures", table_html(training_table(report), "Training"))


def _made(report: BuildReport) -> Iterator[str]:
    """Yield stages with their times, the machines that measured, and the versions of the libraries."""
    yield "<h3>Stages</h3>"
    yield table_html(stages_table(report), "Stages")
    machines: dict[str, dict[str, str]] = {}
    for result in report.targets:
        if result.profile:
            machines.setdefault(result.device, result.profile.machine)
    yield '<div class="pictures">'
    for device, facts in machines.items():
        yield f"<div><h3>Machine: {escape(device)}</h3>{table_html(facts_table('', facts), f'Machine {device}')}</div>"
    yield f"<div><h3>Versions</h3>{table_html(facts_table('', report.versions), 'Versions')}</div></div>"
    errors = ", ".join(
        f"{result.target} {formats.number(result.deploy_logit_error, '.3g')}" for result in report.targets
    )
    yield (
        "<p>Largest difference between the logits of deploy.onnx, which has no embedding outputs, and those of the "
        f"graph with them, on the test samples: {escape(errors)}.</p>"
    )


def _part(head: str, content: Iterator[str] | Sequence[str]) -> list[str]:
    return [f"<h3>{escape(head)}</h3>", *content]


def _pictures(pictures: Iterator[str]) -> list[str]:
    return ['<div class="pictures">', *pictures, "</div>"]


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _section(name: str, head: str, content: Iterator[str] | Sequence[str]) -> str:
    parts = [f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(head)}</h2>', *content, "</section>"]
    return "\n".join(parts)
