r"""Text of unknown origin, made harmless for each format that shows it: terminal, JSON, CSV, Markdown, HTML and SVG.

Names, notes and messages come from tasks, ONNX files and bundles of strangers. Each writer passes all of its text
through the one function of its format. What no reader can see (control characters, which a terminal obeys and XML
forbids, signs that turn the direction of writing, zero widths, halves of characters) is written in every format as
Python writes it: ``\x1b``.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from typing import Any

#: All but the signs of ASCII.
_UNUSUAL = re.compile(r"[^ -~]")

#: Breaks of a line, and the blanks around them.
_BREAK = re.compile(r"[ \t]*[\t-\r\x1c-\x1e\x85\u2028\u2029]\s*")

#: First characters by which a spreadsheet takes a cell for a formula, also in the width of East Asian fonts.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")

#: What Markdown would take for markup, with what says the same as text; an underscore within a word is none.
_MARKUP = re.compile(r"(?P<slash>[`*\[|]|\\(?=[!-/:-@\[-`{-~]|$)|(?<!\w)_|_(?!\w))|(?P<entity>[<~]|&(?=#?\w+;))")
#: What Markdown would take for a heading, a quotation, a rule or the item of a list, at the beginning of a line.
_BLOCK = re.compile(r"(?P<mark>#{1,6}(?=\s|$)|>|[-+](?=\s|$)|-+(?=-\s*$)|=+(?=\s*$)|\d{1,9}(?=[.)](\s|$)))")


def visible(text: str, keep: str = "") -> str:
    r"""Return a text with every character that has no shape of its own written as Python writes it, e.g. ``\x1b``.

    Args:
        text: The text.
        keep: Characters to leave as they are, e.g. ``"\n"``.
    """
    return _UNUSUAL.sub(lambda match: match[0] if match[0] in keep or _is_shown(match[0]) else _escaped(match[0]), text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: str) -> str:
    """Return a text as a terminal can show it on one line: each break of a line is a blank, the rest is visible."""
    return visible(_BREAK.sub(" ", text))


def json_text(content: Any, indent: int | None = None) -> str:
    """Return JSON that is readable and has no character without a shape; it says the same to every parser."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    return _UNUSUAL.sub(lambda match: match[0] if match[0] == "\n" or _is_shown(match[0]) else _json(match[0]), text)


def _json(character: str) -> str:
    return json.dumps(character)[1:-1]


def csv_text(text: str) -> str:
    """Return the text of a cell that no spreadsheet takes for a formula. A number is no text and stays as it is."""
    text = one_line(text)
    return f"'{text}" if _FORMULA.match(text) else text


def markdown_text(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    text = _MARKUP.sub(_markdown, one_line(text).strip())
    return _BLOCK.sub(lambda match: _block(match["mark"]), text, count=1) if _BLOCK.match(text) else text


def _markdown(match: re.Match[str]) -> str:
    found = match.group()
    return f"\\{found}" if match["slash"] else {"<": "&lt;", "~": "&#126;", "&": "&amp;"}[found]


def _block(mark: str) -> str:
    return f"{mark}\\" if mark.isdigit() else "&gt;" if mark == ">" else f"&#{ord(mark[0])};{mark[1:]}"


def markdown_code(text: str) -> str:
    """Return a text as Markdown's code on one line, between more backticks than it has itself."""
    text = one_line(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    edge = " " if longest or not text.strip() else ""
    return f"{'`' * (longest + 1)}{edge}{text}{edge}{'`' * (longest + 1)}"


def escape(text: str) -> str:
    """Return a text for HTML and SVG, between tags or as a quoted attribute, on one line."""
    return html.escape(one_line(text))
