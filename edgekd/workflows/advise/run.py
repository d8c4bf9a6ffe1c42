"""Which distillation loss to use on a task: paired trials under a budget, the work behind ``edgekd advise``."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from edgekd.errors import ModelError, OutputError, RecipeError
from edgekd.files import make_folder
from edgekd.pipeline.project import Project
from edgekd.pipeline.publish import writing
from edgekd.pipeline.trained_source import DISTILL, TrainingStages
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.stages.cache import Cache
from edgekd.stages.progress import Observer, Silent
from edgekd.stages.stage import Runner, StageSpec
from edgekd.workflows.advise.ablate import ablate, choose_families, skip_families
from edgekd.workflows.advise.budget import (
    FEWEST_SEEDS,
    RESERVE,
    TIMING_EPOCHS,
    WARM_UP_EPOCHS,
    TrialCost,
    budget_for,
    choose_epochs,
    count_trials,
    shortest_epochs,
)
from edgekd.workflows.advise.candidates import loss_families, loss_variants
from edgekd.workflows.advise.format import count_seeds
from edgekd.workflows.advise.halving import HalvingResult, run_halving
from edgekd.workflows.advise.report import write_advice
from edgekd.workflows.advise.result import Advice, AdviceTrial, BudgetSpent, TeacherMetric, ValidationFacts
from edgekd.workflows.advise.trials import TRIALS, BudgetedTrials, TrialPlan, TrialProgress
from edgekd.workflows.advise.verdict import decide_verdict, make_standings, too_short_verdict
from edgekd.workflows.arguments import DEFAULT_CACHE, resolve_paths, resolve_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgekd.config.recipe import Recipe
    from edgekd.pipeline.paths import BuildPaths
    from edgekd.stages.artifacts import Trained
    from edgekd.stages.progress import StageReporter
    from edgekd.stages.stage import Done
    from edgekd.workflows.advise.candidates import LossVariant
    from edgekd.workflows.advise.result import Ablation, Standing, Verdict
    from edgekd.workflows.arguments import PathArgument, RecipeArgument

_FACTS: StageSpec[ValidationFacts] = StageSpec("facts", 2, ValidationFacts, summary=lambda facts: facts.metric)
_CEILING: StageSpec[TeacherMetric] = StageSpec(
    "ceiling", 2, TeacherMetric, summary=lambda ceiling: f"{ceiling.metric:.4f}"
)
_TRIAL: StageSpec[AdviceTrial] = StageSpec("trial", 2, AdviceTrial, summary=lambda trial: f"{trial.validation}")

#: A learner asks for the opset of its exports; none is made here.
_NO_EXPORT = 0


def advise(
    recipe: RecipeArgument = None,
    *,
    budget: float = 600.0,
    epochs: int | None = None,
    overrides: Sequence[str] = (),
    output: PathArgument | None = None,
    cache: PathArgument = DEFAULT_CACHE,
    observer: Observer | None = None,
) -> Advice:
    """Try the distillation losses on the recipe's own task, and recommend one.

    Trials are stages of the cache, and the time that each took is kept with it: an interrupted run continues where it
    was, and the same call again gives the same answer.

    Args:
        recipe: As for :func:`edgekd.build`.
        budget: Seconds for all trials. The teacher's training, which a build needs as well, is not among them.
        epochs: Epochs of each trial; by default as many as the budget has room for, at most the recipe's.
        overrides: Changes of the recipe, e.g. ``"distill.epochs=5"``.
        output: Folder of ``advice.json`` and ``advice.md``; by default ``build/`` and the recipe's name.
        cache: Folder of finished stages.
        observer: Receives the progress of the trials.

    Raises:
        RecipeError: The recipe has a model that is trained already, or fewer epochs than are asked for.
        TaskError: The validation split has no labels, or something else in the task is wrong.
        EdgekdError: Any other error that a user can cause.
    """
    loaded, name = resolve_recipe(recipe, overrides)
    paths = resolve_paths(output, cache, name)
    return advise_recipe(loaded, paths, AdviceBudget(budget, epochs), name=name, observer=observer)


@dataclass(frozen=True)
class AdviceBudget:
    """What the trials of an advice may take.

    Attributes:
        seconds: For all trials.
        epochs: Epochs of each trial; None for as many as there is time for.
    """

    seconds: float
    epochs: int | None = None


def advise_recipe(
    recipe: Recipe,
    paths: BuildPaths,
    budget: AdviceBudget,
    *,
    name: str = "recipe",
    observer: Observer | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Advice:
    """Try the distillation losses on a loaded recipe's task; see :func:`advise`.

    Args:
        recipe: The recipe whose task, networks and training are used.
        paths: Folders of the answer and of finished stages.
        budget: What the trials may take.
        name: Name of the recipe in the answer.
        observer: Receives the progress of the trials.
        clock: Returns the time in seconds.
    """
    _check(recipe, budget.epochs)
    make_folder(paths.output, OutputError, "--output")
    observer = observer or Silent()
    observer.plan(("teacher", TRIALS))
    trainer = _Trainer(recipe, paths, observer, clock)
    advice = _Advising(trainer, recipe, budget.seconds, budget.epochs, name).run()
    with writing(paths.output):
        write_advice(advice, paths.output)
    return advice


def _check(recipe: Recipe, epochs: int | None) -> None:
    if recipe.task is None:
        raise RecipeError(
            "advise trains students, and this recipe's [model] is trained already: give a recipe with a [task]"
        )
    if epochs is not None and not 1 <= epochs <= recipe.distill.epochs:
        raise RecipeError(
            f"trials of {epochs} epochs: the recipe's distill.epochs is {recipe.distill.epochs}, give 1 to that"
        )


class _Trainer:
    """Runs what needs torch, each under the cache."""

    def __init__(self, recipe: Recipe, places: BuildPaths, observer: Observer, clock: Callable[[], float]) -> None:
        assert recipe.task is not None  # the caller has looked
        cache = Cache(places.cache)
        self.recipe, self.observer, self.clock = recipe, observer, clock
        self.project = Project(recipe.task, places.cache)
        self.learner = TrainingStages(Runner(cache, observer), self.project, recipe, _NO_EXPORT)
        self.narrator = TrialProgress(observer, clock)
        self.runner = Runner(cache, self.narrator)

    def facts(self) -> ValidationFacts:
        """Look at the validation split."""

        def run(_folder: Path, _report: StageReporter) -> ValidationFacts:
            from edgekd.training.loop.validation import labelled_ground_truth

            task = self.project.loaded
            known = labelled_ground_truth(task)
            labelled, groups = len(known.labels), 0 if known.groups is None else len(set(known.groups.tolist()))
            step = 0.0 if hasattr(task.task, "metric") else 1 / labelled
            return ValidationFacts(task.modalities, task.metric_name, task.higher_is_better, labelled, groups, step)

        return self.runner(_FACTS, inputs={"task": self.project.identity}, run=run).result

    def ceiling(self, teacher: Done[Trained]) -> float:
        """Return the teacher's metric on the validation split."""

        def run(_folder: Path, _report: StageReporter) -> TeacherMetric:
            from edgekd.training.loop.loop import compute_device
            from edgekd.training.loop.validation import score

            model = self.learner.load_teacher(teacher).to(compute_device())
            return TeacherMetric(score(self.project.loaded, model, self.learner.taps.teacher))

        return self.runner(_CEILING, inputs={"teacher": teacher.key}, run=run).result.metric

    def trial(self, teacher: Done[Trained], one: LossVariant, seed: int, epochs: int, with_error: bool) -> AdviceTrial:
        """Distil a student, and keep what it does on the validation split alone."""
        config = msgspec.structs.replace(self.recipe.distill, epochs=epochs, loss=one.loss)

        def run(folder: Path, report: StageReporter) -> AdviceTrial:
            self.learner.preflight()  # once, and not part of what a trial takes
            self.narrator.ticks.clear()
            began = self.clock()
            try:
                trained = self.learner.distil(teacher, config, seed, folder, report)
            except ModelError as error:
                return AdviceTrial(None, None, self.clock() - began, 0.0, str(error))
            return self._measure(trained, began, epochs, folder, seed if with_error else None)

        settings = {
            **msgspec.to_builtins(config),
            "taps": msgspec.to_builtins(self.recipe.student.taps),
            "seed": seed,
            "distill": DISTILL.version,
            "error": with_error,
        }
        label = f"{one.name}, seed {seed}"
        return self.runner(_TRIAL, label=label, config=settings, inputs={"teacher": teacher.key}, run=run).result

    def _measure(self, trained: Trained, began: float, epochs: int, folder: Path, seed: int | None) -> AdviceTrial:
        """Sum up a trial; its weights, and what it said of the test split, are not kept."""
        from edgekd.training.loop.loop import compute_device
        from edgekd.training.loop.validation import check_finite, sampling_error
        from edgekd.training.loop.weights import build, load_weights

        task, ticks, taken = self.project.loaded, self.narrator.ticks, self.clock() - began
        epoch = min((after - before for before, after in pairwise(ticks)), default=taken)
        # Of a trial that was interrupted this run saw the last epochs only.
        taken *= epochs / max(len(ticks), 1)
        value = check_finite(task, trained.history[-1]["validation"])
        error = None
        if seed is not None:
            model = load_weights(build(task.task.student, seed), folder / WEIGHTS).to(compute_device())
            error = sampling_error(task, model, self.learner.taps.student)
        for file in (WEIGHTS, PROBE):
            (folder / file).unlink()
        return AdviceTrial(value, error, taken, epoch)


class _Advising:
    """One run of `edgekd advise`, in its order."""

    def __init__(self, trainer: _Trainer, recipe: Recipe, budget: float, epochs: int | None, name: str) -> None:
        self.trainer, self.recipe, self.name = trainer, recipe, name
        self.budget, self.epochs = budget, epochs
        self.loss = recipe.distill.loss
        self.variants = loss_variants(self.loss)

    def run(self) -> Advice:
        """Time a trial, run the contest, decide, and take apart what carried the transfer."""
        facts = self.trainer.facts()
        teacher = self.trainer.learner.teacher()
        ceiling = self.trainer.ceiling(teacher)
        observer, began = self.trainer.observer, self.trainer.clock()
        observer.start(TRIALS)

        def make(one: LossVariant, seed: int, epochs: int) -> AdviceTrial:
            return self.trainer.trial(teacher, one, seed, epochs, with_error=one is self.variants[0])

        advice = self._contest(make, facts, ceiling)
        spent = advice.spent
        cached = all(stage.cached for stage in self.trainer.runner.times)
        observer.finish(
            TRIALS,
            self.trainer.clock() - began,
            cached,
            f"{spent.trials} trials of {spent.epochs} epochs, {count_seeds(spent.seeds)}",
        )
        return advice

    def _contest(
        self, make: Callable[[LossVariant, int, int], AdviceTrial], facts: ValidationFacts, ceiling: float
    ) -> Advice:
        timed, cost = self._time(make)
        recipe_epochs, whole = self.recipe.distill.epochs, self.budget * (1 - RESERVE)
        epochs = self.epochs or choose_epochs(whole - timed, cost, len(self.variants), recipe_epochs)
        fewest = self.epochs or shortest_epochs(recipe_epochs)
        needed = timed + count_trials(FEWEST_SEEDS, len(self.variants)) * cost.of(fewest)
        nothing = BudgetSpent(self.budget, timed, fewest, recipe_epochs, 0, 0, {})
        if epochs is None or needed > whole:
            verdict = too_short_verdict(budget_for(needed), self.budget, fewest, recipe_epochs)
            standings = make_standings(self.variants, {one.name: {} for one in self.variants}, facts, self.loss)
            return self._advice(facts, ceiling, None, standings, (), nothing, verdict)
        plan = TrialPlan(self.recipe.seed, epochs, cost, self.budget, timed)
        trials = BudgetedTrials(make, self.trainer.narrator, plan)
        race = run_halving(trials, self.variants, facts, whole)
        if race.failures.get(self.variants[0].name):
            raise ModelError(f"plain KD cannot be trained: {race.failures[self.variants[0].name]}")
        return self._judge(trials, race, facts, ceiling)

    def _time(self, make: Callable[[LossVariant, int, int], AdviceTrial]) -> tuple[float, TrialCost]:
        """Return the seconds of short trials of the costliest kind of loss, and what follows for others."""
        joint = next(one for one in self.variants if "joint" in one.loss.terms)
        epochs = min(TIMING_EPOCHS, self.recipe.distill.epochs)
        self.trainer.narrator.begin("timing", 0, 1, self.budget)
        warm_up, trial = (make(joint, self.recipe.seed, count) for count in (WARM_UP_EPOCHS, epochs))
        if trial.failure:
            raise ModelError(f"the trial of '{joint.name}' that was to be timed failed: {trial.failure}")
        cost = TrialCost(max(0.0, trial.seconds - epochs * trial.epoch_seconds), trial.epoch_seconds)
        return warm_up.seconds + trial.seconds, cost

    def _judge(self, trials: BudgetedTrials, race: HalvingResult, facts: ValidationFacts, ceiling: float) -> Advice:
        standings = make_standings(self.variants, race.values, facts, self.loss, race.failures)
        error = trials(self.variants[0], 0).error if race.seeds else None
        spent = BudgetSpent(
            self.budget,
            trials.spent,
            trials.plan.epochs,
            self.recipe.distill.epochs,
            race.seeds,
            trials.count,
            race.dropped,
        )
        block = sum(trials.expected([one], race.seeds) for one in race.alive)
        verdict = decide_verdict(standings, facts, ceiling, error, spent, block)
        chosen = choose_families(loss_families(self.variants, facts.modalities), standings)
        if verdict.kind == "no room":
            ablations = skip_families(chosen, "plain KD is where the teacher is, so there is no transfer to take apart")
        elif race.seeds < FEWEST_SEEDS:
            ablations = skip_families(chosen, "the losses themselves took the budget")
        else:
            ablations = ablate(trials, chosen, facts, self.loss, self.budget)
        spent = replace(spent, seconds=trials.spent, trials=trials.count)
        return self._advice(facts, ceiling, error, standings, ablations, spent, verdict)

    def _advice(
        self,
        facts: ValidationFacts,
        ceiling: float,
        error: float | None,
        standings: Sequence[Standing],
        ablations: Sequence[Ablation],
        spent: BudgetSpent,
        verdict: Verdict,
    ) -> Advice:
        seed = self.recipe.seed
        return Advice(self.name, seed, facts, ceiling, error, tuple(standings), tuple(ablations), spent, verdict)
