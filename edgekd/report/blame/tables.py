"""The result of a blame as a table, as JSON, and as files."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgekd.files import write_text
from edgekd.gram.blame import SCOPES
from edgekd.report.blame.picture import blame_svg, drift_figure
from edgekd.report.format import NOTHING, milliseconds, number, percent
from edgekd.report.svg.draw import shorten
from edgekd.report.table import Column, Table
from edgekd.runtime.manifest import null_not_finite

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.files import JsonObject
    from edgekd.gram.blame import Blame, RankedFigure, Suspect

SCHEMA_VERSION = 1

#: Characters of a suspect's name in a table of 80 columns.
_NAME = 20


def blame_table(blame: Blame) -> Table:
    """Return the table of suspects, scope by scope and the worst first, within 80 columns."""
    timed = any(suspect.latency_ms is not None for suspect in blame.suspects)
    labelled = any(suspect.gain for suspect in blame.suspects)
    names = ["rank", "relief", "±", "alone", *["gain"] * labelled, *["ms", "per ms"] * timed]
    columns = (Column("suspect", right=False), *(Column(name) for name in names))
    rows = tuple(_row(suspect, timed, labelled) for scope in SCOPES for suspect in blame.of(scope))
    return Table("Blame", columns, rows, _notes(blame, timed, labelled))


def _row(suspect: Suspect, timed: bool, labelled: bool) -> tuple[str, ...]:
    name = f"{suspect.scope} {suspect.name}" if suspect.scope == "branch" else suspect.name
    cells = [shorten(name, _NAME), str(suspect.relief.rank)]
    cells += [drift_figure(value) for value in (suspect.relief.value, suspect.relief.error, suspect.alone.drift)]
    if labelled:
        cells.append(number(suspect.gain.value if suspect.gain else None, "+.4f"))
    if timed:
        cells.append(milliseconds(suspect.latency_ms) if suspect.latency_ms is not None else NOTHING)
        cells.append(_per_ms(suspect, suspect.relief_per_ms))
    return tuple(cells)


def _per_ms(suspect: Suspect, figure: RankedFigure | None) -> str:
    if suspect.latency_ms is not None and suspect.latency_ms <= 0:
        return "free"
    return number(figure.value if figure else None, ".3g")


def _notes(blame: Blame, timed: bool, labelled: bool) -> tuple[str, ...]:
    effect = blame.quantized
    whole = f"All in INT8: drift {drift_figure(effect.drift)}"
    whole += f", {percent(effect.flips)} flips" if effect.flips is not None else ""
    whole += f", metric {number(effect.metric)}" if effect.metric is not None else ""
    notes = [f"{whole}, against float on {blame.samples} calibration samples."]
    notes.append("relief: drift that goes where only this is float; ± its standard error; one rank: level within it.")
    agreement = f"; its rank correlation with relief over layers: {number(blame.agreement, '.2f')}."
    notes.append(f"alone: drift where only this is INT8{agreement if blame.agreement is not None else '.'}")
    notes += ["gain: how much better the metric is where only this is float."] * labelled
    notes += ["ms: how much slower the network is where only this is float; per ms: relief for it."] * timed
    return tuple(notes)


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
