"""Reports of former versions, read in today's words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekd.gram.heatmap import FewGrams

#: Rows of a ledger by the names that they had in version 2 of ``report.json`` and of a bundle's manifest.
_ROWS = {"pruned": "cut", "tuned": "finetuned", "engine": "device"}

#: What the candidate that ships was called, and is called.
_SHIPPED = {"engine": "shipped"}


def modern_rows(content: Any) -> Any:
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


def modern_report(content: Any) -> Any:
    """Return a ``report.json`` of version 2 with rows of ledgers, and the engine that ships, under today's names."""
    content = modern_rows(content)
    targets = content.get("targets")
    for target in targets if isinstance(targets, list) else ():
        profile = target.get("profile") if isinstance(target, dict) else None
        engines = profile.get("engines") if isinstance(profile, dict) else None
        for engine in engines if isinstance(engines, list) else ():
            if isinstance(engine, dict) and isinstance(engine.get("name"), str):
                engine["name"] = _SHIPPED.get(engine["name"], engine["name"])
    return content


def modern_grams(grams: FewGrams) -> FewGrams:
    """Return the Grams with the candidate that ships under today's name."""
    return replace(grams, cosines={_SHIPPED.get(name, name): values for name, values in grams.cosines.items()})
