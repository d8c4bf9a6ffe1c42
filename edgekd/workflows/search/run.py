"""Search for better students: plan a study, let workers run its trials, report them. The work of ``edgekd search``."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import edgekd
from edgekd.config.loading import DEFAULT_FILE, Draft, draft_recipe, recipe_name
from edgekd.config.toml import toml_value
from edgekd.errors import RecipeError, TaskError
from edgekd.files import need
from edgekd.pipeline.build import fit_widths
from edgekd.pipeline.output import writing
from edgekd.pipeline.project import Project
from edgekd.pipeline.trained_source import LIBRARIES
from edgekd.report.search.files import write_search
from edgekd.report.search.tables import PICTURE, TABLE
from edgekd.runtime.measure.machine import machine_facts
from edgekd.stages.cache import Cache, digest
from edgekd.stages.progress import Observer, Silent
from edgekd.tasks.catalogue import CATALOGUE
from edgekd.workflows.arguments import DEFAULT_CACHE, resolve_paths, resolve_targets
from edgekd.workflows.search.job import SearchJob
from edgekd.workflows.search.space import Choices, Range, make_space
from edgekd.workflows.trials import require_teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekd.config.recipe import Recipe
    from edgekd.config.target import Target
    from edgekd.report.search.tables import SearchResult
    from edgekd.workflows.arguments import PathArgument, TargetsArgument
    from edgekd.workflows.search.space import Space

#: Number of trials of a study where neither a number nor a time is given.
TRIALS = 30

#: Version of what is measured of a trial. A higher one begins new studies.
_FIGURES_VERSION = 2


@dataclass(frozen=True)
class SearchOptions:
    """How long a search goes on, and where its study is kept.

    Attributes:
        trials: How many trials the study is to have, those of earlier calls and other machines included; None for no
            limit where ``seconds`` is given, and else for 30.
        seconds: For how many seconds trials are begun; None for no limit.
        workers: Number of processes on this host.
        storage: A database's URL, or a file; None for a file in the cache.
        study: Name of the study; None for a name that stands for recipe, task and space.
    """

    trials: int | None = None
    seconds: float | None = None
    workers: int = 1
    storage: str | None = None
    study: str | None = None


def search(
    recipe: str | Path | None = None,
    targets: TargetsArgument = "cpu",
    *,
    overrides: Sequence[str] = (),
    output: PathArgument | None = None,
    options: SearchOptions | None = None,
    cache: PathArgument = DEFAULT_CACHE,
    observer: Observer | None = None,
) -> SearchResult:
    """Search for better students than the recipe's own, and write ``search.json`` and ``search.svg`` into the output.

    A search that was killed, or that another machine works at, continues when it is called again.

    Args:
        recipe: A shipped recipe's name or a file; by default ``edgekd.toml`` in the working directory.
        targets: The kinds of device that pruned widths are to suit, as for :func:`edgekd.build`.
        overrides: Changes of the recipe, e.g. ``"distill.epochs=5"``.
        output: Folder of the result; by default ``build/`` and the recipe's name.
        options: How long the search goes on, and where its study is kept.
        cache: Folder of finished stages, and of the study where no storage is given.
        observer: Receives the progress of each trial as of a stage.

    Raises:
        KeyboardInterrupt: The search was interrupted; the finished trials are kept and written all the same.
        EdgekdError: Any error that a user can cause. Where every trial failed, the error of the first.
    """
    need("optuna", "search")
    from edgekd.workflows.search.pool import WorkerPool
    from edgekd.workflows.search.results import StudyDescription, first_failure, read_study, register_study
    from edgekd.workflows.search.study import enqueue_recipe, open_study

    options = options or SearchOptions()
    reference = None if recipe is None else str(recipe)
    name = recipe_name(reference)
    paths = resolve_paths(output, cache, name)
    paths.check((TABLE, PICTURE))
    draft = draft_recipe(reference, tuple(overrides))
    job, stamp, metric = _plan(draft, resolve_targets(targets), paths.cache, options, name)
    study = open_study(job)
    description = StudyDescription(reference or DEFAULT_FILE, tuple(overrides), metric, stamp)
    register_study(study, description, _machine())
    enqueue_recipe(study, job.space.own)
    until = None if options.seconds is None else time.monotonic() + options.seconds
    try:
        WorkerPool(study, job, options.workers, until, observer or Silent()).run()
    finally:
        result = read_study(study, job, description)
        with writing(paths.output, (TABLE, PICTURE)):
            write_search(result, paths.output)
    if not result.done and (error := first_failure(study)) is not None:
        raise error
    return result


def _plan(
    draft: Draft, targets: Sequence[Target], folder: Path, options: SearchOptions, name: str
) -> tuple[SearchJob, str, str]:
    """Return the search, a digest of all that its trials depend on, and the metric's name."""
    recipe = draft.recipe()
    if recipe.task is None:
        raise RecipeError(f"{draft.source}: a search trains students, so it needs a [task], not a [model]")
    if recipe.student.weights:
        raise RecipeError(
            f"{draft.source}: a search trains students, and its [student] weights are trained already: leave them out"
        )
    draft = _fitted(draft, recipe, targets)
    cache = Cache(folder).root.absolute()
    project = Project(recipe.task, cache)
    require_teacher(project)
    space = make_space(draft, _width(recipe))
    _check_tasks(space, cache)
    stamp = digest([_FIGURES_VERSION, draft.written, project.identity, draft.content["prune"]["round_to"]])
    study = options.study or f"{name}-{stamp[:8]}"
    task = project.loaded
    job = SearchJob(
        draft=draft,
        choices=tuple(axis for axis in space.axes if isinstance(axis, Choices)),
        ranges=tuple(axis for axis in space.axes if isinstance(axis, Range)),
        opset=targets[0].opset,
        cache=str(cache),
        storage=_storage(options.storage, cache, study),
        study=study,
        directions=("maximize" if task.higher_is_better else "minimize", "minimize", "minimize"),
        trials=TRIALS if options.trials is None and options.seconds is None else options.trials,
    )
    return job, stamp, task.metric_name


def _fitted(draft: Draft, recipe: Recipe, targets: Sequence[Target]) -> Draft:
    """Return the recipe with pruned widths that suit the targets, so that a build of a trial uses its stages again."""
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
    size = importlib.import_module(f"edgekd.tasks.{task.name.replace('-', '_')}").STUDENT
    return int(task.options.get("student", {}).get("width", size.width))


def _check_tasks(space: Space, cache: Path) -> None:
    """Make the task and its student with the ends of each axis of its options, so that a typo wastes no trial.

    Raises:
        TaskError: A task or its student cannot be made.
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
