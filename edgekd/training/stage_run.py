"""What every stage that computes with torch is run with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.stages.progress import StageReporter


@dataclass(frozen=True)
class StageRun:
    """One run of a stage.

    Attributes:
        seed: Seed of everything random in it.
        folder: Folder that it writes into.
        report: Receives its progress and warnings.
    """

    seed: int
    folder: Path
    report: StageReporter
