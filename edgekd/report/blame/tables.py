"""The result of a blame as a table, as JSON, and as files."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgekd.files import write_text
from edgekd.gram.blame import SCOPES
from edgekd.gram.output_kind import MEASURES
from edgekd.report.blame.picture import all_in_int8, blame_svg, relieved_drift, relieved_share, small
from edgekd.report.format import NOTHING, milliseconds, number
from edgekd.report.svg.draw import shorten
from edgekd.report.table import Column, Table
from edgekd.runtime.manifest import null_not_finite

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.files import JsonObject
    from edgekd.gram.blame import Blame, RankedFigure, Suspect

SCHEMA_VERSION = 2

#: Characters of a suspect's name in a table of 80 columns.
_NAME = 19


def blame_table(blame: Blame) -> Table:
    """Return the table of suspects, scope by scope and the worst first, within 80 columns."""
    timed = any(suspect.latency for suspect in blame.suspects)
    labelled = any(suspect.gain for suspect in blame.suspects)
    figures = ["rank", "relief", "alone", "drift", *["gain"] * labelled, *["ms", "per ms"] * timed]
    columns = (Column("suspect", right=False), *(Column(name) for name in figures))
    ordered = [suspect for scope in SCOPES for suspect in blame.of(scope)]
    names = _short([f"{s.scope} {s.name}" if s.scope == "branch" else s.name for s in ordered])
    rows = tuple((name, *_row(s, blame, timed, labelled)) for name, s in zip(names, ordered, strict=True))
    return Table("Blame", columns, rows, _notes(blame, timed, labelled))


def _short(names: Sequence[str]) -> list[str]:
    """Shorten names in the middle, but those that would read alike at the front."""
    short = [shorten(name, _NAME) for name in names]
    return [one if short.count(one) == 1 else f"…{name[1 - _NAME :]}" for one, name in zip(short, names, strict=True)]


def _row(suspect: Suspect, blame: Blame, timed: bool, labelled: bool) -> tuple[str, ...]:
    cells = [str(suspect.relief.rank), relieved_share(suspect.relief), small(suspect.alone.divergence)]
    cells.append(small(relieved_drift(suspect, blame)))
    if labelled:
        cells.append(number(suspect.gain.value if suspect.gain else None, "+.4f"))
    if timed:
        cells.append(milliseconds(suspect.latency.value_ms) if suspect.latency else NOTHING)
        cells.append(_per_ms(suspect, suspect.relief_per_ms))
    return tuple(cells)


def _per_ms(suspect: Suspect, figure: RankedFigure | None) -> str:
    if suspect.latency and not suspect.latency.told_apart:
        return "free"
    return number(figure.value if figure else None, ".3g")


def _notes(blame: Blame, timed: bool, labelled: bool) -> tuple[str, ...]:
    effect = blame.quantized
    notes = [
        f"{', '.join(all_in_int8(blame))}.",
        "relief: share of what the output loses that goes where only this is float, by divergence and error alike; "
        "± its standard error; one rank: level within it.",
        f"alone: divergence ({MEASURES[blame.kind]}) where only this is INT8.",
    ]
    if blame.agreement is not None:
        notes.append(
            f"Rank correlation of relief with what is lost alone: {number(blame.agreement, '.2f')} over layers."
        )
    worst = f"{effect.worst_pair}, {small(effect.worst_pair_drift)}"
    notes.append(f"drift: the part of it that goes where only this is float; worst pair of all in INT8: {worst}.")
    notes += ["gain: how much better the metric is where only this is float."] * labelled
    timing = (
        "ms: how much slower the network is where only this is float; per ms: relief for it; free: level with INT8."
    )
    return (*notes, *[timing] * timed)


def blame_json(blame: Blame) -> JsonObject:
    """Return the blame as JSON values; a figure that is not finite is null."""
    content: JsonObject = null_not_finite({"schema_version": SCHEMA_VERSION, **asdict(blame)})
    return content


#: What :func:`write_blame` writes.
BLAME_PLACES = ("blame.json", "blame.svg")


def write_blame(blame: Blame, folder: Path) -> tuple[Path, Path]:
    """Write ``blame.json`` and ``blame.svg`` into a folder, and return their paths."""
    table, picture = (folder / name for name in BLAME_PLACES)
    write_text(table, json.dumps(blame_json(blame), indent=1) + "\n")
    write_text(picture, blame_svg(blame))
    return table, picture
