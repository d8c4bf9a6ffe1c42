"""Reports of former versions, read in today's words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.files import JsonObject
    from edgekd.gram.heatmap import FewGrams

#: Rows of a ledger by the names that they had in version 2 of ``report.json`` and of a bundle's manifest.
_ROWS = {"pruned": "cut", "tuned": "finetuned", "engine": "device"}

#: What the candidate that ships was called, and is called.
_SHIPPED = {"engine": "shipped"}


def modern_rows(content: object) -> object:
    """Return JSON values with the rows of every ledger in them under today's names."""
    if isinstance(content, list):
        return [modern_rows(item) for item in content]
    if not isinstance(content, dict):
        return content
    renamed = {key: modern_rows(item) for key, item in content.items()}
    stage = renamed.get("stage")
    if "to_reference" in renamed and isinstance(stage, str):
        renamed["stage"] = _ROWS.get(stage, stage)
    return renamed


def modern_report(content: JsonObject) -> JsonObject:
    """Return a ``report.json`` of version 2 with rows of ledgers, and the engine that ships, under today's names."""
    content = {key: modern_rows(value) for key, value in content.items()}
    rows, targets = content.get("rows"), content.get("targets")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict):
            gram = row.get("gram")
            if isinstance(gram, dict):
                gram["stage"] = _ROWS.get(str(gram.get("stage")), gram.get("stage"))
            _rename(row.get("metric"), _ROWS)
            _rename(row.get("not_measured"), {f"metric.{old}": f"metric.{new}" for old, new in _ROWS.items()})
    for target in targets if isinstance(targets, list) else ():
        profile = target.get("profile") if isinstance(target, dict) else None
        engines = profile.get("engines") if isinstance(profile, dict) else None
        for engine in engines if isinstance(engines, list) else ():
            if isinstance(engine, dict) and isinstance(engine.get("name"), str):
                engine["name"] = _SHIPPED.get(engine["name"], engine["name"])
        _rename(target.get("sizes_bytes") if isinstance(target, dict) else None, _SHIPPED)
    return content


def _rename(table: object, names: Mapping[str, str]) -> None:
    """Give the keys of a table their names of today, in its order."""
    if isinstance(table, dict):
        items = {names.get(key, key): value for key, value in table.items()}
        table.clear()
        table.update(items)


def modern_grams(grams: FewGrams) -> FewGrams:
    """Return the Grams with the candidate that ships under today's name."""
    return replace(grams, cosines={_SHIPPED.get(name, name): values for name, values in grams.cosines.items()})
