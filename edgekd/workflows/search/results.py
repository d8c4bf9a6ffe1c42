"""What a study holds, as a report shows it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optuna.trial import TrialState

from edgekd import errors
from edgekd.errors import EdgekdError, ModelError, RecipeError
from edgekd.report.search.tables import Appraisal, SearchResult, SearchTrial
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
    """What a study is of.

    Attributes:
        recipe: what the user called it.
        overrides: by ``--set``.
        metric: its name.
        stamp: digest of all that the trials depend on.
    """

    recipe: str
    overrides: tuple[str, ...]
    metric: str
    stamp: str


def register_study(study: Study, about: StudyDescription, machine: dict[str, str]) -> None:
    """Write down what a new study is of, or check that it is the same, and describe this machine.

    Raises:
        RecipeError: the study is of another recipe, task or space.
    """
    stamp = study.user_attrs.get(_ABOUT)
    if stamp is None:
        study.set_user_attr(_ABOUT, about.stamp)
    elif stamp != about.stamp:
        raise RecipeError(
            f"the study '{study.study_name}' was begun with another recipe, task or space; name another with --study, "
            "or leave it out: then what has changed gets a study of its own"
        )
    study.set_user_attr(_MACHINE + socket.gethostname(), machine)


def read_study(study: Study, plan: SearchJob, about: StudyDescription) -> SearchResult:
    """Return what a study found so far."""
    trials = study.get_trials(deepcopy=False)
    over, space = superseded(trials), plan.space
    machines = {k.removeprefix(_MACHINE): v for k, v in study.user_attrs.items() if k.startswith(_MACHINE)}
    return SearchResult(
        study=plan.study,
        storage=without_password(plan.storage),
        recipe=about.recipe,
        overrides=about.overrides,
        metric=about.metric,
        higher_is_better=plan.directions[0] == "maximize",
        space=space.plain(),
        trials=tuple(_trial(trial, space, trial.number in over) for trial in trials),
        machines=machines,
    )


def first_failure(study: Study) -> EdgekdError | None:
    """Return the error of the first trial that failed, as the class that it was; None where none failed."""
    trials = study.get_trials(deepcopy=False)
    over = superseded(trials)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL and trial.number not in over]
    if not failed:
        return None
    first = failed[0].user_attrs.get(FAILURE, {"kind": "", "reason": _KILLED})
    kind = getattr(errors, first["kind"], None)
    known = kind if isinstance(kind, type) and issubclass(kind, EdgekdError) else ModelError
    every = f"all {len(failed)} trials failed" if len(failed) > 1 else "the only trial failed"
    return known(f"the search '{study.study_name}' has no result: {every}; the first: {first['reason']}")


def _trial(trial: FrozenTrial, space: Space, again: bool) -> SearchTrial:
    known, own = trial.user_attrs.get(OUTCOME), OWN in trial.user_attrs
    state = _state(trial, again)
    reason = str(trial.user_attrs.get(FAILURE, {}).get("reason", _KILLED)) if state == "failed" else ""
    return SearchTrial(
        number=trial.number,
        state=state,
        own=own,
        settings=() if own else space.settings(trial.params),
        appraisal=Appraisal(**known) if known and state == "done" else None,
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
