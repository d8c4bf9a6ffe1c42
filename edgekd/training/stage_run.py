"""What every stage that computes with torch is run with."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
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


@contextmanager
def computing_threads(count: int) -> Iterator[None]:
    """Let torch compute with this many threads on the CPU, however many the machine has or the environment asks for.

    How a sum is divided among threads decides its last bits, and after some epochs all of the weights.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
