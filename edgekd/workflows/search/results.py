"""The description of a study that is kept with it, and its trials as a report shows them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec
from optuna.trial import TrialState

from edgekd import errors
from edgekd.errors import EdgekdError, ModelError, RecipeError
from edgekd.report.search.tables import SearchResult, SearchTrial, TrialFigures
from edgekd.workflows.search.job import FAILURE, OUTCOME, OWN, WORKER
from edgekd.workflows.search.study import superseded, without_password

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from edgekd.workflows.search.job import SearchJob
    from edgekd.workflows.search.space import Space

_ABOUT, _MACHINE = "stamp", "machine "

_KILLED = "its worker was killed again and again, as by a lack of memory"


@dataclass(frozen=True)
class StudyDescription:
    """The recipe that a study varies.

    Attributes:
        recipe: The recipe's name or file, as the user gave it.
        overrides: The user's changes of the recipe, as for ``--set``.
        metric: Name of the task's metric.
        stamp: Digest of everything that the trials depend on.
    """

    recipe: str
    overrides: tuple[str, ...]
    metric: str
    stamp: str


def register_study(study: Study, about: StudyDescription, machine: dict[str, str]) -> None:
    """Write the description of a new study, or check that an old one has the same, and describe this machine.

    Raises:
        RecipeError: The study was begun with another recipe, task or space.
    """
    stamp = study.user_attrs.get(_ABOUT)
    if stamp is None:
        study.set_user_attr(_ABOUT, about.stamp)
    elif stamp != about.stamp:
        raise RecipeError(
            f"the study '{study.study_name}' was begun with another recipe, task or space, or by an edgekd that "
            "measured something else of a trial; name another with --study, or leave it out: then what has changed "
            "gets a study of its own"
        )
    study.set_user_attr(_MACHINE + socket.gethostname(), machine)


def read_study(study: Study, search: SearchJob, about: StudyDescription) -> SearchResult:
    """Return the trials of a study so far."""
    trials = study.get_trials(deepcopy=False)
    repeated, space = superseded(trials), search.space
    machines = {k.removeprefix(_MACHINE): v for k, v in study.user_attrs.items() if k.startswith(_MACHINE)}
    return SearchResult(
        study=search.study,
        storage=without_password(search.storage),
        recipe=about.recipe,
        overrides=about.overrides,
        metric=about.metric,
        higher_is_better=search.directions[0] == "maximize",
        space=space.plain(),
        trials=tuple(_trial(trial, space, trial.number in repeated) for trial in trials),
        machines=machines,
    )


def first_failure(study: Study) -> EdgekdError | None:
    """Return the error of the first trial that failed, as the class that it had; None where none failed."""
    trials = study.get_trials(deepcopy=False)
    repeated = superseded(trials)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL and trial.number not in repeated]
    if not failed:
        return None
    first = failed[0].user_attrs.get(FAILURE, {"kind": "", "reason": _KILLED})
    kind = getattr(errors, first["kind"], None)
    known = kind if isinstance(kind, type) and issubclass(kind, EdgekdError) else ModelError
    which = f"all {len(failed)} trials failed" if len(failed) > 1 else "the only trial failed"
    return known(f"the search '{study.study_name}' has no result: {which}; the first: {first['reason']}")


def _trial(trial: FrozenTrial, space: Space, again: bool) -> SearchTrial:
    known, own = trial.user_attrs.get(OUTCOME), OWN in trial.user_attrs
    state = _state(trial, again)
    reason = str(trial.user_attrs.get(FAILURE, {}).get("reason", _KILLED)) if state == "failed" else ""
    return SearchTrial(
        number=trial.number,
        state=state,
        own=own,
        settings=() if own else space.settings(trial.params),
        appraisal=msgspec.convert(known, TrialFigures) if known and state == "done" else None,
        reason=reason,
        host=str(trial.user_attrs.get(WORKER, {}).get("host", "")),
        seconds=trial.duration.total_seconds() if trial.duration else None,
    )


def _state(trial: FrozenTrial, again: bool) -> Literal["done", "failed", "running", "waiting", "lost"]:
    if again:
        return "lost"
    if trial.state == TrialState.COMPLETE:
        return "done"
    if trial.state == TrialState.RUNNING:
        return "running"
    return "waiting" if trial.state == TrialState.WAITING else "failed"
