"""The HTML that pages share: the document without external resources, tables, figures and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.gram.verdict import VERDICTS
from edgekd.report.escape import escape
from edgekd.report.svg.draw import gradient

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edgekd.gram.verdict import Verdict
    from edgekd.report.table import Table

_HERE = Path(__file__).parent
#: Nothing is fetched, whatever a name in a report holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


_STATES: dict[Verdict, str] = {
    "pass": "within its limit",
    "warn": "beyond where it warns",
    "undecided": "not shown to be within its limit",
    "fail": "beyond its limit",
}
_SIGNS: dict[Verdict, str] = {"pass": "✓", "warn": "✗", "undecided": "?", "fail": "✗"}


def document(title: str, header: Iterable[str], main: Iterable[str], script: bool) -> str:
    """Return a whole page as one file that needs nothing else.

    Args:
        title: Title of the page.
        header: The content of its header.
        main: The content below.
        script: Whether the page has a table to sort and to filter.
    """
    style, code = ((_HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{style}</style></head>",
        "<body>",
        gradient(),
        "<header>",
        *header,
        "</header>",
        "<main>",
        *main,
        "</main>",
        *([f"<script>\n{code}</script>"] if script else []),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def verdict_badge(verdict: Verdict) -> str:
    """Return a verdict in its colour."""
    return f'<span class="verdict {verdict}">{verdict.upper()}</span>'


def reason_list(reasons: Iterable[str], kind: str = "reasons") -> str:
    """Return reasons as a list of a class of the style sheet; nothing where there is none."""
    items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def limit_state(verdict: Verdict | None) -> str:
    """Say in words, in colour and with a sign whether a figure keeps its limit; nothing where it has none."""
    if verdict is None:
        return ""
    return f'<b class="{verdict}">{_SIGNS[verdict]} {_STATES[verdict]}</b>'


def limit_sign(verdict: Verdict | None) -> str:
    """Return the sign of a figure that does not simply keep its limit, with a space behind it; "" for others."""
    return "" if verdict in (None, "pass") else f"{_SIGNS[verdict]} "


def figure_html(caption: str, content: str, verdict: Verdict | None = None) -> str:
    """Return a picture with its caption, and whether what it shows keeps its limit."""
    state = limit_state(verdict)
    return f"<figure>{content}<figcaption>{escape(caption)}{' ' if state else ''}{state}</figcaption></figure>"


def table_html(table: Table, name: str, marks: Mapping[tuple[int, str], Verdict] | None = None) -> str:
    """Return a table as HTML; it scrolls by itself where the page is narrow.

    Args:
        table: The table; its notes follow it.
        name: What the table is called for those who do not see it.
        marks: Whether cells keep their limits, by the row's index and the column's name.
    """
    heads = "".join(
        f'<th scope="col"{_kind("figure" if column.right else "")}>{escape(column.name)}</th>'
        if column.name
        else "<td></td>"
        for column in table.columns
    )
    body = "".join(_row(table, index, marks or {}) for index in range(len(table.rows)))
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    content = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    drawn = f'<div class="wide" role="region" aria-label="{escape(name)}" tabindex="0">{content}</div>'
    return f"{drawn if table.rows else ''}{notes}"


def _row(table: Table, index: int, marks: Mapping[tuple[int, str], Verdict]) -> str:
    first, *others = table.rows[index]
    cells = [f'<th scope="row">{escape(first)}</th>']
    for column, cell in zip(table.columns[1:], others, strict=True):
        mark = marks.get((index, column.name))
        over = mark if mark not in (None, "pass") else None
        kinds = ["figure"] * column.right + ([f"over {over}"] if over else [])
        kinds += [cell.lower()] if cell.lower() in VERDICTS else []
        sign = f'<span class="away">{_STATES[over]}: </span>' if over else ""
        cells.append(f"<td{_kind(' '.join(kinds))}>{sign}{escape(cell)}</td>")
    return f"<tr{_kind('limit' if first == 'limit' else '')}>{''.join(cells)}</tr>"


def _kind(name: str) -> str:
    return f' class="{name}"' if name else ""
