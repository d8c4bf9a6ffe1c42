"""Training in several processes that torchrun starts: all of them train, and the first does everything else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from edgekd.errors import TaskError
from edgekd.stages.progress import Silent, StageReporter
from edgekd.stages.stage import Done, Runner, Stage

if TYPE_CHECKING:
    from edgekd.pipeline.trained_source import TrainingStages

R = TypeVar("R")


def world_size() -> int:
    """Return the number of processes in which this build was started."""
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def is_follower() -> bool:
    """Whether this process only trains, and another one builds."""
    return world_size() > 1 and int(os.environ["RANK"]) > 0


def train(stages: TrainingStages) -> None:
    """Run the stages that train in all processes; then the first has them in its cache, and the others are finished.

    Raises:
        RankError: Another process ended, hangs, or cannot be reached.
        TaskError: Another process has other code, options or data.
    """
    from edgekd.training.loop import distributed

    runner = stages.runner
    with distributed.process_group(stages.recipe.device):
        if distributed.is_main():
            _ = stages.project.identity  # loads the data and remembers the digest, for the others to find both
        distributed.barrier()
        replace(stages, runner=_Joint(runner.cache, runner.observer, runner.times)).train()


class _Joint(Runner):
    """Runs a stage in all processes where it is not up to date; rank 0 alone reads and writes the cache."""

    def execute(self, stage: Stage[R]) -> Done[R]:
        """Run a stage that is ready, or read its result."""
        from edgekd.training.loop import distributed

        if distributed.broadcast_object(stage.key) != stage.key:
            raise TaskError(
                f"stage '{stage.name}': this process has another recipe, other code or other data than rank 0, so they "
                "cannot train together; start all with one command, and seed what is random in the task"
            )
        return self._lead(stage) if distributed.is_main() else self._follow(stage)

    def _lead(self, stage: Stage[R]) -> Done[R]:
        from edgekd.training.loop import distributed

        runs = []

        def run(folder: Path, report: StageReporter) -> R:
            runs.append(distributed.broadcast_object(str(folder)))
            return stage.run(folder, report)

        done = super().execute(replace(stage, run=run))
        if not runs:
            distributed.broadcast_object(None)
        distributed.broadcast_object(msgspec.to_builtins(done.result))
        return done

    def _follow(self, stage: Stage[R]) -> Done[R]:
        from edgekd.training.loop import distributed

        folder = distributed.broadcast_object()
        if folder is not None:
            stage.run(Path(folder), StageReporter(Silent(), stage.name))
        return Done(
            stage.key, self.cache.root / stage.key, msgspec.convert(distributed.broadcast_object(), stage.spec.result)
        )
