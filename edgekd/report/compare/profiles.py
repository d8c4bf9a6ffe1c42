"""Read what ``edgekd profile`` wrote of one bundle on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgekd.errors import ReportError
from edgekd.report.build.row import EngineIdentity, profile_row
from edgekd.report.compare.content import convert_object, read_object
from edgekd.report.compare.former import modern_profile
from edgekd.report.compare.rows import Entry
from edgekd.report.results import GRAM, PROFILE, PROFILE_VERSION, SAMPLES
from edgekd.report.schema import ProfileFile

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.report.row import EngineRow

#: The version before this one, whose rows and ledgers have no answers.
_FORMER_VERSION = 1


def read_profile(folder: Path) -> Entry:
    """Read the profile in a folder; its metric and drift are those that the bundle's ledger ends with.

    Raises:
        ReportError: The profile is broken or was written by another edgekd.
    """
    path = folder / PROFILE
    content = read_object(path, (_FORMER_VERSION, PROFILE_VERSION), "run edgekd profile again")
    profile = convert_object(path, modern_profile(content), ProfileFile)
    if not profile.profile.engines or not profile.ledger.rows:
        raise ReportError(f"{path}: has no engine or an empty ledger; run edgekd profile again")
    row = replace(profile.row or _row(profile), run=str(folder), task=profile.task)
    return Entry(row, profile.ledger, profile.profile, folder, folder / GRAM / SAMPLES)


def _row(profile: ProfileFile) -> EngineRow:
    """Return the row of a profile that an earlier edgekd wrote without one."""
    identity = EngineIdentity(
        target=profile.target,
        device=profile.device,
        runtime=profile.runtime,
        precision=profile.precision,
        verdict=profile.verdict,
        released=profile.ledger.limits.releases(profile.verdict),
        reasons=profile.reasons,
        warnings=(),
    )
    return profile_row(identity, profile.profile.engines[0], profile.ledger)
