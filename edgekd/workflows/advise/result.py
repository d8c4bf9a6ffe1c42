"""What `edgekd advise` found, with every raw figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.gram.paired import Paired

#: "use": a loss beats KD; "none": none does beyond noise; "no room": KD is where the teacher is; "undecided": more
#: seeds would tell; "too short": the budget does not hold the fewest trials that could tell anything.
Kind = Literal["use", "none", "no room", "undecided", "too short"]


@dataclass(frozen=True)
class ValidationFacts:
    """What is known of the validation split, on which losses are judged.

    Attributes:
        modalities: of the task, in order.
        metric: its name.
        higher_is_better: whether a larger metric is better.
        labelled: how many validation samples have labels.
        groups: how many groups these are of; 0 where samples are independent.
        step: how far one sample moves the metric, where that is known; else 0.
    """

    modalities: list[str]
    metric: str
    higher_is_better: bool
    labelled: int
    groups: int
    step: float


@dataclass(frozen=True)
class TeacherMetric:
    """The teacher's metric on the validation split."""

    metric: float


@dataclass(frozen=True)
class AdviceTrial:
    """One short training.

    Attributes:
        validation: the metric on the validation split after the last epoch; None where training failed.
        error: its standard error by which samples the split happens to hold; None where it was not asked for, or the
            samples are all of one group.
        seconds: that it took.
        epoch_seconds: that its quickest epoch took.
        failure: why it failed, or "".
    """

    validation: float | None
    error: float | None
    seconds: float
    epoch_seconds: float
    failure: str = ""


@dataclass(frozen=True)
class Standing:
    """How one contestant did.

    Attributes:
        name: its name.
        lines: of TOML that put it into the recipe.
        values: the metric on the validation split, one a seed, in the seeds' order.
        difference: to what it is compared with, positive when better; None for that itself and for fewer than two
            seeds.
        failure: why it was left out, or "".
    """

    name: str
    lines: tuple[str, ...]
    values: tuple[float, ...]
    difference: Paired | None
    failure: str = ""

    @property
    def mean(self) -> float | None:
        """Of the metric over its seeds."""
        return sum(self.values) / len(self.values) if self.values else None

    @property
    def found(self) -> Literal["", "better", "worse", "noise"]:
        """What the difference says."""
        if self.difference is None:
            return ""
        if not self.difference.holds:
            return "noise"
        return "better" if self.difference.mean > 0 else "worse"


@dataclass(frozen=True)
class Ablation:
    """What each pair, or each modality, is worth to a loss.

    Attributes:
        what: "pair" or "modality".
        whole: name of the loss with all of them.
        parts: for each the loss without it, its difference to the whole; below 0 where it carried something.
        skipped: why nothing was tried, or "".
    """

    what: str
    whole: str
    parts: Mapping[str, Standing]
    skipped: str = ""


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        kind: which of the possible ones.
        text: in words, with the figures.
        reasons: sentences that a reader needs to trust it.
        lines: of TOML to paste into the recipe; none where nothing is to be changed.
    """

    kind: Kind
    text: str
    reasons: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class BudgetSpent:
    """What the budget was spent on.

    Attributes:
        budget: seconds allowed.
        seconds: that all trials took; those of an earlier, interrupted run are counted.
        epochs: of each trial.
        recipe_epochs: of the recipe's own distillation.
        seeds: for which all contestants still in the contest were trained.
        trials: how many in all.
        dropped: after how many seeds which contestants were dropped.
    """

    budget: float
    seconds: float
    epochs: int
    recipe_epochs: int
    seeds: int
    trials: int
    dropped: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True)
class Advice:
    """Everything that was found.

    Attributes:
        recipe: its name.
        seed: of the first trial; the others follow it.
        facts: of the task and its validation split.
        teacher: the teacher's metric on the validation split.
        error: standard error of plain KD's metric there, by which samples the split holds; None where not known.
        standings: of all contestants; the first is plain KD.
        ablations: which pairs, and which modalities, carry the transfer.
        spent: of the budget.
        verdict: the answer.
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
