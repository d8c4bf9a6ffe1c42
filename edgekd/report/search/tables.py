"""The result of a search: its records, its table and its files."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from edgekd.gram.pareto import pareto_front
from edgekd.gram.verdict import Verdict  # noqa: TC001  # msgspec reads the annotations of TrialFigures
from edgekd.report.format import factor, milliseconds, number
from edgekd.report.table import Column, Table, metric_name
from edgekd.runtime.manifest import null_not_finite

if TYPE_CHECKING:
    from edgekd.files import JsonObject

SCHEMA_VERSION = 1

#: The files that a search writes.
TABLE, PICTURE = "search.json", "search.svg"

#: The most rejected trials that a table shows.
_MOST_REJECTED = 5


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
        verdict: The gate's verdict on it against the student that it was cut from, in float, on the validation split.
        reasons: Why it does not simply pass.
        bound: Upper confidence bound of the drift of its Gram matrix from that student's.
    """

    metric: float
    latency: float
    drift: float
    p50_ms: float
    reference_ms: float
    parameters: int
    verdict: Verdict
    reasons: tuple[str, ...]
    bound: float

    @property
    def rejected(self) -> bool:
        """Whether the gate rejects it."""
        return self.verdict == "fail"


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

    @property
    def rejected(self) -> bool:
        """Whether it is done and the gate rejects it."""
        return self.appraisal is not None and self.appraisal.rejected


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
    def released(self) -> tuple[SearchTrial, ...]:
        """The trials with figures that the gate lets through, the best metric first."""
        return tuple(trial for trial in self.done if not trial.rejected)

    @property
    def rejected(self) -> tuple[SearchTrial, ...]:
        """The trials with figures that the gate rejects, the one that is nearest to its limits first."""
        return tuple(sorted((trial for trial in self.done if trial.rejected), key=_distance))

    @property
    def front(self) -> tuple[SearchTrial, ...]:
        """The released trials that no other beats, the best metric first; of several with equal figures the first."""
        released = self.released
        return tuple(released[index] for index in pareto_front([self._costs(trial) for trial in released]))

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
    """Return the table of the Pareto front, the best metric first, and below it what the gate rejects.

    The recipe as it stands is at its rank. Of many rejected trials only those nearest to the gate's limits are shown.
    """
    front = result.front
    shown = [trial for trial in result.released if trial in front or trial.own]
    nearest = [trial for trial in result.rejected if trial.own or trial in result.rejected[:_MOST_REJECTED]]
    columns = (
        Column("trial", right=False),
        *(Column(name) for name in (metric_name(result.metric), "drift", "latency", "p50 ms")),
        Column("gate", right=False),
        Column("settings", right=False),
    )
    rows = tuple(_row(trial, trial in front or trial.rejected) for trial in (*shown, *nearest))
    return Table("Pareto front" if front else "Rejected trials", columns, rows, _notes(result))


def _row(trial: SearchTrial, unbeaten: bool) -> tuple[str, ...]:
    known = trial.appraisal
    assert known is not None
    name = f"{trial.number}{' recipe' if trial.own else ''}{'' if unbeaten else ' (beaten)'}"
    figures = (number(known.metric), number(known.drift), factor(known.latency), milliseconds(known.p50_ms))
    verdict = "rejected" if known.rejected else known.verdict
    return (name, *figures, verdict, "as the recipe stands" if trial.own else _short(trial.settings))


def _distance(trial: SearchTrial) -> tuple[int, float, int]:
    """Return how far a rejected trial is from the gate's limits: how many are broken, then its drift."""
    known = trial.appraisal
    assert known is not None
    return len(known.reasons), known.bound, trial.number


def _short(settings: tuple[str, ...]) -> str:
    """Write settings for readers: of each key only the last word."""
    pairs = (setting.partition("=") for setting in settings)
    return ", ".join(f"{key.rpartition('.')[2]} {'none' if value == '{}' else value}" for key, _, value in pairs)


def _notes(result: SearchResult) -> tuple[str, ...]:
    better = "higher" if result.higher_is_better else "lower"
    done, failed, rejected = len(result.done), len(result.failed), result.rejected
    notes = [
        f"{done} trials done{f', {failed} failed' if failed else ''}; {result.metric} ({better} is better) and drift "
        "from the teacher: of the validation split.",
        "gate: the pruned student in float against the unpruned one, on the validation split; of INT8 and of the test "
        "split the build itself decides.",
        "latency: p50 as a share of the recipe's own student before pruning; they took turns, float, one thread.",
    ]
    if len(result.machines) > 1:
        notes.append(f"p50 ms: each on its own machine ({', '.join(result.machines)}), so compare the shares.")
    if rejected:
        more = f"; the {_MOST_REJECTED} nearest to its limits are shown" if len(rejected) > _MOST_REJECTED else ""
        notes.append(f"The gate rejects {len(rejected)} of {done} trials, which are never on the front{more}.")
        notes.append(f"Trial {rejected[0].number} is rejected: {_reasons(rejected[0])}.")
    if result.failed:
        first = result.failed[0]
        notes.append(f"The first that failed, trial {first.number}: {first.reason}")
    return tuple(notes)


def _reasons(trial: SearchTrial) -> str:
    assert trial.appraisal is not None
    return "; ".join(trial.appraisal.reasons)


def rejection(result: SearchResult) -> str:
    """Return in words that the gate rejects every trial, the reasons of the nearest, and which keys to change."""
    nearest, count = result.rejected[0], len(result.rejected)
    which = f"all {count} trials; the nearest, trial {nearest.number}" if count > 1 else f"trial {nearest.number}"
    return (
        f"the gate rejects {which}: {_reasons(nearest)}; cut less (prune.ratio, prune.budget) or train longer after it "
        "(prune.epochs, prune.steps), here or in [search.space]; 'edgekd check --suggest-limits' tells which limits of "
        "[gate] suit the task"
    )


def search_json(result: SearchResult) -> JsonObject:
    """Return the study as JSON values; a figure that is not finite is null."""
    front = {trial.number for trial in result.front}
    trials = [
        {
            **asdict(trial),
            "front": trial.number in front,
            "rejected": trial.rejected,
            "command": result.command(trial),
        }
        for trial in result.trials
    ]
    content: JsonObject = null_not_finite({"schema_version": SCHEMA_VERSION, **asdict(result), "trials": trials})
    return content
