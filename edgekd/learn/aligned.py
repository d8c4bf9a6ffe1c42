"""What distillation and the fine-tunes after it share: a student that learns from a teacher, aligned with an anchor."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekd.learn.evaluate import Validation, few, probe
from edgekd.learn.objective import Distillation
from edgekd.learn.reference import Live
from edgekd.learn.taps import Tapped
from edgekd.learn.terms import Where, places

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from edgekd.learn.taps import Taps
    from edgekd.learn.task import LoadedTask
    from edgekd.progress import StageReporter
    from edgekd.recipe import LossConfig, Tap


@dataclass(frozen=True)
class Models:
    """The networks, on one device.

    Attributes:
        trained: a student, in training.
        teacher: gives the logits.
        anchor: gives the embeddings: None for the teacher's, or else the student whose structure is to be kept.
    """

    trained: nn.Module
    teacher: nn.Module
    anchor: nn.Module | None = None


@contextmanager
def aligned(
    task: LoadedTask, models: Models, taps: Taps, config: LossConfig, seed: int, report: StageReporter
) -> Iterator[tuple[Distillation, Validation]]:
    """Yield the objective, and the figures of an epoch with the drift from the anchor on the validation split.

    Raises:
        TaskError: a tap is wrong, or a loss names what the task does not have or needs what the networks do not give.
    """
    device = next(models.trained.parameters()).device
    anchor_taps = taps.teacher if models.anchor is None else taps.student
    kept = probe(models.anchor or models.teacher, anchor_taps, task.splits["val"])
    with aligning(task, models, taps, config, report) as objective:
        objective.prepare(few(task, device), seed)
        yield objective, Validation(task, models.trained, taps.student, kept)


@contextmanager
def aligning(
    task: LoadedTask, models: Models, taps: Taps, config: LossConfig, report: StageReporter
) -> Iterator[Distillation]:
    """Yield the objective, not yet prepared.

    Raises:
        TaskError: a tap is wrong, or a loss names what the task does not have.
    """
    table: Literal["teacher", "student"] = "teacher" if models.anchor is None else "student"
    anchor_taps = getattr(taps, table)
    where = Where(task.modalities, taps.student, anchor_taps, table)
    with ExitStack() as stack:

        def read(model: nn.Module, of: Mapping[str, Tap], side: str) -> Tapped:
            return stack.enter_context(Tapped(model, places(of, config, side)))

        student = read(models.trained, taps.student, "student")
        teacher = Live(read(models.teacher, taps.teacher, "teacher"))
        anchor = teacher if models.anchor is None else Live(read(models.anchor, anchor_taps, table))
        yield Distillation(student, teacher, anchor, config, where, report)
