"""One trial: train a recipe's student under the stage cache, and say what it is worth."""

from __future__ import annotations

import math
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.pipeline.project import Project
from edgekd.pipeline.trained_source import TrainingStages
from edgekd.report.search.tables import TrialFigures
from edgekd.stages.cache import Cache
from edgekd.stages.progress import Silent
from edgekd.stages.stage import Runner

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from edgekd.config.recipe import Recipe, TaskConfig
    from edgekd.stages.progress import Observer
    from edgekd.training.search_metrics import StudentTimer

#: Options of a task that are its student's alone, so that they may leave the teacher as it is.
_STUDENT = "student"

#: Digits of a latency's share: what two measurements of one network differ by is no difference.
_DIGITS = 2


class SearchTrials:
    """Tries variants of one recipe.

    Args:
        recipe: the user's own; its student is the reference of every latency.
        opset: of the target.
        cache: folder of finished stages.
    """

    def __init__(self, recipe: Recipe, opset: int, cache: Path) -> None:
        assert recipe.task is not None
        self._recipe, self._opset, self._cache = recipe, opset, Cache(cache)
        self._project = Project(recipe.task, cache)

    def __call__(self, recipe: Recipe, observer: Observer) -> TrialFigures:
        """Train a variant, as far as it is not trained yet, and appraise it.

        Raises:
            EdgekdError: any error that a user can cause.
        """
        from edgekd.training import search_metrics

        assert recipe.task is not None
        project, teachers = self._projects(recipe.task)
        learner = TrainingStages(Runner(self._cache, observer), project, recipe, self._opset, teachers=teachers)
        teacher, student = learner.networks()
        figures = search_metrics.validate(project.loaded, teacher, student, learner.taps)
        wrong = [name for name, value in figures.items() if not math.isfinite(value)]
        if wrong:
            raise ModelError(f"{wrong[0]} of the trained student is not a finite number")
        observer.advance("latency", 0, 0, "exporting, and waiting until no other worker measures")
        compared = self._stopwatch(project.loaded, student, learner.taps, latency_lock())
        return TrialFigures(
            metric=figures["validation"],
            latency=round(compared.ratio, _DIGITS),
            drift=figures["drift"],
            p50_ms=compared.p50_ms,
            reference_ms=compared.reference_ms,
            parameters=sum(parameter.numel() for parameter in student.parameters()),
        )

    def _projects(self, task: TaskConfig) -> tuple[Project, Project | None]:
        """Return a variant's task, and where its teacher is the recipe's own, whose training is shared, that one's."""
        from edgekd.training import search_metrics

        own = self._project.config
        if task == own:
            return self._project, None
        project = Project(task, self._cache.root)
        shared = _without_student(task) == _without_student(own)
        if shared and search_metrics.same_teacher(self._project.loaded, project.loaded, self._recipe.seed):
            return project, self._project
        return project, None

    @cached_property
    def _stopwatch(self) -> StudentTimer:
        from edgekd.training.search_metrics import StudentTimer

        learner = TrainingStages(Runner(self._cache, Silent()), self._project, self._recipe, self._opset)
        return StudentTimer(self._project.loaded, learner.taps, self._recipe.seed)


def _without_student(task: TaskConfig) -> dict[str, object]:
    return {name: value for name, value in task.options.items() if name != _STUDENT}


def latency_lock() -> AbstractContextManager[object]:
    """Return a lock of this host's user: of all searches, whatever their caches, one worker at a time measures."""
    path = Path(tempfile.gettempdir()) / f"edgekd-latency-{os.getuid()}.lock"
    lock: AbstractContextManager[object] = need("filelock", "build").FileLock(path)
    return lock
