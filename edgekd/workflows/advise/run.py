"""Find out which distillation loss suits a task, by paired trials under a budget: the work behind ``edgekd advise``."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import msgspec

from edgekd.errors import ModelError, RecipeError
from edgekd.pipeline.output import writing
from edgekd.stages.progress import Observer, Silent
from edgekd.workflows.advise.ablate import ablate, choose_families, skip_families
from edgekd.workflows.advise.budget import (
    FEWEST_SEEDS,
    JUDGING,
    RESERVE,
    TIMING_EPOCHS,
    TIMING_SHARE,
    WARM_UP_EPOCHS,
    TrialCost,
    alike,
    budget_for,
    choose_size,
    fixed_size,
    shortest_epochs,
)
from edgekd.workflows.advise.budgeted import OVERRUN, TRIALS, BudgetedTrials, TrialPlan, TrialProgress
from edgekd.workflows.advise.candidates import by_promise, loss_families, loss_variants, own_variant, with_loss
from edgekd.workflows.advise.format import count_seeds
from edgekd.workflows.advise.halving import HalvingResult, run_halving
from edgekd.workflows.advise.judge import judge_verdict, not_judged
from edgekd.workflows.advise.report import ADVICE_PLACES, write_advice
from edgekd.workflows.advise.result import Advice, AdviceTrial, BudgetSpent
from edgekd.workflows.advise.verdict import Known, Values, decide_verdict, make_standings, too_short_verdict
from edgekd.workflows.arguments import DEFAULT_CACHE, resolve_paths, resolve_recipe
from edgekd.workflows.trials import BriefTraining, BriefTrials, require_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.config.recipe import Recipe
    from edgekd.pipeline.paths import BuildPaths
    from edgekd.stages.stage import Done
    from edgekd.stages.trained import Trained
    from edgekd.workflows.advise.budget import TrialSize
    from edgekd.workflows.advise.candidates import LossVariant
    from edgekd.workflows.advise.result import Ablation, LossJudgement, Standing, Verdict
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

    Trials are stages of the cache: an interrupted run continues where it was. What a trial costs is timed in every run,
    and never taken from an earlier one where the machine was busier.

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
    if recipe.task is None:
        raise RecipeError(
            "advise trains students, and this recipe's [model] is trained already: give a recipe with a [task]"
        )
    if recipe.student.weights:
        raise RecipeError("advise trains students, and that of [student] weights is trained already: leave them out")
    paths.check(ADVICE_PLACES)
    observer = observer or Silent()
    observer.plan(("teacher", TRIALS))
    trainer = BriefTrials(recipe, paths.cache, observer, TrialProgress(observer, clock))
    require_teacher(trainer.project)
    advice = _Advising(trainer, budget, name).run(observer)
    with writing(paths.output, ADVICE_PLACES):
        write_advice(advice, paths.output)
    return advice


class _Advising:
    """One run of `edgekd advise`, in its order.

    Args:
        trainer: Runs the trials.
        budget: What the trials may take.
        name: Name of the recipe in the answer.

    Raises:
        RecipeError: Trials are to have more epochs than the recipe's own training.
    """

    def __init__(self, trainer: BriefTrials, budget: AdviceBudget, name: str) -> None:
        self.trainer, self.recipe, self.name = trainer, trainer.recipe, name
        self.budget, self.epochs = budget.seconds, budget.epochs
        self.loss = trainer.recipe.distill.loss
        self.variants = loss_variants(self.loss)
        self.cost = TrialCost(0.0, 0.0)
        self.recipe_epochs = trainer.count_epochs(trainer.recipe.distill)
        if self.epochs is not None and not 1 <= self.epochs <= self.recipe_epochs:
            raise RecipeError(
                f"trials of {self.epochs} epochs: the recipe's distill.epochs is {self.recipe_epochs}, give 1 to that"
            )

    @cached_property
    def teacher(self) -> Done[Trained]:
        """The teacher, trained when it is first needed."""
        return self.trainer.training.teacher()

    @property
    def judging(self) -> float:
        """Seconds that the gate's judgement of a loss is expected to take: training as in a build, and pruning."""
        prune = self.recipe.prune
        fine_tuning = self.cost.of(self.trainer.count_epochs(prune) * prune.steps) if prune.active else 0.0
        return self.cost.of(self.recipe_epochs) + fine_tuning

    def run(self, observer: Observer) -> Advice:
        """Time a trial, compare the losses, decide, and find out which parts carried the transfer."""
        clock = self.trainer.progress.clock
        facts = self.trainer.facts()  # before the teacher is trained, since it may find that there are no labels
        own = own_variant(self.variants, self.loss).name
        known = Known(facts, self.trainer.measure_teacher(self.teacher), own)
        began = clock()
        observer.start(TRIALS)
        advice = self._compare(known)
        spent = advice.spent
        summary = f"{spent.trials} trials of {spent.epochs} epochs, {count_seeds(spent.seeds)}"
        observer.finish(TRIALS, clock() - began, self.trainer.up_to_date, summary)
        return advice

    def _brief(self, variant: LossVariant, seed: int, epochs: int) -> BriefTraining:
        config = msgspec.structs.replace(self.recipe.distill, epochs=epochs, loss=variant.loss)
        return BriefTraining(variant.name, config, seed, variant is self.variants[0])

    def _train(self, variant: LossVariant, seed: int, epochs: int) -> AdviceTrial:
        """Run a trial. One of an earlier run costs no more than it would now: the machine may have been busy then."""
        brief = self._brief(variant, seed, epochs)
        earlier = self.trainer.finds(self.teacher, brief)
        trial = self.trainer.distil(self.teacher, brief)
        return replace(trial, seconds=min(trial.seconds, self.cost.of(epochs))) if earlier else trial

    def _compare(self, known: Known) -> Advice:
        timed = self._time()
        recipe_epochs = self.recipe_epochs
        size, reserved = self._plan(self.budget - timed)
        if size is None:
            fewest = self.epochs or shortest_epochs(recipe_epochs)
            needed = timed + 2 * FEWEST_SEEDS * self.cost.of(fewest)
            return self._compare_nothing(known, timed, budget_for(needed), fewest)
        plan = TrialPlan(self.recipe.seed, size, self.cost, self.budget, timed)
        trials = BudgetedTrials(self._train, self.trainer.progress, plan)
        variants = by_promise(self.variants, self.loss)
        limits = self.budget * (1 - RESERVE) - reserved, self.budget - reserved
        halved = run_halving(trials, variants, known.facts, *limits)
        if failure := halved.failures.get(self.variants[0].name):
            raise ModelError(f"plain KD cannot be trained: {failure}")
        return self._judge(trials, halved, known)

    def _plan(self, left: float) -> tuple[TrialSize | None, float]:
        """Return the size of the trials, and the seconds that are reserved for the gate's judgement.

        The fewest seeds that tell anything come first, then the judgement, and then the ablation.
        """
        judging = self.judging if self.judging <= JUDGING * self.budget else 0.0
        for reserved, spared in ((judging, RESERVE * self.budget), (judging, 0.0), (0.0, 0.0)):
            size = self._size(left - reserved - spared)
            if size and size.seeds == FEWEST_SEEDS:
                return size, reserved
        return self._size(left), 0.0

    def _size(self, seconds: float) -> TrialSize | None:
        """Return the size of the trials; where an earlier run had trials about as long, theirs."""
        recipe_epochs = self.recipe_epochs
        if self.epochs:
            return fixed_size(seconds, self.cost, self.epochs)
        size = choose_size(seconds, self.cost, len(self.variants), recipe_epochs)
        if size is None:
            return None
        begun = (
            epochs
            for epochs in alike(size.epochs, recipe_epochs)
            if self.trainer.finds(self.teacher, self._brief(self.variants[0], self.recipe.seed, epochs))
        )
        return replace(size, epochs=next(begun, size.epochs))

    def _compare_nothing(self, known: Known, timed: float, needed: float, epochs: int) -> Advice:
        recipe_epochs = self.recipe_epochs
        left_out = tuple(variant.name for variant in self.variants)
        spent = BudgetSpent(self.budget, timed, epochs, recipe_epochs, 0, 0, {}, left_out)
        no_values: Values = {variant.name: {} for variant in self.variants}
        standings = make_standings(self.variants, no_values, known.facts, self.loss)
        keep = next(standing for standing in standings if standing.name == known.own)
        verdict = too_short_verdict(keep, needed, self.budget, epochs, recipe_epochs)
        return self._advice(known, standings, (), spent, not_judged(verdict, spent, self.judging), ())

    def _time(self) -> float:
        """Time short trials of the costliest kind of loss, for the cost of all; return the seconds that this took.

        They are timed in every run, since the machine may be busy in one and idle in the next.
        """
        joint = next(variant for variant in self.variants if "joint" in variant.loss.terms)
        epochs = min(TIMING_EPOCHS, self.recipe_epochs)
        self.trainer.progress.begin("timing", 0, 1, self.budget)
        warm_up = self._timed(joint, WARM_UP_EPOCHS)
        if epochs * warm_up.seconds > TIMING_SHARE * self.budget:
            self.cost = TrialCost(0.0, warm_up.seconds / WARM_UP_EPOCHS)
            return warm_up.seconds
        trial = self._timed(joint, epochs)
        self.cost = TrialCost(max(0.0, trial.seconds - epochs * trial.epoch_seconds), trial.epoch_seconds)
        return warm_up.seconds + trial.seconds

    def _timed(self, variant: LossVariant, epochs: int) -> AdviceTrial:
        trial = self.trainer.time(self.teacher, self._brief(variant, self.recipe.seed, epochs))
        if trial.failure:
            raise ModelError(f"the trial of '{variant.name}' that was to be timed failed: {trial.failure}")
        return trial

    def _judge(self, trials: BudgetedTrials, halved: HalvingResult, known: Known) -> Advice:
        facts = known.facts
        standings = make_standings(self.variants, halved.values, facts, self.loss, halved.failures)
        known = replace(known, error=trials(self.variants[0], 0).error if halved.seeds else None)
        recipe_epochs, plan = self.recipe_epochs, trials.plan
        spent = BudgetSpent(
            self.budget, trials.spent, plan.epochs, recipe_epochs, halved.seeds, trials.count, halved.dropped,
            halved.left_out,
        )  # fmt: skip
        block = sum(trials.expected([variant], halved.seeds) for variant in halved.alive)
        verdict = decide_verdict(standings, known, spent, block)
        kind = verdict.kind
        verdict, judgements = judge_verdict(verdict, standings, known, partial(self._judge_loss, trials))
        if verdict.name and verdict.name not in {judgement.name for judgement in judgements}:
            verdict = not_judged(verdict, spent, self.judging)
        chosen = choose_families(loss_families(self.variants, facts.modalities), standings)
        if kind == "no room":
            ablations = skip_families(chosen, "plain KD is where the teacher is, so there is no transfer to take apart")
        elif halved.seeds < FEWEST_SEEDS:
            ablations = skip_families(chosen, "the losses themselves took the budget")
        else:
            ablations = ablate(trials, chosen, facts, self.loss, self.budget)
        spent = replace(spent, seconds=trials.spent, trials=trials.count)
        return self._advice(known, standings, ablations, spent, verdict, judgements)

    def _judge_loss(self, trials: BudgetedTrials, name: str) -> LossJudgement | None:
        """Return the gate's judgement of a loss; None where the budget does not hold it and no earlier run has it."""
        variant = next(variant for variant in self.variants if variant.name == name)
        recipe = with_loss(self.recipe, variant.loss)
        earlier = self.trainer.finds_judgement(self.teacher, name, recipe)
        if not earlier and trials.spent + self.judging > OVERRUN * self.budget:
            return None
        self.trainer.progress.begin(
            f"the gate judges {name}", trials.count, trials.count + 1, self.budget - trials.spent
        )
        judgement = self.trainer.judge(self.teacher, name, recipe)
        trials.charge(min(judgement.seconds, self.judging) if earlier else judgement.seconds)
        return judgement

    def _advice(
        self,
        known: Known,
        standings: Sequence[Standing],
        ablations: Sequence[Ablation],
        spent: BudgetSpent,
        verdict: Verdict,
        judgements: tuple[LossJudgement, ...],
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
            judgements,
        )
