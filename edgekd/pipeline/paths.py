"""The folders of a build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class BuildPaths:
    """Where a build reads and writes.

    Attributes:
        output: Folder of the report, with one folder for each target.
        cache: Folder of the finished stages.
    """

    output: Path
    cache: Path
