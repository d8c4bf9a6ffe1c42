"""Tables of the limits that are suggested for a user's own network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.report.format import NOTHING
from edgekd.report.table import Column, Table

if TYPE_CHECKING:
    from edgekd.gram.limits import Tally
    from edgekd.workflows.thresholds import Alarm, LimitName

#: What each limit is held against, in words.
_WORDS: dict[LimitName, str] = {
    "max_divergence": "mean divergence of the output",
    "max_flips": "share of answers that change",
    "max_missing_flips": "the same with one modality absent",
    "tau_fail": "drift of the Gram",
    "tau_pass": "the same for half of the loss",
}


def alarm_table(alarm: Alarm) -> Table:
    """Return the recipe's limits and the suggested ones, each with what it misses and what it refuses for nothing."""
    columns = (
        Column("limit", right=False),
        Column("now"), Column("misses"), Column("false"),
        Column("suggested"), Column("misses"), Column("false"),
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for name, found in alarm.limits.items():
        limit = found.suggestion.limit
        rows.append(
            (
                name, f"{found.now:g}", *_rates(found.at_now),
                NOTHING if limit is None else f"{limit:g}", *_rates(found.at_suggested),
            )
        )  # fmt: skip
    rows.append(("together", "", *_rates(alarm.together), "", *_rates(alarm.suggested_together)))
    return Table("Limits", columns, tuple(rows), tuple(_notes(alarm)))


def _rates(tally: Tally | None) -> tuple[str, str]:
    if tally is None:
        return NOTHING, NOTHING
    return f"{tally.missed}/{tally.lost}", f"{tally.refused}/{tally.kept}"


def _notes(alarm: Alarm) -> list[str]:
    loss = "of the answers changed" if alarm.judged_by == "flips" else "of the metric lost"
    notes = [
        f"Of {len(alarm.outcomes)} ways to damage the float network, on {alarm.samples} calibration samples; too much "
        f"is more than {alarm.max_loss:g} {loss}.",
        "misses: let through, of those that lost too much; false: refused, of those that did not. On the perturbations "
        "that gave the limits, so others may fare worse.",
    ]
    notes += [
        f"{name} is {found.suggestion.reason}."
        for name, found in alarm.limits.items()
        if found.suggestion.limit is None
    ]
    if alarm.needed is not None:
        what = "samples" if alarm.judged_by == "flips" else "labelled samples"
        notes.append(
            f"About {alarm.needed:,} {what} for calibration would sharpen the limits: so many tell a loss of "
            f"{alarm.max_loss:g} from half of it."
        )
    return notes


def recipe_lines(alarm: Alarm) -> list[str]:
    """Return the suggested limits as a table of a recipe, which keeps tau_pass within tau_fail; nothing of none."""
    known = {name: found.suggestion.limit for name, found in alarm.limits.items() if found.suggestion.limit is not None}
    if not known:
        return []
    fail, within = (known.get(name, alarm.limits[name].now) for name in ("tau_fail", "tau_pass"))
    if known.keys() & {"tau_fail", "tau_pass"}:  # the recipe that it is pasted into may have another one
        known["tau_pass"] = min(within, fail)
    width = max(map(len, known))
    return ["[gate]", *(f"{name:<{width}} = {limit:<8g} # {_WORDS[name]}" for name, limit in known.items())]
