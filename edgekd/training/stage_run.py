"""What every stage that computes with torch is run with."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
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


@dataclass(frozen=True)
class Resources:
    """What of a machine a stage computes with.

    Attributes:
        threads: Threads that torch computes with on the CPU; None for as many as it does already.
        device: What networks are trained on, as the recipe has it.
        workers: Processes that read training samples.
    """

    threads: int | None = None
    device: str = "auto"
    workers: int = 0


_RESOURCES: ContextVar[Resources | None] = ContextVar("resources", default=None)


def resources() -> Resources:
    """Return what the present stage computes with."""
    return _RESOURCES.get() or Resources()


@contextmanager
def computing(given: Resources) -> Iterator[None]:
    """Let a stage compute with these resources, however many the machine has or the environment asks for.

    How a sum is divided among threads decides its last bits, and after some epochs all of the weights.
    """
    import torch

    before, token = torch.get_num_threads(), _RESOURCES.set(given)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _RESOURCES.reset(token)
