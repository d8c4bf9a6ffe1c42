"""JSON files that hold their own digest, for what a killed run leaves behind and a later one takes up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgekd.files import write_text
from edgekd.stages.cache import digest

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.files import JsonObject


def write_sealed(path: Path, content: JsonObject) -> None:
    """Write a JSON object with its digest, atomically."""
    write_text(path, json.dumps({**content, "digest": digest(content)}, indent=1))


def read_sealed(path: Path) -> JsonObject | None:
    """Return what :func:`write_sealed` wrote; None where any of it was altered or damaged.

    Raises:
        OSError: The file is not there, or cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.pop("digest", None) != digest(content):
        return None
    return content
