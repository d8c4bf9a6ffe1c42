"""The files of a search: ``search.json`` and ``search.svg``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgekd.files import write_text
from edgekd.report.search.picture import search_svg
from edgekd.report.search.tables import PICTURE, TABLE, search_json

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.report.search.tables import SearchResult


def write_search(result: SearchResult, folder: Path) -> None:
    """Write ``search.json`` and, where a trial is done, ``search.svg`` into a folder."""
    write_text(folder / TABLE, json.dumps(search_json(result), indent=1) + "\n")
    if result.done:
        write_text(folder / PICTURE, search_svg(result))
