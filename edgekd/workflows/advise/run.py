"""Find out which distillation loss suits a task, by paired trials under a budget: the work behind ``edgekd advise``."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from edgekd.errors import ModelError, RecipeError
from edgekd.pipeline.output import writing
from edgekd.stages.progress import Observer, Silent
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
from edgekd.workflows.advise.budgeted import TRIALS, BudgetedTrials, TrialPlan, TrialProgress
from edgekd.workflows.advise.candidates import loss_families, loss_variants
from edgekd.workflows.advise.format import count_seeds
from edgekd.workflows.advise.halving import HalvingResult, run_halving
from edgekd.workflows.advise.report import ADVICE_PLACES, write_advice
from edgekd.workflows.advise.result import Advice, AdviceTrial, BudgetSpent, ValidationFacts
from edgekd.workflows.advise.verdict import Values, decide_verdict, make_standings, too_short_verdict
from edgekd.workflows.arguments import DEFAULT_CACHE, resolve_paths, resolve_recipe
from edgekd.workflows.trials import BriefTraining, BriefTrials

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.config.recipe import Recipe
    from edgekd.pipeline.paths import BuildPaths
    from edgekd.stages.artifacts import Trained
    from edgekd.stages.stage import Done
    from edgekd.workflows.advise.candidates import LossVariant
    from edgekd.workflows.advise.result import Ablation, Standing, Verdict
    from edgekd.workflows.arguments import PathArgument, RecipeArgument


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
    paths.check(ADVICE_PLACES)
    observer = observer or Silent()
    observer.plan(("teacher", TRIALS))
    trainer = BriefTrials(recipe, paths.cache, observer, TrialProgress(observer, clock))
    advice = _Advising(trainer, budget, name).run(observer)
    with writing(paths.output, ADVICE_PLACES):
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


class _Advising:
    """One run of `edgekd advise`, in its order.

    Args:
        trainer: Runs the trials.
        budget: What the trials may take.
        name: Name of the recipe in the answer.
    """

    def __init__(self, trainer: BriefTrials, budget: AdviceBudget, name: str) -> None:
        self.trainer, self.recipe, self.name = trainer, trainer.recipe, name
        self.budget, self.epochs = budget.seconds, budget.epochs
        self.loss = trainer.recipe.distill.loss
        self.variants = loss_variants(self.loss)

    @cached_property
    def teacher(self) -> Done[Trained]:
        """The teacher, trained when it is first needed."""
        return self.trainer.training.teacher()

    def run(self, observer: Observer) -> Advice:
        """Time a trial, compare the losses, decide, and find out which parts carried the transfer."""
        clock = self.trainer.progress.clock
        facts = self.trainer.facts()  # before the teacher is trained, since it may find that there are no labels
        known = _Known(facts, self.trainer.measure_teacher(self.teacher))
        began = clock()
        observer.start(TRIALS)
        advice = self._compare(known)
        spent = advice.spent
        cached = all(stage.cached for stage in self.trainer.runner.times)
        summary = f"{spent.trials} trials of {spent.epochs} epochs, {count_seeds(spent.seeds)}"
        observer.finish(TRIALS, clock() - began, cached, summary)
        return advice

    def _train(self, variant: LossVariant, seed: int, epochs: int) -> AdviceTrial:
        config = msgspec.structs.replace(self.recipe.distill, epochs=epochs, loss=variant.loss)
        with_error = variant is self.variants[0]
        return self.trainer.distil(self.teacher, BriefTraining(variant.name, config, seed, with_error))

    def _compare(self, known: _Known) -> Advice:
        timed, cost = self._time()
        recipe_epochs, whole = self.recipe.distill.epochs, self.budget * (1 - RESERVE)
        epochs = self.epochs or choose_epochs(whole - timed, cost, len(self.variants), recipe_epochs)
        fewest = self.epochs or shortest_epochs(recipe_epochs)
        needed = timed + count_trials(FEWEST_SEEDS, len(self.variants)) * cost.of(fewest)
        if epochs is None or needed > whole:
            spent = BudgetSpent(self.budget, timed, fewest, recipe_epochs, 0, 0, {})
            verdict = too_short_verdict(budget_for(needed), self.budget, fewest, recipe_epochs)
            no_values: Values = {variant.name: {} for variant in self.variants}
            standings = make_standings(self.variants, no_values, known.facts, self.loss)
            return self._advice(known, standings, (), spent, verdict)
        plan = TrialPlan(self.recipe.seed, epochs, cost, self.budget, timed)
        trials = BudgetedTrials(self._train, self.trainer.progress, plan)
        halved = run_halving(trials, self.variants, known.facts, whole)
        if failure := halved.failures.get(self.variants[0].name):
            raise ModelError(f"plain KD cannot be trained: {failure}")
        return self._judge(trials, halved, known)

    def _time(self) -> tuple[float, TrialCost]:
        """Return the seconds of short trials of the costliest kind of loss, and the cost of others that follows."""
        joint = next(variant for variant in self.variants if "joint" in variant.loss.terms)
        epochs = min(TIMING_EPOCHS, self.recipe.distill.epochs)
        self.trainer.progress.begin("timing", 0, 1, self.budget)
        warm_up, trial = (self._train(joint, self.recipe.seed, count) for count in (WARM_UP_EPOCHS, epochs))
        if trial.failure:
            raise ModelError(f"the trial of '{joint.name}' that was to be timed failed: {trial.failure}")
        cost = TrialCost(max(0.0, trial.seconds - epochs * trial.epoch_seconds), trial.epoch_seconds)
        return warm_up.seconds + trial.seconds, cost

    def _judge(self, trials: BudgetedTrials, halved: HalvingResult, known: _Known) -> Advice:
        facts = known.facts
        standings = make_standings(self.variants, halved.values, facts, self.loss, halved.failures)
        known = replace(known, error=trials(self.variants[0], 0).error if halved.seeds else None)
        recipe_epochs, plan = self.recipe.distill.epochs, trials.plan
        spent = BudgetSpent(
            self.budget, trials.spent, plan.epochs, recipe_epochs, halved.seeds, trials.count, halved.dropped
        )
        block = sum(trials.expected([variant], halved.seeds) for variant in halved.alive)
        verdict = decide_verdict(standings, facts, known.teacher, known.error, spent, block)
        chosen = choose_families(loss_families(self.variants, facts.modalities), standings)
        if verdict.kind == "no room":
            ablations = skip_families(chosen, "plain KD is where the teacher is, so there is no transfer to take apart")
        elif halved.seeds < FEWEST_SEEDS:
            ablations = skip_families(chosen, "the losses themselves took the budget")
        else:
            ablations = ablate(trials, chosen, facts, self.loss, self.budget)
        spent = replace(spent, seconds=trials.spent, trials=trials.count)
        return self._advice(known, standings, ablations, spent, verdict)

    def _advice(
        self,
        known: _Known,
        standings: Sequence[Standing],
        ablations: Sequence[Ablation],
        spent: BudgetSpent,
        verdict: Verdict,
    ) -> Advice:
        return Advice(
            self.name,
            self.recipe.seed,
            known.facts,
            known.teacher,
            known.error,
            tuple(standings),
            tuple(ablations),
            spent,
            verdict,
        )


@dataclass(frozen=True)
class _Known:
    """Figures of the validation split that the losses are judged by.

    Attributes:
        facts: Facts of the split.
        teacher: The teacher's metric.
        error: Standard error of plain KD's metric; None where it is not known.
    """

    facts: ValidationFacts
    teacher: float
    error: float | None = None
