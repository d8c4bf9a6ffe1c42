"""Read the output folders of builds and of profiles as the entries of one table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgekd.errors import ReportError
from edgekd.report.compare.builds import read_build
from edgekd.report.compare.profiles import read_profile
from edgekd.report.results import PROFILE, REPORT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekd.report.compare.rows import Entry


def read_runs(folders: Sequence[Path]) -> tuple[Entry, ...]:
    """Read the output folders of builds and profiles, in their order.

    Raises:
        ReportError: A folder has no report, or one that is broken or of another edgekd, or is named twice.
    """
    resolved = [os.path.realpath(folder) for folder in folders]  # Path.resolve raises where links go in a ring
    for index, folder in enumerate(folders):
        if resolved[index] in resolved[:index]:
            raise ReportError(f"{folder}: is named twice")
    return tuple(entry for folder in folders for entry in read_run(folder))


def read_run(folder: Path) -> tuple[Entry, ...]:
    """Read one folder: an entry for each target of a build, and one for a bundle that was profiled.

    Raises:
        ReportError: The folder has neither, or one that is broken or of another edgekd.
    """
    entries = [*(read_build(folder) if (folder / REPORT).is_file() else ())]
    if (folder / PROFILE).is_file():
        entries.append(read_profile(folder))
    elif not (folder / REPORT).is_file():
        raise ReportError(
            f"{folder}: has neither {REPORT} nor {PROFILE}; give the --output folder of a finished build, by default "
            "build/RECIPE, or that of edgekd profile"
        )
    return tuple(entries)
