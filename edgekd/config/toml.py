"""TOML: reading files and single values, and writing values and documents."""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from edgekd.files import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import ModuleType

    from edgekd.errors import EdgekdError


def _tomllib() -> ModuleType:
    """Import a TOML parser only where TOML is read: a board reads none, and its Python 3.10 brings no parser."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


#: How deep tables and lists may be nested in TOML.
MOST_NESTED = 64

#: A dotted key of so many parts that Python's parser, which keeps all of its beginnings, would fill the memory.
_LONG_KEY = re.compile(r"""(?<![\w.-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){1000}""")


def read_toml(path: Path, error: type[EdgekdError]) -> dict[str, Any]:
    """Read a TOML file; raise ``error``, naming the file and line, when it is absent or malformed."""
    try:
        return parse_toml(read_text(path, error))
    except ValueError as cause:
        raise error(f"{path}: not valid TOML: {cause}") from cause


def parse_toml(text: str) -> dict[str, Any]:
    """Return the content of a TOML document.

    Raises:
        ValueError: It is not valid, nests deeper than a parser can follow, or has a number of thousands of digits.
    """
    toml = _tomllib()
    if _LONG_KEY.search(text):
        raise ValueError(f"its tables and lists are nested more than {MOST_NESTED} deep")
    try:
        content: dict[str, Any] = toml.loads(text)
    except RecursionError:
        raise ValueError(f"its tables and lists are nested more than {MOST_NESTED} deep") from None
    except toml.TOMLDecodeError:
        raise
    except ValueError:  # Python's limit on the length of a number
        raise ValueError("it has a whole number of thousands of digits") from None
    _check_content(content)
    return content


def _check_content(content: object) -> None:
    """Raise ValueError for numbers that are not TOML's, and tables that are deeper than what reads them can follow."""
    level = [content]
    for _ in range(MOST_NESTED + 1):
        if any(isinstance(value, int) and value.bit_length() > 63 for value in level):
            raise ValueError("it has a whole number of more than 64 bits")
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
        if not level:
            return
    raise ValueError(f"its tables and lists are nested more than {MOST_NESTED} deep")


def parse_toml_value(text: str) -> Any:
    """Return ``text`` as a TOML value; a text that is no TOML value is returned as a string.

    Raises:
        ValueError: It nests deeper than a parser can follow, or is a number of thousands of digits.
    """
    try:
        content = parse_toml(f"value = {text}")
    except _tomllib().TOMLDecodeError:
        return text
    return content["value"] if len(content) == 1 else text


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_value(value: Any) -> str:
    """Write a value as inline TOML, which :func:`parse_toml_value` reads back. Plain text is written without quotes."""
    return value if isinstance(value, str) and parse_toml_value(value) == value else _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items())
        return f"{{ {', '.join(pairs)} }}" if value else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # Text, numbers and booleans are the same in both, but TOML wants more characters escaped.
    return _NOT_ASCII.sub(_toml_character, json.dumps(value, ensure_ascii=False))


_NOT_ASCII = re.compile(r"[^ -~]")


def _toml_character(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return character if character.isprintable() else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def toml_document(content: Mapping[str, object], table: str = "") -> str:
    """Write tables as a TOML document: the values of each table before its own tables; what is None is left out.

    Args:
        content: The values, and tables of them.
        table: The dotted name of the table that ``content`` is; empty for the document itself.
    """
    values = {key: value for key, value in content.items() if value is not None}
    lines = [f"{_toml_key(key)} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    head = [f"[{table}]"] if table and (lines or not tables) else []
    parts = ["\n".join([*head, *lines]) + "\n"] if head or lines else []
    parts += [toml_document(value, f"{table}.{_toml_key(key)}".lstrip(".")) for key, value in tables.items()]
    return "\n".join(parts)


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml(key)
