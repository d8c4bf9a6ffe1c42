"""Read JSON files that edgekd wrote, and check their version and their content."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec import Struct

from edgekd.config.validation import explain
from edgekd.errors import ReportError

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.files import JsonObject


def read_object(path: Path, versions: tuple[int, ...], remedy: str) -> JsonObject:
    """Return the JSON object in a file.

    Args:
        path: The file.
        versions: The schema versions that can be read, the current one last.
        remedy: What to do where the file has another one.

    Raises:
        ReportError: The file cannot be read, is no JSON object, or is of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # of JSON, and of UTF-8
        raise ReportError(f"{path}: is no JSON: {error}; run again what wrote it") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in versions or not isinstance(content, dict):
        problem = "has no schema_version" if version is None else f"has schema_version {version}"
        *others, last = map(str, versions)
        known = f"{', '.join(others)} and {last}" if others else last
        raise ReportError(f"{path}: {problem}, and this edgekd reads {known} only; {remedy}")
    return content


def _refuse(constant: str) -> None:
    """Refuse NaN and infinities, which Python alone takes for JSON."""
    raise ValueError(f"{constant} is no number there")


_S = TypeVar("_S", bound=Struct)


def convert_object(path: Path, content: JsonObject, kind: type[_S]) -> _S:
    """Return the content of a file as a type.

    Raises:
        ReportError: The content lacks something, or has something else in its place.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise ReportError(f"{path}: {explain(error, kind)}; run again what wrote it") from error
    except UnicodeEncodeError as error:  # half a character in place of a word that msgspec knows
        raise ReportError(f"{path}: there is no {error.object!r}; run again what wrote it") from error
