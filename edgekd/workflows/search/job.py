"""The job of a search's worker. It holds plain values alone, so that it travels as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekd.config.loading import Draft  # noqa: TC001 - msgspec reads the annotations
from edgekd.workflows.search.space import Choices, Range, Space

#: A trial whose worker was lost is asked for again, up to this number of attempts.
ATTEMPTS = 3

#: Seconds between a worker's heartbeats, and seconds after which a worker on another machine counts as gone.
BEAT_SECONDS, PATIENCE_SECONDS = 30.0, 300.0

#: Names of the attributes that a study keeps for each trial.
OWN, WORKER, BEAT, OUTCOME, FAILURE, AGAIN, ATTEMPT = (
    "own", "worker", "beat", "outcome", "failure", "again", "attempt",
)  # fmt: skip


@dataclass(frozen=True)
class SearchJob:
    """A search.

    Attributes:
        draft: The recipe, its pruned widths fitted to the targets.
        choices: The axes of the space that are choices.
        ranges: The axes of the space that are ranges.
        opset: ONNX opset of the target.
        cache: Folder of finished stages.
        storage: Where the study is kept: a URL, or an absolute path.
        study: Name of the study.
        directions: Whether metric, latency and drift are maximized or minimized.
        trials: Number of trials that the study is to have; None for no limit.
    """

    draft: Draft
    choices: tuple[Choices, ...]
    ranges: tuple[Range, ...]
    opset: int
    cache: str
    storage: str
    study: str
    directions: tuple[Literal["maximize", "minimize"], ...]
    trials: int | None

    @property
    def space(self) -> Space:
        """The space of recipes."""
        return Space(self.draft, (*self.choices, *self.ranges))


@dataclass(frozen=True)
class WorkerJob:
    """The job of one worker.

    Attributes:
        search: The search.
        worker: Name of the worker, unique in the study.
        number: Number of the worker on its host, from 0.
        deadline: Seconds from now after which no more trial is begun; None for no limit.
    """

    search: SearchJob
    worker: str
    number: int
    deadline: float | None
