"""What every worker of a search is told. Plain values alone, so that it travels as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekd.config.recipe import Draft  # noqa: TC001 - msgspec reads the annotations
from edgekd.workflows.search.space import Choices, Range, Space

#: A trial that is asked for again counts as the one that was lost; after so many losses it is not asked for again.
ATTEMPTS = 3

#: A worker says that it is alive every so many seconds; on another machine it counts as gone after so many.
BEAT_SECONDS, PATIENCE_SECONDS = 30.0, 300.0

#: What a study remembers of its trials' workers and outcomes, by name.
OWN, WORKER, BEAT, OUTCOME, FAILURE, AGAIN, ATTEMPT = (
    "own", "worker", "beat", "outcome", "failure", "again", "attempt",
)  # fmt: skip


@dataclass(frozen=True)
class SearchJob:
    """A search.

    Attributes:
        draft: the recipe, its pruned widths fitted to the targets.
        choices: axes of the space.
        ranges: the others.
        opset: of the target.
        cache: folder of finished stages.
        storage: where the study is kept: a URL, or an absolute path.
        study: its name.
        directions: of metric, latency and drift.
        trials: how many the study is to have; None for no limit.
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
        """What is varied."""
        return Space(self.draft, (*self.choices, *self.ranges))


@dataclass(frozen=True)
class WorkerJob:
    """What one worker is told beside the plan.

    Attributes:
        plan: the search.
        worker: names the worker, all over the study.
        number: of the worker on its host, from 0.
        deadline: seconds from now after which no more trial is begun; None for no limit.
    """

    plan: SearchJob
    worker: str
    number: int
    deadline: float | None
