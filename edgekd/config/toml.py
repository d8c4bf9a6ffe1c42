"""TOML: reading files and single values, and writing values and documents."""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from edgekd.files import require_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import ModuleType

    from edgekd.errors import EdgekdError


def _tomllib() -> ModuleType:
    """Import a TOML parser only where TOML is read: a board reads none, and its Python 3.10 brings no parser."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def read_toml(path: Path, error: type[EdgekdError]) -> dict[str, Any]:
    """Read a TOML file; raise ``error``, naming the file and line, when it is absent or malformed."""
    tomllib = _tomllib()
    require_file(path, error)
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path}: cannot be read: {cause}") from cause
    except tomllib.TOMLDecodeError as cause:
        raise error(f"{path}: not valid TOML: {cause}") from cause
    return content


def parse_toml_value(text: str) -> Any:
    """Return ``text`` as a TOML value; a text that is no TOML value is returned as a string."""
    tomllib = _tomllib()
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


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
    return json.dumps(value, ensure_ascii=False)  # text, numbers and booleans are the same in both


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
