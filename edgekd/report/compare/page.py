"""The joined table as one HTML page that needs nothing else: no network, no other file, and no script to be read."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.report import figures
from edgekd.report.compare.branches import branches_svg
from edgekd.report.compare.formats import Comparison, long_table, notes, only_metric, several, title
from edgekd.report.compare.grams import gradient, heat_maps, read_grams
from edgekd.report.compare.latencies import latency_svg
from edgekd.report.compare.scatter import scatter_svg, unbeaten_rows
from edgekd.report.compare.stages import drift_svg, metric_svg
from edgekd.report.figures import WORDS
from edgekd.report.results import ENGINE, VERDICTS
from edgekd.report.table import Table, ledger_table, legend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.report.compare.rows import Entry
    from edgekd.report.figures import Figure
    from edgekd.report.row import EngineRow

#: Bytes of all rows' pictures: with more the page would outgrow two megabytes.
_ROOM = 1_500_000

_HERE = Path(__file__).parent
#: Nothing is fetched, whatever a name in a report holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def as_html(joined: Comparison) -> str:
    """Return the page.

    Raises:
        ReportError: what lies beside a report is broken.
    """
    style, script = ((_HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    head = f"edgekd: {title(joined)}"
    sections = _sections(joined)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(head)}</title>",
        f"<style>\n{style}</style></head>",
        "<body>",
        gradient(),
        "<header>",
        f"<h1>{escape(title(joined))}</h1>",
        f"<p>{escape(_lead(joined))}</p></header>",
        "<main>",
        *_engines(joined, len(sections)),
        *_scatters(joined.rows),
        *sections,
        *_meanings(joined),
        "</main>",
        f"<script>\n{script}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _lead(joined: Comparison) -> str:
    """Say in a sentence or two what is to be seen."""
    rows = joined.rows
    if not rows:
        return "No engine is left."
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    told = f"{len(rows)} engine{'s' * (len(rows) > 1)}: "
    told += f"{', '.join(f'{count} {verdict}' for verdict, count in counts.items() if count)}."
    timed = [row for row in rows if row.latency_ms.p50 is not None]
    if len(timed) > 1:
        fastest = min(timed, key=lambda row: row.latency_ms.p50 or 0.0)
        told += f" The fastest is {fastest.target} on {fastest.device}, p50 {figures.FIGURES[0].write(fastest, '')} ms."
    return told


def _sections(joined: Comparison) -> list[str]:
    """Return what stands behind each row, for the first ones that there is room for."""
    sections, room, many = [], _ROOM, several(joined.rows, "run")
    for index, entry in enumerate(joined.entries, 1):
        section = "\n".join(_entry(index, entry, f" Read from {entry.row.run}." if many else ""))
        room -= len(section.encode())
        if room < 0:
            break
        sections.append(section)
    return sections


def _engines(joined: Comparison, pictured: int) -> Iterator[str]:
    """Write the table, with what narrows it down, which needs the script and is hidden without it.

    Args:
        joined: the table.
        pictured: how many of the first rows have pictures.
    """
    rows = joined.rows
    yield '<section aria-labelledby="engines"><h2 id="engines">Engines</h2>'
    yield from _filters(rows)
    yield '<div class="wide" role="region" aria-label="table of engines" tabindex="0">'
    yield '<table id="table" role="table"><caption class="away">Every engine on its device</caption>'
    yield f'<thead role="rowgroup"><tr role="row">{"".join(_heads(joined))}</tr></thead>'
    yield '<tbody role="rowgroup">'
    for index, row in enumerate(rows, 1):
        yield _row(index, row, index <= pictured)
    yield "</tbody></table></div>"
    yield "".join(f"<p>{escape(note)}</p>" for note in notes(joined))
    if len(rows) > pictured:
        yield f"<p>The first {pictured} have pictures below: of all they would make the page larger than 2 MB.</p>"
    yield "</section>"


def _filters(rows: tuple[EngineRow, ...]) -> Iterator[str]:
    yield '<form id="filters" hidden>'
    yield '<label>Name holds <input id="name" type="search" autocomplete="off"></label>'
    yield '<label>p50 at most, ms <input id="p50" type="number" min="0" step="any"></label>'
    if metric := only_metric(rows):
        bound = "least" if next(row.metric.higher_is_better for row in rows if row.metric.name == metric) else "most"
        field = f'<input id="metric" type="number" step="any" data-bound="{bound}">'
        yield f"<label>{escape(metric)} at {bound} {field}</label>"
    options = "".join(f"<option{' selected' if verdict == 'fail' else ''}>{verdict}</option>" for verdict in VERDICTS)
    yield f'<label>Verdict at worst <select id="verdict">{options}</select></label>'
    yield '<p id="shown" role="status"></p></form>'


def _heads(joined: Comparison) -> Iterator[str]:
    """Write the column heads; the keys of figures and words are those of ``--sort``."""
    keys = ("", *WORDS, *(figure.key for figure in figures.FIGURES), "verdict")
    direction = "descending" if joined.reverse else "ascending"
    for key, column in zip(keys, long_table(joined).columns, strict=True):
        sorted_by = f' aria-sort="{direction}"' if key == joined.sort else ""
        kind = ' class="figure"' if column.right and key not in ("", "verdict") else ""
        yield f'<th scope="col" role="columnheader" data-key="{key}"{sorted_by}{kind}>{escape(column.name)}</th>'


def _row(index: int, row: EngineRow, pictured: bool) -> str:
    number = f'<a href="#row-{index}">{index}</a>' if pictured else str(index)
    cells = [f'<th scope="row" role="rowheader">{number}</th>']
    cells += [f'<td role="cell" data-label="{word}">{escape(getattr(row, word))}</td>' for word in WORDS]
    cells += [_figure(figure, row) for figure in figures.FIGURES]
    cells.append(
        f'<td role="cell" data-label="verdict" data-value="{VERDICTS.index(row.verdict)}">'
        f'<span class="verdict {row.verdict}">{row.verdict.upper()}</span></td>'
    )
    return f'<tr role="row" data-row="{index}">{"".join(cells)}</tr>'


def _figure(figure: Figure, row: EngineRow) -> str:
    value = figure.value(row)
    label = row.metric.name if figure.key == "metric" and value is not None else figure.heading
    known = "" if value is None else f' data-value="{value!r}"'
    why = f' title="{escape(row.why_not(figure.field))}"' if value is None else ""
    kind = "figure absent" if value is None else "figure"
    told = escape(figure.write(row, "not measured"))
    return f'<td role="cell" class="{kind}" data-label="{escape(label)}"{known}{why}>{told}</td>'


def _scatters(rows: tuple[EngineRow, ...]) -> Iterator[str]:
    """Write a picture of metric against latency for each task."""
    groups: dict[tuple[str, str], dict[int, EngineRow]] = {}
    for index, row in enumerate(rows, 1):
        groups.setdefault((row.task, row.metric.name), {})[index] = row
    drawn = {key: scatter_svg(f"scatter-{place}", group) for place, (key, group) in enumerate(groups.items())}
    yield '<section aria-labelledby="against"><h2 id="against">Metric against latency</h2><div class="pictures">'
    for (task, metric), svg in drawn.items():
        group = groups[task, metric]
        if svg is None:
            yield f"<p>{escape(task)}: no row has both a p50 and a metric.</p>"
            continue
        better = "up" if next(iter(group.values())).metric.higher_is_better else "down"
        lacking = [str(i) for i, row in group.items() if row.latency_ms.p50 is None or row.metric.shipped is None]
        unbeaten = _and(unbeaten_rows(group))
        told = f"{task}: {better} and left is better. Filled, not beaten in both beyond noise: {unbeaten}."
        told += f" Not measured: {', '.join(lacking)}." if lacking else ""
        yield _figure_of(told, svg)
    yield "</div></section>"


def _and(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _figure_of(caption: str, content: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def _entry(index: int, entry: Entry, source: str) -> Iterator[str]:
    """Write what stands behind a row; ``source`` says where it was read, where that could be asked."""
    row = entry.row
    yield f'<section data-row="{index}" aria-labelledby="row-{index}">'
    head = f'<span class="number">{index}</span> {escape(f"{row.task}: {row.target} on {row.device}")}'
    verdict = f'<span class="verdict {row.verdict}">{row.verdict.upper()}</span>'
    yield f'<h2 id="row-{index}">{head} {verdict}</h2>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in row.reasons)
    yield f"<p>{escape(f'{row.runtime}, {row.precision}.{source}')}</p>{f'<ul>{reasons}</ul>' if reasons else ''}"
    yield '<div class="pictures">'
    yield from _times(index, entry)
    yield from _ledger(index, entry)
    yield "</div>"
    yield from _grams(index, entry)
    table = _table(ledger_table(entry.ledger), f"Ledger {index}")
    yield f"<details><summary>The ledger in figures</summary>{table}</details>"
    yield "</section>"


def _times(index: int, entry: Entry) -> Iterator[str]:
    if entry.profile is None:
        yield f"<p>Latency {escape(entry.row.why_not('latency_ms.p50'))}.</p>"
        return
    svg = latency_svg(f"latency-{index}", entry)
    if svg:
        threads = f"{entry.profile.threads} thread{'s' * (entry.profile.threads > 1)}"
        told = f"Share of inferences that took no longer, {threads}; dots: p50, p90, p99. None is left out."
        yield _figure_of(told, svg)
    else:
        yield "<p>Latency distributions: the raw timings no longer lie beside the report.</p>"
    branches = branches_svg(f"branches-{index}", entry.profile)
    if branches:
        yield _figure_of("Time by branch: the modality from whose input alone a layer is computed.", branches)
    else:
        reasons = [engine.not_measured.get("layers") for engine in entry.profile.engines]
        why = next(filter(None, reasons), "not measured: the profile was not asked for it")
        yield f"<p>Time by branch {escape(why)}.</p>"


def _ledger(index: int, entry: Entry) -> Iterator[str]:
    drift, metric = drift_svg(f"drift-{index}", entry.ledger), metric_svg(f"metric-{index}", entry.ledger)
    if drift:
        told = f"Gram drift by stage: dot the mean, bar to its {entry.ledger.confidence:.0%} bound, against the limits."
        yield _figure_of(told, drift)
    yield (
        _figure_of("The metric by stage, against the limit.", metric)
        if metric
        else f"<p>Metric {escape(entry.row.why_not('metric.shipped'))}.</p>"
    )


def _grams(index: int, entry: Entry) -> Iterator[str]:
    grams = read_grams(entry)
    if grams is None:
        yield "<p>Gram matrices: there are none beside the report.</p>"
        return
    kinds = list(dict.fromkeys(filter(None, grams.classes)))
    told = f"Cosines between the embeddings of the same {len(grams.ids)} test samples"
    told += f", by class ({', '.join(kinds)})" if kinds else ""
    told += ", each modality a block. The last picture has a scale of its own."
    last = entry.ledger.rows[-1].stage
    told += "" if last == ENGINE else f" Engine: its graph in ONNX Runtime on the building host ({last})."
    pictures = heat_maps(f"gram-{index}", grams).values()
    yield _figure_of(told, f'<div class="grams">{"".join(pictures)}</div>')


def _meanings(joined: Comparison) -> Iterator[str]:
    ledgers = [ledger_table(entry.ledger) for entry in joined.entries]
    if ledgers:
        yield '<section aria-labelledby="meanings"><h2 id="meanings">How to read the ledger</h2>'
        yield "<dl>"
        for name, meaning in legend(*ledgers).rows:
            yield f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>"
        yield "</dl></section>"


def _table(table: Table, name: str) -> str:
    """Return one of the other tables as HTML, under a name; it scrolls by itself where the page is narrow."""
    kinds = ['class="figure"' if column.right else "" for column in table.columns]
    heads = "".join(
        f'<th scope="col" {kind}>{escape(column.name)}</th>' for kind, column in zip(kinds, table.columns, strict=True)
    )
    rows = (
        "".join(
            f'<th scope="row">{escape(cell)}</th>' if place == 0 else f"<td {kind}>{escape(cell)}</td>"
            for place, (kind, cell) in enumerate(zip(kinds, row, strict=True))
        )
        for row in table.rows
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    told = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return (
        f'<div class="wide" role="region" aria-label="{escape(name)}" tabindex="0">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{told}"
    )
