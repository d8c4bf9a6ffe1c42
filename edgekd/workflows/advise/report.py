"""An advice as tables, as JSON for programs, and as Markdown for readers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgekd import __version__
from edgekd.files import write_text
from edgekd.report.escape import json_text, markdown_text, one_line
from edgekd.report.format import NOTHING, duration
from edgekd.report.table import Column, Table, markdown, metric_name
from edgekd.runtime.manifest import null_not_finite
from edgekd.workflows.advise.format import MetricFormat, budget_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.files import JsonObject
    from edgekd.workflows.advise.result import Ablation, Advice, Standing

SCHEMA_VERSION = 1

#: Number of characters of a drawn interval, and the characters: line, mean, zero, ends.
_CELLS = 13
_UNICODE, _ASCII = tuple("─●┊├┤"), tuple("-o:[]")


def standings_table(advice: Advice, glyphs: str | None = None) -> Table:
    """Return a table of every loss compared with plain KD, the best first.

    Args:
        advice: The advice.
        glyphs: "unicode" or "ascii" to draw the intervals, None to leave them out.
    """
    base, *others = advice.standings
    ranked = sorted(others, key=lambda standing: -standing.difference.mean if standing.difference else float("inf"))
    metric = metric_name(advice.facts.metric)
    return Table(
        "Losses",
        _columns("loss", metric, "over KD", glyphs),
        _rows([base, *ranked], MetricFormat.of(advice.facts), glyphs),
        _notes(advice),
    )


def ablation_table(advice: Advice, ablation: Ablation, glyphs: str | None = None) -> Table:
    """Return a table of what each pair, or each modality, carries; the part that is missed most comes first."""
    ranked = sorted(ablation.parts.items(), key=lambda item: item[1].difference.mean if item[1].difference else 0.0)
    rows = _rows([standing for _, standing in ranked], MetricFormat.of(advice.facts), glyphs)
    return Table(
        f"What each {ablation.what} carries in {ablation.whole}",
        _columns("without", metric_name(advice.facts.metric), "change", glyphs),
        tuple((part, *row[1:]) for (part, _), row in zip(ranked, rows, strict=True)),
        _ablation_notes(ablation),
    )


def _columns(first: str, metric: str, against: str, glyphs: str | None) -> tuple[Column, ...]:
    drawn = [Column("")] if glyphs else []
    return (Column(first, right=False), Column(metric), Column(against), Column("95 %"), *drawn,
            Column("seeds"), Column("says", right=False))  # fmt: skip


def _rows(standings: Sequence[Standing], scale: MetricFormat, glyphs: str | None) -> tuple[tuple[str, ...], ...]:
    drawn = _draw(standings, _ASCII if glyphs == "ascii" else _UNICODE) if glyphs else None
    return tuple(
        (
            standing.name,
            scale.value(standing.mean),
            scale.signed(standing.difference.mean) if standing.difference else NOTHING,
            scale.ends(standing.difference) if standing.difference else NOTHING,
            *([drawn[index]] if drawn else []),
            str(len(standing.values)),
            "failed" if standing.failure else standing.found or (NOTHING if standing.values else "left out"),
        )
        for index, standing in enumerate(standings)
    )


def _draw(standings: Sequence[Standing], signs: tuple[str, ...]) -> list[str]:
    """Draw the intervals on one scale, which is wide enough for the means; ends beyond the scale are cut off."""
    line, mean, zero, left, right = signs
    found = [standing.difference for standing in standings if standing.difference is not None]
    reach = max((2.0 * abs(d.mean) for d in found), default=0.0)
    reach = max(reach, min((d.high - d.low for d in found), default=0.0)) or 1.0

    def cell(value: float) -> int:
        return round((_CELLS - 1) * (min(max(value / reach, -1), 1) + 1) / 2)

    drawn = []
    for standing in standings:
        cells = [" "] * _CELLS
        if standing.difference is not None:
            low, high = cell(standing.difference.low), cell(standing.difference.high)
            cells[low : high + 1] = line * (high - low + 1)
            cells[low] = left if standing.difference.low >= -reach else line
            cells[high] = right if standing.difference.high <= reach else line
        cells[cell(0)] = zero
        if standing.difference is not None:
            cells[cell(standing.difference.mean)] = mean
        drawn.append("".join(cells))
    return drawn


def _notes(advice: Advice) -> tuple[str, ...]:
    spent, facts, scale = advice.spent, advice.facts, MetricFormat.of(advice.facts)
    base = advice.standings[0].name
    better = "higher" if facts.higher_is_better else "lower"
    notes = [
        f"{facts.metric} ({better} is better) on {facts.labelled} validation samples in the epoch that is kept; the "
        f"teacher's is {scale.value(advice.teacher)}. Each trial has {spent.epochs} of the recipe's "
        f"{spent.recipe_epochs} epochs ({spent.epochs / spent.recipe_epochs:.0%}); more may rank them otherwise.",
        f"over KD: difference to {base}, paired by initial weights and order of batches; intervals are Student's over "
        "seeds, as wide as Holm's correction for all losses asks.",
        _error_note(advice),
    ]
    notes += [f"After {seeds} seeds dropped: {', '.join(names)}." for seeds, names in spent.dropped.items()]
    notes += [f"{standing.name} failed: {standing.failure}" for standing in advice.standings if standing.failure]
    notes.append(
        f"{spent.trials} trials took {duration(spent.seconds)} of {budget_text(spent.budget)}; the first seed is "
        f"{advice.seed}."
    )
    return tuple(notes)


def _error_note(advice: Advice) -> str:
    facts = advice.facts
    of = f"{facts.labelled} samples" + (f" in {facts.groups} groups" if facts.groups else "")
    if advice.error is None:
        return f"All {of} of the validation split are of one group: what holds for it may not hold for another."
    error = MetricFormat.of(facts).signed(advice.error).lstrip("+")
    return (
        f"Not in the intervals: another validation split of {of} would move each metric by {error}"
        f"{MetricFormat.of(facts).unit} (standard error), and differences by some of that."
    )


def _ablation_notes(ablation: Ablation) -> tuple[str, ...]:
    shown = [standing for standing in ablation.parts.values() if standing.difference]
    held = [part for part, standing in ablation.parts.items() if standing.found in ("better", "worse")]
    notes = [f"Below 0: the {ablation.what} carried something; its share of the gradient goes to the others."]
    if shown and not held:
        notes.append(f"All within noise: these trials do not tell which {ablation.what} carries the transfer.")
    return tuple(notes)


def advice_json(advice: Advice) -> JsonObject:
    """Return the advice as JSON values; a number that is not finite is null."""
    content = {"schema_version": SCHEMA_VERSION, "version": __version__, **asdict(advice)}
    for shown, standing in zip(content["standings"], advice.standings, strict=True):
        shown |= {"mean": standing.mean, "found": standing.found}
    plain: JsonObject = null_not_finite(json.loads(json.dumps(content)))
    return plain


def advice_markdown(advice: Advice) -> str:
    """Return the answer, its reasons, the lines to paste, and the tables."""
    verdict = advice.verdict
    parts = [f"# Which loss? {markdown_text(advice.recipe)}", f"**{markdown_text(sentence(verdict.text))}**"]
    parts += map(markdown_text, verdict.reasons)
    if verdict.lines:
        parts.append("\n".join(("```toml", *map(one_line, verdict.lines), "```")))
    if advice.spent.trials:
        parts.append(markdown(standings_table(advice)))
    parts += [
        markdown_text(skipped_note(ablation)) if ablation.skipped else markdown(ablation_table(advice, ablation))
        for ablation in advice.ablations
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def sentence(text: str) -> str:
    """Return the text as a sentence, with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def skipped_note(ablation: Ablation) -> str:
    """Return a sentence that explains why nothing is known of the parts."""
    return f"What each {ablation.what} carries in {ablation.whole} was not tried: {ablation.skipped}."


#: What :func:`write_advice` writes.
ADVICE_PLACES = ("advice.json", "advice.md")


def write_advice(advice: Advice, folder: Path) -> None:
    """Write ``advice.json`` and ``advice.md`` into a folder, each atomically."""
    text = json_text(advice_json(advice), indent=1)
    write_text(folder / "advice.json", text + "\n")
    write_text(folder / "advice.md", advice_markdown(advice))
