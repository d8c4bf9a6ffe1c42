"""The study behind a search: the storage of its trials, their workers, and trials that are asked for again."""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from edgekd.errors import CacheError, MissingDependency
from edgekd.files import need
from edgekd.stages.cache import digest
from edgekd.workflows.search.job import AGAIN, ATTEMPT, ATTEMPTS, BEAT, OWN, PATIENCE_SECONDS, WORKER
from edgekd.workflows.search.space import Range

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from edgekd.workflows.search.job import SearchJob
    from edgekd.workflows.search.space import Params, Space

logging.getLogger("optuna").setLevel(logging.ERROR)

#: Number of trials that are drawn at random before the sampler learns from them.
_RANDOM = 10


class _Lock(JournalFileSymlinkLock):
    """A lock whose holder first removes a line that a killed writer or a full disk left half written.

    Whoever appended to it would make a line that nobody can read, and the whole study with it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def acquire(self) -> bool:
        """Take the lock, waiting for it."""
        taken = super().acquire()
        with self._path.open("rb+") as journal:
            size = journal.seek(0, os.SEEK_END)
            if size:
                journal.seek(size - 1)
                if journal.read(1) != b"\n":
                    journal.seek(0)
                    journal.truncate(journal.read().rfind(b"\n") + 1)
        return taken


def is_url(storage: str) -> bool:
    """Return whether a storage is a database's URL rather than a file's path."""
    return "://" in storage


def without_password(storage: str) -> str:
    """Return a storage as it may be shown: without a password."""
    return make_url(storage).render_as_string() if is_url(storage) else storage


def open_storage(storage: str) -> BaseStorage:
    """Open a database by its URL, or else a journal, which is a file that several machines may share.

    Raises:
        MissingDependency: The driver of the database is not installed.
        CacheError: The storage cannot be opened.
    """
    try:
        if is_url(storage):
            # SQLite lets one write at a time; the others wait.
            patient = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}
            return RDBStorage(storage, engine_kwargs=patient)
        path = Path(storage)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), _Lock(path)))
    except ImportError as error:
        raise MissingDependency(
            f"--storage {without_password(storage)}: the driver of this database is missing: {error}"
        ) from error
    except (OSError, ValueError, KeyError, SQLAlchemyError, RuntimeError) as error:
        what = str(error).strip().partition("\n")[0]
        raise CacheError(f"--storage {_safe(storage)}: cannot be opened, or is no study's: {what}") from error


def _safe(storage: str) -> str:
    """Return a storage without a password, even where it is not a valid URL."""
    try:
        return without_password(storage)
    except SQLAlchemyError:
        return "URL"


def open_study(search: SearchJob) -> Study:
    """Open the study of a search, or create it.

    Raises:
        MissingDependency: The driver of its database is not installed.
        CacheError: Its storage cannot be opened.
    """
    return optuna.create_study(
        storage=open_storage(search.storage),
        study_name=search.study,
        directions=list(search.directions),
        load_if_exists=True,
    )


def enqueue_recipe(study: Study, params: Params) -> None:
    """Ask for the recipe as it stands as the first trial of the study."""
    if not any(OWN in trial.user_attrs for trial in study.get_trials(deepcopy=False)):
        study.enqueue_trial(params, user_attrs={OWN: True})


def make_sampler(seed: int, *others: str | int) -> BaseSampler:
    """Return the sampler that draws a trial: multivariate TPE, at random at first.

    Args:
        seed: The recipe's seed.
        others: Values that distinguish this draw from every other.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=_RANDOM,
            multivariate=True,
            group=True,  # not every trial has a factor on shares
            constant_liar=True,  # trials that other workers are running are not drawn again
            seed=int(digest([seed, *others])[:8], 16),
        )


def suggest_params(trial: Trial, space: Space, own: bool) -> Params:
    """Draw the values of a trial. For the recipe as it stands only the axes whose value is known are drawn."""
    params: Params = {}
    for axis in space.asked(params):
        if own and axis.own is None:
            continue
        if not isinstance(axis, Range):
            drawn = trial.suggest_categorical(axis.key, axis.values)
            assert drawn is not None  # None is no choice here, though Optuna knows it
            params[axis.key] = drawn
        elif axis.whole:
            step = int(axis.step or 1)
            params[axis.key] = trial.suggest_int(axis.key, int(axis.low), int(axis.high), step=step, log=axis.log)
        else:
            params[axis.key] = trial.suggest_float(axis.key, axis.low, axis.high, step=axis.step, log=axis.log)
    return params


def superseded(trials: Iterable[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials that later trials repeat."""
    return {trial.user_attrs[AGAIN] for trial in trials if AGAIN in trial.user_attrs}


def count_begun(trials: list[FrozenTrial]) -> int:
    """Return how many trials are finished or running; a trial that is repeated counts once."""
    repeated = superseded(trials)
    return sum(trial.state != TrialState.WAITING and trial.number not in repeated for trial in trials)


class WorkerIdentity:
    """A worker as other workers see it: on its own machine by a lock that the kernel releases with the process.

    Args:
        name: Name of the worker.
        cache: Folder of the worker's lock.

    Attributes:
        facts: The worker's name, host, start of the machine and lock, as a study keeps them.
    """

    def __init__(self, name: str, cache: Path) -> None:
        self._path = cache / f"search-worker-{name}.lock"
        self._lock = need("filelock", "build").FileLock(self._path)
        self.facts = {"name": name, "host": socket.gethostname(), "boot": _boot(), "lock": str(self._path)}

    def __enter__(self) -> WorkerIdentity:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._path.unlink(missing_ok=True)


def _boot() -> str:
    """Return the identity of this start of this machine; two containers of one machine have the same."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def requeue_abandoned(study: Study) -> None:
    """Ask again for the trials whose workers are gone."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _gone(trial):
            requeue(study, trial)


def requeue(study: Study, trial: FrozenTrial, blame: bool = True) -> None:
    """Ask again for a trial that was interrupted, unless it has cost too many workers.

    Args:
        study: The study.
        trial: The interrupted trial.
        blame: Whether this counts as an attempt, since the worker died by itself.
    """
    attempt = trial.user_attrs.get(ATTEMPT, 1)
    drawn = OWN in trial.user_attrs or trial.params
    if drawn and attempt + blame <= ATTEMPTS:
        kept = {key: trial.user_attrs[key] for key in (OWN,) if key in trial.user_attrs}
        # This comes first, so that a trial is rather run twice than never.
        study.enqueue_trial(trial.params, {**kept, AGAIN: trial.number, ATTEMPT: attempt + blame})
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _gone(trial: FrozenTrial) -> bool:
    worker: dict[str, str] = trial.user_attrs.get(WORKER, {})
    lock = Path(worker.get("lock", ""))
    if worker.get("boot") == _boot() and lock.is_file():
        return _free(lock)
    since = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - float(trial.user_attrs.get(BEAT, since)) > PATIENCE_SECONDS


def _free(path: Path) -> bool:
    """Return whether nobody holds a lock; such a lock is removed, since no worker has its name again."""
    filelock = need("filelock", "build")
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    lock.release()
    path.unlink(missing_ok=True)
    return True
