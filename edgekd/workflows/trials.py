"""Trials: variants of a recipe, trained under the stage cache and measured on the validation split.

The test split is never looked at, since whoever chooses by it can no longer judge by it. A search trains a whole
variant; an advice distils a student briefly, with one loss and one seed.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from edgekd.errors import ModelError, TaskError
from edgekd.files import need, scratch_folder, scratch_root
from edgekd.gram.gate import FINETUNED
from edgekd.pipeline.project import Project
from edgekd.pipeline.pruning import PRUNE, PRUNE_CHECK
from edgekd.pipeline.trained_source import DISTILL, TrainingStages
from edgekd.report.search.tables import TrialFigures
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.stages.cache import Cache
from edgekd.stages.judging import gate_rules
from edgekd.stages.progress import Silent, StageReporter
from edgekd.stages.stage import Runner, Stage, StageSpec
from edgekd.stages.trained import kept_epoch
from edgekd.training.distillation.loss_registry import own_loss_sources
from edgekd.training.loop.settings import count_epochs, own_training_sources, training_sections
from edgekd.workflows.advise.result import AdviceTrial, LossJudgement, TeacherMetric, ValidationFacts

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from edgekd.config.recipe import DistillConfig, Recipe, TaskConfig, Training
    from edgekd.gram.gate import Ledger
    from edgekd.stages.progress import Observer
    from edgekd.stages.stage import Done
    from edgekd.stages.trained import Trained
    from edgekd.training.search_metrics import StudentTimer
    from edgekd.workflows.advise.budgeted import TrialProgress

_FACTS: StageSpec[ValidationFacts] = StageSpec("facts", 2, ValidationFacts, summary=lambda facts: facts.metric)
_CEILING: StageSpec[TeacherMetric] = StageSpec(
    "ceiling", 2, TeacherMetric, summary=lambda ceiling: f"{ceiling.metric:.4f}"
)
_TRIAL: StageSpec[AdviceTrial] = StageSpec("trial", 2, AdviceTrial, summary=lambda trial: f"{trial.validation}")
_JUDGEMENT: StageSpec[LossJudgement] = StageSpec(
    "judgement", 2, LossJudgement, summary=lambda judgement: judgement.verdict
)

#: The opset where nothing is exported.
_NO_EXPORT = 0

#: The option of a task that concerns its student alone, so that it may leave the teacher as it is.
_STUDENT = "student"

#: Digits of a latency's share: two measurements of one network differ by less.
_DIGITS = 2


@dataclass(frozen=True)
class BriefTraining:
    """A distillation that is shorter than the recipe's own.

    Attributes:
        name: Name of the loss.
        config: The distillation, with its epochs and its loss.
        seed: Seed of the initial weights and of the order of batches.
        with_error: Whether the standard error of the metric is computed too.
    """

    name: str
    config: DistillConfig
    seed: int
    with_error: bool


class TrialRunner:
    """Trains variants of one recipe and measures them on the validation split.

    Args:
        recipe: The user's own recipe; its student is the reference of every latency.
        cache: Folder of finished stages.
        opset: ONNX opset of the target, where trained variants are whole ones that a build uses again.
    """

    def __init__(self, recipe: Recipe, cache: Path, opset: int = _NO_EXPORT) -> None:
        assert recipe.task is not None  # the callers have checked it
        self.recipe, self.cache, self._opset = recipe, Cache(cache), opset
        self.project = Project(recipe.task, cache)

    def stages(self, recipe: Recipe, observer: Observer) -> TrainingStages:
        """Return the stages that train a variant; it shares the recipe's own teacher where that is the same one."""
        assert recipe.task is not None
        project, teachers = self._projects(recipe.task)
        return TrainingStages(Runner(self.cache, observer), project, recipe, self._opset, teachers=teachers)

    def measure_variant(self, recipe: Recipe, observer: Observer) -> TrialFigures:
        """Train a whole variant, as far as it is not trained yet; measure metric, latency and drift, and judge it.

        Raises:
            EdgekdError: Any error that a user can cause.
        """
        stages = self.stages(recipe, observer)
        ledger = _keep_ledger(stages)
        row = ledger.row(FINETUNED)
        assert row.to_teacher is not None  # the ledger has a teacher
        assert row.to_reference is not None  # and a student
        for name, value in (("metric", row.metric), ("drift", row.to_teacher.mean)):
            if value is None or not math.isfinite(value):
                raise ModelError(f"the {name} of the trained student on the validation split is no finite number")
        observer.advance("latency", 0, 0, "exporting, and waiting until no other worker measures")
        _, pruned = stages.networks()
        with stages.computing():
            compared = self._timer(stages.project.loaded, pruned, stages.taps, latency_lock())
        return TrialFigures(
            metric=row.metric or 0.0,
            latency=round(compared.ratio, _DIGITS),
            drift=row.to_teacher.mean,
            p50_ms=compared.p50_ms,
            reference_ms=compared.reference_ms,
            parameters=sum(parameter.numel() for parameter in pruned.parameters()),
            verdict=ledger.verdict,
            reasons=ledger.reasons,
            bound=row.to_reference.bound,
        )

    def _projects(self, task: TaskConfig) -> tuple[Project, Project | None]:
        """Return a variant's task, and the recipe's own task where the variant shares its teacher, else None."""
        from edgekd.training import search_metrics

        own = self.project.config
        if task == own:
            return self.project, None
        project = Project(task, self.cache.root)
        shared = _without_student(task) == _without_student(own)
        if shared and search_metrics.same_teacher(self.project.loaded, project.loaded, self.recipe.seed):
            return project, self.project
        return project, None

    @cached_property
    def _timer(self) -> StudentTimer:
        from edgekd.training.search_metrics import StudentTimer

        taps = self.stages(self.recipe, Silent()).taps
        return StudentTimer(self.project.loaded, taps, self.recipe.seed)


def require_teacher(project: Project) -> None:
    """Refuse a task that has nothing to distil students from.

    Raises:
        TaskError: The task has no teacher.
    """
    if not project.loaded.has_teacher:
        raise TaskError("the task has no teacher(), from which the trials' students could be distilled: give it one")


class BriefTrials(TrialRunner):
    """Distils students of the recipe's own task briefly, each kept as a stage with the seconds that it took.

    Args:
        recipe: The user's own recipe.
        cache: Folder of finished stages.
        observer: Receives the progress of the teacher's training.
        progress: Receives the progress of the trials.
    """

    def __init__(self, recipe: Recipe, cache: Path, observer: Observer, progress: TrialProgress) -> None:
        super().__init__(recipe, cache)
        self.training = self.stages(recipe, observer)
        self.progress = progress
        self.runner = Runner(self.cache, progress)

    def count_epochs(self, config: Training) -> int:
        """Return the epochs of one of the recipe's trainings; of "auto" the data must be loaded for that."""
        return (
            config.epochs if config.epochs != "auto" else count_epochs(config, len(self.project.loaded.splits["train"]))
        )

    def facts(self) -> ValidationFacts:
        """Return the facts of the validation split."""

        def run(_folder: Path, _report: StageReporter) -> ValidationFacts:
            from edgekd.training.loop.validation import labelled_ground_truth

            task = self.project.loaded
            known = labelled_ground_truth(task)
            labelled, groups = len(known.labels), 0 if known.groups is None else len(set(known.groups.tolist()))
            step = 0.0 if hasattr(task.task, "metric") else 1 / labelled
            return ValidationFacts(task.modalities, task.metric_name, task.higher_is_better, labelled, groups, step)

        return self.runner(_FACTS, inputs={"task": self.project.identity}, run=run).result

    def measure_teacher(self, teacher: Done[Trained]) -> float:
        """Return the teacher's metric on the validation split."""

        def run(_folder: Path, _report: StageReporter) -> TeacherMetric:
            from edgekd.training.loop.compute_device import compute_device
            from edgekd.training.loop.validation import score

            with self.training.computing():
                model = self.training.load_teacher(teacher).to(compute_device())
                return TeacherMetric(score(self.project.loaded, model, self.training.taps.teacher))

        return self.runner(_CEILING, inputs={"teacher": teacher.key}, run=run).result.metric

    def distil(self, teacher: Done[Trained], brief: BriefTraining) -> AdviceTrial:
        """Distil a student, and keep its metric on the validation split alone."""
        return self.runner.execute(self._trial(teacher, brief)).result

    def finds(self, teacher: Done[Trained], brief: BriefTraining) -> bool:
        """Return whether an earlier run has finished this very trial."""
        return self.cache.find(self._trial(teacher, brief).key) is not None

    def time(self, teacher: Done[Trained], brief: BriefTraining) -> AdviceTrial:
        """Distil a student for the seconds that it takes now; nothing of it is kept."""
        with scratch_folder() as folder:
            return self._distil(teacher, brief, folder, StageReporter(self.progress, _TRIAL.name))

    @property
    def up_to_date(self) -> bool:
        """Whether every trial and judgement so far was read from the cache."""
        return all(stage.cached for stage in self.runner.times)

    def _trial(self, teacher: Done[Trained], brief: BriefTraining) -> Stage[AdviceTrial]:
        settings = {
            **msgspec.to_builtins(brief.config),
            **own_loss_sources(brief.config.loss),
            **own_training_sources(brief.config),
            "taps": msgspec.to_builtins(self.recipe.student.taps),
            "seed": brief.seed,
            "distill": DISTILL.version,
            "error": brief.with_error,
        }
        label, depends = f"{brief.name}, seed {brief.seed}", {"config": settings, "inputs": {"teacher": teacher.key}}
        return Stage(_TRIAL, label, depends, partial(self._distil, teacher, brief))

    def _distil(self, teacher: Done[Trained], brief: BriefTraining, folder: Path, report: StageReporter) -> AdviceTrial:
        self.training.preflight()  # once, and not part of the seconds that a trial takes
        self.progress.ticks.clear()
        began = self.progress.clock()
        try:
            trained = self.training.distil(teacher, brief.config, brief.seed, folder, report)
        except ModelError as error:
            return AdviceTrial(None, None, self.progress.clock() - began, 0.0, str(error))
        return self._measure(trained, brief, began, folder)

    def judge(self, teacher: Done[Trained], name: str, recipe: Recipe) -> LossJudgement:
        """Train and prune the recipe with a loss by the stages that a build has, and let the gate judge the result.

        Args:
            teacher: The finished teacher.
            name: Name of the loss.
            recipe: The recipe with that loss.
        """
        return self.runner.execute(self._judgement(teacher, name, recipe)).result

    def finds_judgement(self, teacher: Done[Trained], name: str, recipe: Recipe) -> bool:
        """Return whether an earlier run has this very judgement."""
        return self.cache.find(self._judgement(teacher, name, recipe).key) is not None

    def _judgement(self, teacher: Done[Trained], name: str, recipe: Recipe) -> Stage[LossJudgement]:
        def run(_folder: Path, _report: StageReporter) -> LossJudgement:
            began = self.progress.clock()
            try:
                ledger = _keep_ledger(self.stages(recipe, self.progress))
            except ModelError as error:
                return LossJudgement(name, "fail", (str(error),), None, None, self.progress.clock() - began)
            before, after = ledger.row(ledger.reference).metric, ledger.row(FINETUNED).metric
            seconds = self.progress.clock() - began
            return LossJudgement(name, ledger.verdict, ledger.reasons, before, after, seconds)

        settings = {
            **{part: msgspec.to_builtins(getattr(recipe, part)) for part in ("distill", "prune", "gate", "student")},
            **own_loss_sources(recipe.distill.loss),
            "own": {name: own_training_sources(part) for name, part in training_sections(recipe).items()},
            "seed": recipe.seed,
            "name": name,
            "stages": [DISTILL.version, PRUNE.version, PRUNE_CHECK.version],
        }
        depends = {"config": settings, "inputs": {"teacher": teacher.key}}
        return Stage(_JUDGEMENT, name, depends, run)

    def _measure(self, trained: Trained, brief: BriefTraining, began: float, folder: Path) -> AdviceTrial:
        """Sum up a trial; its weights, and its outputs for the test split, are not kept."""
        from edgekd.training.loop.compute_device import compute_device
        from edgekd.training.loop.validation import check_finite, sampling_error
        from edgekd.training.loop.weights import build, load_weights

        task, ticks, seconds = self.project.loaded, self.progress.ticks, self.progress.clock() - began
        epoch = min((after - before for before, after in pairwise(ticks)), default=seconds)
        # Where a trial was interrupted, this run saw its last epochs only.
        seconds *= len(trained.history) / max(len(ticks), 1)
        value = check_finite(task, kept_epoch(trained.history)["validation"])
        error = None
        if brief.with_error:
            with self.training.computing():
                model = load_weights(build(task.task.student, brief.seed), folder / WEIGHTS).to(compute_device())
                error = sampling_error(task, model, self.training.taps.student)
        for file in (WEIGHTS, PROBE):
            (folder / file).unlink()
        return AdviceTrial(value, error, seconds, epoch)


def _keep_ledger(stages: TrainingStages) -> Ledger:
    """Train what is not trained yet, and judge the pruned student, in float, by the gate on the validation split."""
    from edgekd.training.loop.weights import build, load_weights
    from edgekd.training.search_metrics import keep_validation_ledger

    _, distilled, _ = stages.train()
    teacher, pruned = stages.networks()
    task, recipe = stages.project.loaded, stages.recipe
    student = load_weights(build(task.task.student, recipe.seed), distilled.folder / WEIGHTS)
    models = {"teacher": teacher, "student": student, FINETUNED: pruned}
    rules = gate_rules(
        recipe.gate,
        task.metric_name,
        task.outputs,
        higher_is_better=task.higher_is_better,
        seed=recipe.seed,
        same=task.own_same,
    )
    with stages.computing():
        return keep_validation_ledger(task, models, stages.taps, rules)


def _without_student(task: TaskConfig) -> dict[str, object]:
    return {name: value for name, value in task.options.items() if name != _STUDENT}


def latency_lock() -> AbstractContextManager[object]:
    """Return a lock of this host's user: of all searches, whatever their caches, one worker at a time measures."""
    path = scratch_root() / f"edgekd-latency-{os.getuid()}.lock"
    lock: AbstractContextManager[object] = need("filelock", "build").FileLock(path)
    return lock
