"""Reports of former versions, read in today's words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.report.ledger_json import ledger_with_nan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.files import JsonObject
    from edgekd.gram.heatmap import FewGrams

#: Rows of a ledger by the names that they had in version 2 of ``report.json`` and of a bundle's manifest.
_ROWS = {"pruned": "cut", "tuned": "finetuned", "engine": "device"}

#: What a row of a ledger lacks in version 3, a ledger, and what is said of a target: there was no comparison of outputs
#: but the share of flips, and one question.
_NEW_IN_ROW: JsonObject = {"loss": None, "answers": {}, "behaviour": None}
_NEW_IN_LEDGER = {"kinds": {"logits": "classes"}, "questions": [], "warnings": [], "advice": []}
_NEW_IN_TARGET = {"chosen_on": "", "questions": []}
_NOT_KEPT = "not measured: an earlier edgekd compared top-1 classes alone"

#: What the candidate that ships was called, and is called.
_SHIPPED = {"engine": "shipped"}


def _modern_rows(content: object) -> object:
    """Return JSON values with the rows of every ledger in them under today's names and with today's figures."""
    if isinstance(content, list):
        return [_modern_rows(item) for item in content]
    if not isinstance(content, dict):
        return content
    renamed = {key: _modern_rows(item) for key, item in content.items()}
    if renamed.get("kind") == "values":
        renamed["kind"] = "regression"
    if renamed.keys() >= {"label", "metric", "gain"}:  # of the best constant answer, of which only classes had one
        renamed["answer"] = f"class {renamed.pop('label')}"
    stage = renamed.get("stage")
    if "to_reference" in renamed and isinstance(stage, str):
        return {**_NEW_IN_ROW, **renamed, "stage": _ROWS.get(stage, stage)}
    return {**_NEW_IN_LEDGER, **renamed} if {"limits", "rows", "reference"} <= renamed.keys() else renamed


def modern_profile(content: JsonObject) -> JsonObject:
    """Return a ``profile.json`` of any version with its ledger, which may be of an older bundle, in today's words."""
    content = {**content, "ledger": _modern_rows(ledger_with_nan(content.get("ledger")))}
    _add_new(content.get("row"))
    return content


def modern_report(content: JsonObject) -> JsonObject:
    """Return a ``report.json`` of a former version in the form and under the names of today."""
    content = {"pruning": [], **{key: _modern_rows(value) for key, value in content.items()}}
    content["released"] = content.get("verdict") != "fail"
    rows, targets = content.get("rows"), content.get("targets")
    for row in rows if isinstance(rows, list) else ():
        _add_new(row)
        if isinstance(row, dict):
            gram = row.get("gram")
            if isinstance(gram, dict):
                gram["stage"] = _ROWS.get(str(gram.get("stage")), gram.get("stage"))
            _rename(row.get("metric"), _ROWS)
            _rename(row.get("not_measured"), {f"metric.{old}": f"metric.{new}" for old, new in _ROWS.items()})
    for target in targets if isinstance(targets, list) else ():
        if isinstance(target, dict):
            target.update(_NEW_IN_TARGET)
            candidates = target.get("candidates")
            for candidate in candidates if isinstance(candidates, list) else ():
                if isinstance(candidate, dict):
                    candidate["divergence"] = None
        profile = target.get("profile") if isinstance(target, dict) else None
        engines = profile.get("engines") if isinstance(profile, dict) else None
        for engine in engines if isinstance(engines, list) else ():
            if isinstance(engine, dict) and isinstance(engine.get("name"), str):
                engine["name"] = _SHIPPED.get(engine["name"], engine["name"])
        _rename(target.get("sizes_bytes") if isinstance(target, dict) else None, _SHIPPED)
    return content


def _add_new(row: object) -> None:
    """Give the row of an engine what rows of former versions lack."""
    if isinstance(row, dict) and "answers" not in row:
        row |= {"released": row.get("verdict") != "fail", "warnings": [], "questions": {}, "answers": None}
        reasons = row.get("not_measured")
        row["not_measured"] = {**(reasons if isinstance(reasons, dict) else {}), "answers": _NOT_KEPT}


def _rename(table: object, names: Mapping[str, str]) -> None:
    """Give the keys of a table their names of today, in its order."""
    if isinstance(table, dict):
        items = {names.get(key, key): value for key, value in table.items()}
        table.clear()
        table.update(items)


def modern_grams(grams: FewGrams) -> FewGrams:
    """Return the Grams with the candidate that ships under today's name."""
    return replace(grams, cosines={_SHIPPED.get(name, name): values for name, values in grams.cosines.items()})
