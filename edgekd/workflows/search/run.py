"""A search: plan it, let workers run its trials, and say what they found. The work behind ``edgekd search``."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import edgekd
from edgekd.config.recipe import DEFAULT_FILE, Draft, draft_recipe, recipe_name
from edgekd.config.target import load_targets
from edgekd.errors import OutputError, RecipeError, TaskError
from edgekd.files import make_folder, need, toml_value
from edgekd.pipeline.build import fit_widths
from edgekd.pipeline.project import Project
from edgekd.pipeline.publish import writing
from edgekd.pipeline.trained_source import LIBRARIES
from edgekd.report.search.tables import write_search
from edgekd.runtime.measure.machine import machine_facts
from edgekd.stages.cache import Cache, digest
from edgekd.stages.progress import Observer, Silent
from edgekd.tasks.catalogue import CATALOGUE
from edgekd.workflows.search.job import SearchJob
from edgekd.workflows.search.space import Choices, Range, make_space

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.report.search.tables import SearchResult
    from edgekd.workflows.search.space import Space

#: Trials of a study where neither their number nor a time is given.
TRIALS = 30


@dataclass(frozen=True)
class Wanted:
    """What a search is asked for.

    Attributes:
        recipe: a path, a shipped name, or None for ``edgekd.toml`` in the working directory.
        overrides: as for :func:`edgekd.config.recipe.load_recipe`.
        targets: what pruned widths are to suit, as in a build.
        cache: folder of finished stages, and of the study where no storage is given.
        output: folder of what was found.
        trials: how many the study is to have, those of earlier commands and other machines included.
        seconds: how long trials are begun; None for no limit.
        workers: processes on this host.
        storage: a database's URL, or a file; None for one in the cache.
        study: its name; None for one that stands for recipe, task and space.
    """

    recipe: str | None
    overrides: tuple[str, ...]
    targets: tuple[str, ...]
    cache: Path
    output: Path
    trials: int | None = None
    seconds: float | None = None
    workers: int = 1
    storage: str | None = None
    study: str | None = None


def search(wanted: Wanted, observer: Observer | None = None) -> SearchResult:
    """Search, and write ``search.json`` and ``search.svg`` into the output folder.

    A search that was killed, or that another machine is at, goes on when it is called again.

    Raises:
        KeyboardInterrupt: it was interrupted; what is finished is kept and written all the same.
        EdgekdError: any error that a user can cause. Where every trial failed, that of the first.
    """
    need("optuna", "search")
    from edgekd.workflows.search.pool import WorkerPool
    from edgekd.workflows.search.results import StudyDescription, first_failure, read_study, register_study
    from edgekd.workflows.search.study import enqueue_recipe, open_study

    make_folder(wanted.output, OutputError, "--output")
    name = recipe_name(wanted.recipe)
    plan, stamp, metric = _plan(wanted, name)
    study = open_study(plan)
    about = StudyDescription(wanted.recipe or DEFAULT_FILE, wanted.overrides, metric, stamp)
    register_study(study, about, _machine())
    enqueue_recipe(study, plan.space.own)
    observer = observer or Silent()
    until = None if wanted.seconds is None else time.monotonic() + wanted.seconds
    try:
        WorkerPool(study, plan, wanted.workers, until, observer).run()
    finally:
        found = read_study(study, plan, about)
        with writing(wanted.output):
            write_search(found, wanted.output)
    if not found.done and (error := first_failure(study)) is not None:
        raise error
    return found


def _plan(wanted: Wanted, name: str) -> tuple[SearchJob, str, str]:
    """Return the plan, a digest of all that its trials depend on, and the metric's name."""
    draft = draft_recipe(wanted.recipe, wanted.overrides)
    recipe = draft.recipe()
    if recipe.task is None:
        raise RecipeError(f"{draft.source}: a search trains students, so it needs a [task], not a [model]")
    targets = load_targets(wanted.targets)
    draft = _fitted(draft, recipe, targets)
    cache = Cache(wanted.cache).root.absolute()
    project = Project(recipe.task, cache)
    space = make_space(draft, _width(recipe))
    _check_tasks(space, cache)
    stamp = digest([draft.written, project.identity, draft.content["prune"]["round_to"]])
    study = wanted.study or f"{name}-{stamp[:8]}"
    task = project.loaded
    plan = SearchJob(
        draft=draft,
        choices=tuple(axis for axis in space.axes if isinstance(axis, Choices)),
        ranges=tuple(axis for axis in space.axes if isinstance(axis, Range)),
        opset=targets[0].opset,
        cache=str(cache),
        storage=_storage(wanted.storage, cache, study),
        study=study,
        directions=("maximize" if task.higher_is_better else "minimize", "minimize", "minimize"),
        trials=TRIALS if wanted.trials is None and wanted.seconds is None else wanted.trials,
    )
    return plan, stamp, task.metric_name


def _fitted(draft: Draft, recipe: Recipe, targets: Sequence[Target]) -> Draft:
    """Return the recipe with widths that suit the targets, so that a build of a trial finds its stages done."""
    prune = {**draft.content.get("prune", {}), "round_to": fit_widths(recipe, targets).prune.round_to}
    return Draft({**draft.content, "prune": prune}, draft.source, draft.written)


def _storage(given: str | None, cache: Path, study: str) -> str:
    from edgekd.workflows.search.study import is_url

    if given is None:
        return str(cache / "search" / f"{study}.journal")
    return given if is_url(given) else str(Path(given).absolute())


def _width(recipe: Recipe) -> int | None:
    """Return the width of a shipped task's student, which its options may change; None for another task's."""
    task = recipe.task
    assert task is not None
    if task.name not in {known.name for known in CATALOGUE}:
        return None
    need("torch", "build")
    size = importlib.import_module(f"edgekd.tasks.{task.name}").STUDENT
    return int(task.options.get("student", {}).get("width", size.width))


def _check_tasks(space: Space, cache: Path) -> None:
    """Make the task and its student with each end of what varies in its options, so that no trial is wasted on a typo.

    Raises:
        TaskError: one cannot be made.
    """
    from edgekd.training.search_metrics import make_student

    for axis in space.axes:
        for value in axis.ends() if axis.key.startswith("task.") else ():
            recipe = space.recipe({axis.key: value})
            assert recipe.task is not None
            try:
                make_student(Project(recipe.task, cache).loaded, recipe.seed)
            except TaskError as error:
                raise TaskError(f"[search.space] {axis.key} = {toml_value(value)}: {error}") from error


def _machine() -> dict[str, str]:
    return {**machine_facts((*LIBRARIES, "optuna")), "edgekd": edgekd.__version__}
