"""The result of a search: its records, its table and its files."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from edgekd.gram.pareto import pareto_front
from edgekd.report.format import factor, milliseconds, number
from edgekd.report.table import Column, Table, metric_name
from edgekd.runtime.manifest import null_not_finite

if TYPE_CHECKING:
    from edgekd.files import JsonObject

SCHEMA_VERSION = 1

#: The files that a search writes.
TABLE, PICTURE = "search.json", "search.svg"


@dataclass(frozen=True)
class TrialFigures:
    """The figures of a trial's student.

    Attributes:
        metric: The task's metric on the validation split.
        latency: The p50 at batch 1 on one thread, as a share of that of the recipe's own student before pruning.
        drift: Drift of its Gram matrix from the teacher's on the validation split.
        p50_ms: The p50 in ms, on the trial's machine.
        reference_ms: The p50 in ms of the recipe's own student, which took turns with it.
        parameters: Number of parameters.
    """

    metric: float
    latency: float
    drift: float
    p50_ms: float
    reference_ms: float
    parameters: int


@dataclass(frozen=True)
class SearchTrial:
    """One trial of a search.

    Attributes:
        number: Number of the trial in the study.
        state: State of the trial; "lost" is one whose worker was killed and that was tried again.
        own: Whether it is the recipe as it stands.
        settings: The settings that ``--set`` takes to build it.
        appraisal: The figures of its student; None unless it is done.
        reason: Why it failed; "" where it did not.
        host: The machine that ran it.
        seconds: How long it took in s; None where it has not ended.
    """

    number: int
    state: Literal["done", "failed", "running", "waiting", "lost"]
    own: bool
    settings: tuple[str, ...]
    appraisal: TrialFigures | None
    reason: str
    host: str
    seconds: float | None


@dataclass(frozen=True)
class SearchResult:
    """A study with all of its trials.

    Attributes:
        study: Name of the study.
        storage: Where the study is kept, without a password.
        recipe: The recipe, as the user named it.
        overrides: The settings that the user gave with ``--set``.
        metric: Name of the task's metric.
        higher_is_better: Whether a larger metric is better.
        space: The range or the choices of each key of the recipe that is searched.
        trials: All trials, by number.
        machines: Facts about each host that took part, and the versions of its libraries.
    """

    study: str
    storage: str
    recipe: str
    overrides: tuple[str, ...]
    metric: str
    higher_is_better: bool
    space: dict[str, object]
    trials: tuple[SearchTrial, ...]
    machines: dict[str, dict[str, str]]

    @property
    def done(self) -> tuple[SearchTrial, ...]:
        """The trials with figures, the best metric first."""
        known = [trial for trial in self.trials if trial.appraisal]
        return tuple(sorted(known, key=lambda trial: (self._costs(trial), trial.number)))

    @property
    def front(self) -> tuple[SearchTrial, ...]:
        """The trials that no other beats, the best metric first; of several with equal figures the first alone."""
        done = self.done
        return tuple(done[index] for index in pareto_front([self._costs(trial) for trial in done]))

    @property
    def failed(self) -> tuple[SearchTrial, ...]:
        """The trials that failed by themselves."""
        return tuple(trial for trial in self.trials if trial.state == "failed")

    def command(self, trial: SearchTrial) -> str:
        """Return the command that builds a trial."""
        sets = (part for setting in (*self.overrides, *trial.settings) for part in ("--set", setting))
        return shlex.join(["edgekd", "build", "--recipe", self.recipe, *sets])

    def _costs(self, trial: SearchTrial) -> tuple[float, float, float]:
        """Return the objectives as costs: the lower, the better."""
        known = trial.appraisal
        assert known is not None
        return (-known.metric if self.higher_is_better else known.metric, known.latency, known.drift)


def search_table(result: SearchResult) -> Table:
    """Return the table of the Pareto front, the best metric first, with the recipe as it stands at its rank."""
    front = result.front
    shown = [trial for trial in result.done if trial in front or trial.own]
    columns = (
        Column("trial", right=False),
        *(Column(name) for name in (metric_name(result.metric), "drift", "latency", "p50 ms")),
        Column("settings", right=False),
    )
    return Table("Pareto front", columns, tuple(_row(trial, trial in front) for trial in shown), _notes(result))


def _row(trial: SearchTrial, best: bool) -> tuple[str, ...]:
    known = trial.appraisal
    assert known is not None
    name = f"{trial.number}{' recipe' if trial.own else ''}{'' if best else ' (beaten)'}"
    figures = (number(known.metric), number(known.drift), factor(known.latency), milliseconds(known.p50_ms))
    return (name, *figures, "as the recipe stands" if trial.own else _short(trial.settings))


def _short(settings: tuple[str, ...]) -> str:
    """Write settings for readers: of each key only the last word."""
    pairs = (setting.partition("=") for setting in settings)
    return ", ".join(f"{key.rpartition('.')[2]} {'none' if value == '{}' else value}" for key, _, value in pairs)


def _notes(result: SearchResult) -> tuple[str, ...]:
    better = "higher" if result.higher_is_better else "lower"
    done, failed = len(result.done), len(result.failed)
    notes = [
        f"{done} trials done{f', {failed} failed' if failed else ''}; {result.metric} ({better} is better) and drift "
        "from the teacher: of the validation split.",
        "latency: p50 as a share of the recipe's own student before pruning; they took turns, float, one thread.",
    ]
    if len(result.machines) > 1:
        notes.append(f"p50 ms: each on its own machine ({', '.join(result.machines)}), so compare the shares.")
    if result.failed:
        first = result.failed[0]
        notes.append(f"The first that failed, trial {first.number}: {first.reason}")
    return tuple(notes)


def search_json(result: SearchResult) -> JsonObject:
    """Return the study as JSON values; a figure that is not finite is null."""
    front = {trial.number for trial in result.front}
    trials = [
        {**asdict(trial), "front": trial.number in front, "command": result.command(trial)} for trial in result.trials
    ]
    content: JsonObject = null_not_finite({"schema_version": SCHEMA_VERSION, **asdict(result), "trials": trials})
    return content
