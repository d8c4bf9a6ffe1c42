"""Stage: find out whether training is faster with one thread or with several, where the recipe asks for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.runtime.measure.machine import usable_cores
from edgekd.stages.stage import StageSpec

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.config.recipe import Recipe
    from edgekd.pipeline.project import Project
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Runner
    from edgekd.training.taps.taps import Taps


@dataclass(frozen=True)
class ThreadChoice:
    """The number of threads that trains.

    Attributes:
        threads: The number.
        step_ms: For each number that was timed the milliseconds of a step of teacher and student.
    """

    threads: int
    step_ms: dict[str, float]

    def __str__(self) -> str:
        """Describe the result in words."""
        times = ", ".join(f"{milliseconds:.3g} ms with {count}" for count, milliseconds in self.step_ms.items())
        return f"{self.threads} thread{'s' * (self.threads != 1)}: a step takes {times}"


THREADS: StageSpec[ThreadChoice] = StageSpec(
    "threads", 1, ThreadChoice, ("torch",), "time training with one thread and with several, where the recipe asks"
)


def choose_threads(runner: Runner, project: Project, recipe: Recipe, taps: Taps) -> int:
    """Return the number of threads with which a step of both trainings is fastest, or read what was found.

    It is found once for a task, its batches and this machine's number of processors, so that a resumed build trains on
    as it began, and belongs to the key of what is trained like a number in the recipe.

    Args:
        runner: Runs the stage.
        project: The task.
        recipe: What is to be trained.
        taps: Where the networks' embeddings are.
    """
    most = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # which torchrun sets

    def run(_folder: Path, _report: StageReporter) -> ThreadChoice:
        from edgekd.training.thread_timing import faster, time_threads

        times = time_threads(project.loaded, taps, recipe, most)
        return ThreadChoice(faster(times), {str(count): each for count, each in times.items()})

    config = {"batch": [recipe.teacher.batch_size, recipe.distill.batch_size], "seed": recipe.seed, "most": most}
    return runner(THREADS, config=config, inputs={"task": project.identity}, run=run).result.threads
