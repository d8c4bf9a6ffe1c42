"""The table as one HTML page that needs nothing else: no network, no other file, and no script to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.gram.verdict import VERDICTS
from edgekd.report import figures
from edgekd.report.build.page import build_header, common_sections, definitions, target_section
from edgekd.report.compare.checks import tiles_html
from edgekd.report.compare.formats import Comparison, long_table, notes, only_metric, several, title
from edgekd.report.compare.html import document, figure_html, reason_list, verdict_badge
from edgekd.report.compare.questions import question_cards
from edgekd.report.compare.scatter import scatter_svg, unbeaten_rows
from edgekd.report.compare.sections import gram_pictures, ledger_html, ledger_pictures, time_pictures
from edgekd.report.escape import escape
from edgekd.report.figures import WORDS, filter_limits
from edgekd.report.format import milliseconds
from edgekd.report.ledger_tables import ledger_table
from edgekd.report.table import legend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.report.compare.rows import Entry
    from edgekd.report.figures import Figure, Limit
    from edgekd.report.results import BuildReport
    from edgekd.report.row import EngineRow

#: Bytes of all rows' pictures: with more the page would outgrow two megabytes.
_ROOM = 1_500_000


def as_html(comparison: Comparison) -> str:
    """Return the page: that of the build where all rows are those of one, else the table with what stands behind it.

    Raises:
        ReportError: What lies beside a report is broken.
    """
    build = _only_build(comparison)
    if build is not None:
        return _build_page(comparison, build)
    sections = _sections(comparison)
    header = [f"<h1>{escape(title(comparison))}</h1>", f"<p>{escape(_lead(comparison))}</p>"]
    main = [
        *_engines(comparison, len(sections)),
        *_scatters(comparison.rows),
        *sections,
        *_meanings(comparison),
    ]
    return document(f"edgekd: {title(comparison)}", header, main, script=True)


def _only_build(comparison: Comparison) -> BuildReport | None:
    """Return the build whose targets are the rows, all of them and nothing else; None where there is no such build."""
    builds = {id(entry.report): entry.report for entry in comparison.entries}
    build = next(iter(builds.values())) if len(builds) == 1 else None
    return build if build and len(build.targets) == len(comparison.entries) and not comparison.left_out else None


def _build_page(comparison: Comparison, build: BuildReport) -> str:
    """Return the page of a build; the table of engines is there where it has more than one row."""
    entries = comparison.entries
    many = len(entries) > 1
    sections = [
        target_section(index, entry, entry.result, alone=not many)
        for index, entry in enumerate(entries, 1)
        if entry.result is not None
    ]
    main = [
        *([*_engines(comparison, len(sections)), *_scatters(comparison.rows)] if many else []),
        *sections,
        *common_sections(build, entries),
    ]
    return document(f"edgekd: {title(comparison)}", build_header(build), main, script=many)


def _lead(comparison: Comparison) -> str:
    """Return a sentence or two on what the page shows."""
    rows = comparison.rows
    if not rows:
        return "No engine is left."
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    sentence = f"{len(rows)} engine{'s' * (len(rows) > 1)}: "
    sentence += f"{', '.join(f'{count} {verdict}' for verdict, count in counts.items() if count)}."
    timed = [row for row in rows if row.latency_ms.p50 is not None]
    if len(timed) > 1:
        fastest = min(timed, key=lambda row: row.latency_ms.p50 or 0.0)
        p50 = milliseconds(fastest.latency_ms.p50 or 0.0)
        sentence += f" The fastest is {fastest.target} on {fastest.device}, p50 {p50} ms."
    return sentence


def _sections(comparison: Comparison) -> list[str]:
    """Return the sections of the first rows, as many as there is room for."""
    sections, room, many = [], _ROOM, several(comparison.rows, "run")
    for index, entry in enumerate(comparison.entries, 1):
        section = "\n".join(_entry(index, entry, f" Read from {entry.row.run}." if many else ""))
        room -= len(section.encode())
        if room < 0:
            break
        sections.append(section)
    return sections


def _engines(comparison: Comparison, pictured: int) -> Iterator[str]:
    """Write the table and its filters, which need the script and are hidden without it.

    Args:
        comparison: The table.
        pictured: How many of the first rows have pictures.
    """
    rows = comparison.rows
    yield '<section aria-labelledby="engines"><h2 id="engines">Engines</h2>'
    yield from _filters(rows)
    yield '<div class="wide" role="region" aria-label="table of engines" tabindex="0">'
    yield '<table id="table" role="table"><caption class="away">Every engine on its device</caption>'
    yield f'<thead role="rowgroup"><tr role="row">{"".join(_heads(comparison))}</tr></thead>'
    yield '<tbody role="rowgroup">'
    for index, row in enumerate(rows, 1):
        yield _row(index, row, index <= pictured)
    yield "</tbody></table></div>"
    yield "".join(f"<p>{escape(note)}</p>" for note in notes(comparison))
    if len(rows) > pictured:
        yield f"<p>The first {pictured} have pictures below: of all they would make the page larger than 2 MB.</p>"
    yield "</section>"


def _filters(rows: tuple[EngineRow, ...]) -> Iterator[str]:
    yield '<form id="filters" hidden>'
    yield '<label>Name holds <input id="name" type="search" autocomplete="off"></label>'
    for figure, limit in filter_limits().values():
        if figure.key != "metric":
            yield _filter(figure, limit, f"{figure.key} at {_bound(limit)}{',' if limit.unit else ''}{limit.unit}")
        elif (metric := only_metric(rows)) and limit.upper != _higher_is_better(rows, metric):
            yield _filter(figure, limit, f"{metric} at {_bound(limit)}")
    options = "".join(f"<option{' selected' if verdict == 'fail' else ''}>{verdict}</option>" for verdict in VERDICTS)
    yield f'<label>Verdict at worst <select id="verdict">{options}</select></label>'
    yield '<p id="shown" role="status"></p></form>'


def _bound(limit: Limit) -> str:
    return "most" if limit.upper else "least"


def _higher_is_better(rows: tuple[EngineRow, ...], metric: str) -> bool:
    return next(row.metric.higher_is_better for row in rows if row.metric.name == metric)


def _filter(figure: Figure, limit: Limit, label: str) -> str:
    attributes = f'data-figure="{figure.key}" data-bound="{_bound(limit)}"'
    return f'<label>{escape(label)} <input id="{figure.key}" type="number" step="any" {attributes}></label>'


def _heads(comparison: Comparison) -> Iterator[str]:
    """Write the column heads; the keys of figures and words are those of ``--sort``."""
    keys = ("", *WORDS, *(figure.key for figure in figures.FIGURES), "verdict")
    direction = "descending" if comparison.reverse else "ascending"
    for key, column in zip(keys, long_table(comparison).columns, strict=True):
        sorted_by = f' aria-sort="{direction}"' if key == comparison.sort else ""
        kind = ' class="figure"' if column.right and key not in ("", "verdict") else ""
        yield f'<th scope="col" role="columnheader" data-key="{key}"{sorted_by}{kind}>{escape(column.name)}</th>'


def _row(index: int, row: EngineRow, pictured: bool) -> str:
    number = f'<a href="#row-{index}">{index}</a>' if pictured else str(index)
    cells = [f'<th scope="row" role="rowheader">{number}</th>']
    cells += [f'<td role="cell" data-label="{word}">{escape(getattr(row, word))}</td>' for word in WORDS]
    cells += [_figure(figure, row) for figure in figures.FIGURES]
    cells.append(
        f'<td role="cell" data-label="verdict" data-value="{VERDICTS.index(row.verdict)}">'
        f"{verdict_badge(row.verdict)}</td>"
    )
    return f'<tr role="row" data-row="{index}">{"".join(cells)}</tr>'


def _figure(figure: Figure, row: EngineRow) -> str:
    value = figure.value(row)
    label = row.metric.name if figure.key == "metric" and value is not None else figure.heading
    known = "" if value is None else f' data-value="{value!r}"'
    why = f' title="{escape(row.why_not(figure.field))}"' if value is None else ""
    kind = "figure absent" if value is None else "figure"
    sentence = escape(figure.write(row, "not measured"))
    return f'<td role="cell" class="{kind}" data-label="{escape(label)}"{known}{why}>{sentence}</td>'


def _scatters(rows: tuple[EngineRow, ...]) -> Iterator[str]:
    """Write the picture of metric against latency for each task."""
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
        sentence = f"{task}: {better} and left is better. Filled, not beaten in both beyond noise: {unbeaten}."
        sentence += f" Not measured: {', '.join(lacking)}." if lacking else ""
        yield figure_html(sentence, svg)
    yield "</div></section>"


def _and(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _entry(index: int, entry: Entry, source: str) -> Iterator[str]:
    """Write the section of a row; ``source`` is a sentence on where the row was read, or ""."""
    row = entry.row
    yield f'<section data-row="{index}" aria-labelledby="row-{index}">'
    name = escape(f"{entry.project}: {row.target} on {row.device}")
    yield f'<h2 id="row-{index}"><span class="number">{index}</span> {name} {verdict_badge(row.verdict)}</h2>'
    yield f"<p>{escape(f'{row.runtime}, {row.precision}.{source}')}</p>{reason_list(row.reasons)}"
    yield reason_list(row.warnings, "told")
    yield tiles_html(entry)
    yield question_cards(index, entry.ledger)
    yield '<div class="pictures">'
    yield from time_pictures(index, entry)
    yield from ledger_pictures(index, entry)
    yield "</div>"
    yield from gram_pictures(index, entry)
    yield f"<details><summary>The ledger in figures</summary>{ledger_html(index, entry)}</details>"
    yield "</section>"


def _meanings(comparison: Comparison) -> Iterator[str]:
    ledgers = [ledger_table(entry.ledger) for entry in comparison.entries]
    if ledgers:
        meanings = definitions(legend(*ledgers))
        yield '<section aria-labelledby="meanings"><h2 id="meanings">How to read the ledger</h2>'
        yield f"{meanings}</section>"
