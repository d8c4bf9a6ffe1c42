"""The losses of a network's outputs: the task's own, or else the defaults of their kinds, each with its weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgekd.errors import TaskError
from edgekd.stages.user_code import describe
from edgekd.training.distillation.kinds.facts import OutputFacts
from edgekd.training.distillation.kinds.registry import KIND_LOSSES
from edgekd.training.taps.taps import outputs_read

if TYPE_CHECKING:
    from edgekd.config.recipe import Tap
    from edgekd.gram.output_kind import OutputKind
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.targets import Nest

Answers = Mapping[str, Tensor]


@dataclass(frozen=True)
class AnswerLosses:
    """The losses of a network's outputs, called with the outputs of a batch by name.

    Attributes:
        kinds: What each output is, by name.
        weights: The weight of each default loss, by default 1.
        variances: Of each output of numbers the variance of its elements over the training targets.
        task: The task, whose own ``loss`` and ``distill`` are taken where it has them.
    """

    kinds: Mapping[str, OutputKind]
    weights: Mapping[str, float] = field(default_factory=dict)
    variances: Mapping[str, Tensor] = field(default_factory=dict)
    task: LoadedTask | None = field(default=None, repr=False)

    @property
    def has_own_loss(self) -> bool:
        """Whether the task has a loss of its own, whose targets edgekd does not read."""
        return self.task is not None and hasattr(self.task.task, "loss")

    def supervised(self, answers: Answers, targets: Nest[Tensor]) -> Tensor:
        """Return the loss of a batch's answers and targets, a scalar.

        Raises:
            TaskError: The task's own loss fails, or an output has no target.
        """
        if self.has_own_loss:
            return self._own("loss", _as_task(answers), targets)
        terms = [
            self._weight(name) * KIND_LOSSES[kind.name].supervised(answers[name], self.target(name, targets), facts)
            for name, kind, facts in self._each(1.0)
            if kind.name in KIND_LOSSES
        ]
        return torch.stack(terms).sum()

    def distilled(self, student: Answers, teacher: Answers, temperature: float) -> Tensor:
        """Return the loss of the student's and the teacher's answers for a batch, a scalar.

        Raises:
            TaskError: The task's own loss fails.
        """
        if self.task is not None and hasattr(self.task.task, "distill"):
            return self._own("distill", _as_task(student), _as_task(teacher))
        terms = [
            self._weight(name) * KIND_LOSSES[kind.name].distilled(student[name], teacher[name], facts)
            for name, kind, facts in self._each(temperature)
            if kind.name in KIND_LOSSES
        ]
        return torch.stack(terms).sum()

    def target(self, name: str, targets: Nest[Tensor]) -> Tensor:
        """Return the target of an output: the targets themselves where there is one output, else those of its name.

        Raises:
            TaskError: There is none.
        """
        return output_target(name, targets, len(self.kinds))

    def class_outputs(self) -> list[str]:
        """Return the outputs that are scores of classes, one for each sample."""
        return [name for name, kind in self.kinds.items() if kind.name == "classes"]

    def _each(self, temperature: float) -> list[tuple[str, OutputKind, OutputFacts]]:
        return [
            (name, kind, OutputFacts(kind, temperature, self.variances.get(name))) for name, kind in self.kinds.items()
        ]

    def _weight(self, name: str) -> float:
        return self.weights.get(name, 1.0)

    def _own(self, name: str, *given: object) -> Tensor:
        """Call a loss of the task's own."""
        assert self.task is not None
        with self.task.running(f"the task's {name}"):
            value: object = getattr(self.task.task, name)(*given)
        if not isinstance(value, Tensor) or value.dim() != 0 or not value.is_floating_point():
            kind = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else describe(value)
            raise TaskError(f"the task's {name} returned {kind}, must return a scalar tensor of floats")
        return value


def losses_at(given: AnswerLosses | None, taps: Mapping[str, Tap]) -> AnswerLosses:
    """Return the losses that are given, or those of the kinds of what is read at the student's taps."""
    return given or AnswerLosses(outputs_read(taps))


def output_target(name: str, targets: Nest[Tensor], outputs: int) -> Tensor:
    """Return the target of an output of a task.

    Args:
        name: Name of the output.
        targets: The targets.
        outputs: Number of the task's outputs.

    Raises:
        TaskError: There is none.
    """
    found: object = targets
    if outputs > 1:
        if not isinstance(targets, Mapping) or name not in targets:
            has = f"has {', '.join(targets)}" if isinstance(targets, Mapping) else f"is {describe(targets)}"
            raise TaskError(
                f"the target of output '{name}' is not there: with several outputs a sample's target is a dict by "
                f"their names, but it {has}; give the task its own loss(outputs, targets) for others"
            )
        found = targets[name]
    if not isinstance(found, Tensor):
        raise TaskError(
            f"the target of output '{name}' is {describe(found)}, must be one tensor for its default loss; give the "
            "task its own loss(outputs, targets) for others"
        )
    return found


def _as_task(answers: Answers) -> Tensor | Answers:
    """Return answers as a task's own functions get them: the tensor itself where there is one output."""
    return next(iter(answers.values())) if len(answers) == 1 else dict(answers)
