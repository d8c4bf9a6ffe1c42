"""The result of `edgekd advise`, with every raw figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekd.gram.verdict import Verdict as GateVerdict  # noqa: TC001  # msgspec reads the annotations of LossJudgement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.workflows.advise.paired import Paired

#: "use": a loss beats KD; "none": none does beyond noise; "no room": KD is where the teacher is; "undecided": more
#: seeds would tell; "too short": the budget does not hold two trials; "rejected": the gate rejects what a build makes
#: of every loss that it judged.
Kind = Literal["use", "none", "no room", "undecided", "too short", "rejected"]


@dataclass(frozen=True)
class ValidationFacts:
    """Facts of the validation split, on which losses are judged.

    Attributes:
        modalities: Names of the task's modalities, in order.
        metric: Name of the task's metric.
        higher_is_better: Whether a larger metric is better.
        labelled: Number of validation samples that have labels.
        groups: Number of groups that these samples belong to; 0 where samples are independent.
        step: How far one sample moves the metric, where that is known; else 0.
    """

    modalities: list[str]
    metric: str
    higher_is_better: bool
    labelled: int
    groups: int
    step: float


@dataclass(frozen=True)
class TeacherMetric:
    """The teacher's metric on the validation split.

    Attributes:
        metric: The metric.
    """

    metric: float


@dataclass(frozen=True)
class AdviceTrial:
    """One short training.

    Attributes:
        validation: The metric on the validation split in the epoch that is kept; None where training failed.
        error: Standard error of that metric over the samples that the split might hold; None where it was not asked
            for, or all samples are of one group.
        seconds: Seconds that the training took.
        epoch_seconds: Seconds that its quickest epoch took.
        failure: Why the training failed, or "".
    """

    validation: float | None
    error: float | None
    seconds: float
    epoch_seconds: float
    failure: str = ""


@dataclass(frozen=True)
class Standing:
    """The metrics of one loss variant, and its difference to the variant that it is compared with.

    Attributes:
        name: Name of the variant.
        lines: Lines of TOML that put the variant into the recipe.
        values: The metric on the validation split, one for each seed, in the order of the seeds.
        difference: Difference to the variant that it is compared with, positive where it is better; None for that
            variant itself and for fewer than two seeds.
        failure: Why the variant was left out, or "".
    """

    name: str
    lines: tuple[str, ...]
    values: tuple[float, ...]
    difference: Paired | None
    failure: str = ""

    @property
    def mean(self) -> float | None:
        """The mean of the metric over the seeds; None where there are none."""
        return sum(self.values) / len(self.values) if self.values else None

    @property
    def found(self) -> Literal["", "better", "worse", "noise"]:
        """Whether the variant is better, worse or not told apart; "" where there is no difference."""
        if self.difference is None:
            return ""
        if not self.difference.holds:
            return "noise"
        return "better" if self.difference.mean > 0 else "worse"


@dataclass(frozen=True)
class Ablation:
    """The contribution of each pair, or of each modality, to a loss.

    Attributes:
        what: Kind of the parts: "pair" or "modality".
        whole: Name of the loss with all its parts.
        parts: For each part the standing of the loss without it, compared with the whole loss; the difference is below
            0 where the part carried something.
        skipped: Why nothing was tried, or "".
    """

    what: str
    whole: str
    parts: Mapping[str, Standing]
    skipped: str = ""


@dataclass(frozen=True)
class Verdict:
    """The recommendation.

    Attributes:
        kind: Kind of the verdict.
        text: The verdict in words, with the figures.
        reasons: Sentences that a reader needs to trust the verdict.
        lines: Lines of TOML to paste into the recipe; none where nothing is recommended.
        name: Name of the variant that is recommended; "" where none is.
    """

    kind: Kind
    text: str
    reasons: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class LossJudgement:
    """The gate's judgement of a loss: the recipe was trained with it and pruned as in a build.

    The pruned student, in float, is compared with the student that it was cut from, on the validation split.

    Attributes:
        name: Name of the variant.
        verdict: The gate's verdict.
        reasons: Why it does not simply pass, or why it cannot be built.
        before: Metric of the student before pruning; None where it could not be trained.
        metric: Metric of the pruned student; None where there is none.
        seconds: Seconds that training and judging took.
    """

    name: str
    verdict: GateVerdict
    reasons: tuple[str, ...]
    before: float | None
    metric: float | None
    seconds: float

    @property
    def rejected(self) -> bool:
        """Whether the gate rejects it."""
        return self.verdict == "fail"


@dataclass(frozen=True)
class BudgetSpent:
    """How the budget was spent.

    Attributes:
        budget: Seconds that were allowed.
        seconds: Seconds that all trials took, those of an earlier, interrupted run included.
        epochs: Epochs of each trial.
        recipe_epochs: Epochs of the recipe's own distillation.
        seeds: Number of seeds for which all variants that were left were trained.
        trials: Number of trials.
        dropped: The variants that were dropped, by the number of seeds after which they were.
        left_out: The variants that the budget did not hold.
    """

    budget: float
    seconds: float
    epochs: int
    recipe_epochs: int
    seeds: int
    trials: int
    dropped: Mapping[int, tuple[str, ...]]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advice:
    """The recommended loss, with all figures behind it.

    Attributes:
        recipe: Name of the recipe.
        seed: Seed of the first trial; the others follow it.
        facts: Facts of the task and its validation split.
        teacher: The teacher's metric on the validation split.
        error: Standard error of plain KD's metric there, over the samples that the split might hold; None where it is
            not known.
        standings: Standings of all loss variants; the first is plain KD.
        ablations: The contribution of each pair and of each modality.
        spent: How the budget was spent.
        verdict: The recommendation.
        judgements: The gate's judgements of what is recommended, and of what was to be before; none where the budget
            does not hold them.
    """

    recipe: str
    seed: int
    facts: ValidationFacts
    teacher: float
    error: float | None
    standings: tuple[Standing, ...]
    ablations: tuple[Ablation, ...]
    spent: BudgetSpent
    verdict: Verdict
    judgements: tuple[LossJudgement, ...] = ()
