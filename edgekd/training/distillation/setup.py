"""What distillation and the fine-tunes after it share: a student that learns from a teacher, aligned with an anchor."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekd.training.distillation.cached_teacher import Cached
from edgekd.training.distillation.ensemble import members, taps_of
from edgekd.training.distillation.half_precision import tapped_teacher
from edgekd.training.distillation.objective import Distillation
from edgekd.training.distillation.references import Live
from edgekd.training.distillation.terms import Where, places
from edgekd.training.loop.evaluate import Validation, few, probe
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

    from edgekd.config.recipe import LossConfig
    from edgekd.stages.progress import StageReporter
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.protocol import Batch, LoadedTask


@dataclass(frozen=True)
class Models:
    """The networks, on one device.

    Attributes:
        trained: a student, in training.
        teacher: gives the logits.
        anchor: gives the embeddings: None for the teacher's, or else the student whose structure is to be kept.
        outputs: what :func:`edgekd.training.distillation.cached_teacher.write` wrote of the teacher; None to run it on
            every batch.
    """

    trained: nn.Module
    teacher: nn.Module
    anchor: nn.Module | None = None
    outputs: Path | None = None


@contextmanager
def aligned(
    task: LoadedTask,
    models: Models,
    taps: Taps,
    config: LossConfig,
    seed: int,
    report: StageReporter,
    spoil: Callable[[Batch], Batch] | None = None,
) -> Iterator[tuple[Distillation, Validation]]:
    """Yield the objective, and the figures of an epoch with the drift from the anchor on the validation split.

    ``spoil`` makes of each training batch what the student is given in its stead.

    Raises:
        TaskError: a tap is wrong, or a loss names what the task does not have or needs what the networks do not give.
    """
    device = next(models.trained.parameters()).device
    anchor_taps = taps.teacher if models.anchor is None else taps.student
    guide = models.anchor or models.teacher
    kept = probe(guide, taps_of(guide, anchor_taps), task.splits["val"])
    with aligning(task, models, taps, config, report, spoil) as objective:
        objective.prepare(few(task, device), seed)
        yield objective, Validation(task, models.trained, taps.student, kept)


@contextmanager
def aligning(
    task: LoadedTask,
    models: Models,
    taps: Taps,
    config: LossConfig,
    report: StageReporter,
    spoil: Callable[[Batch], Batch] | None = None,
) -> Iterator[Distillation]:
    """Yield the objective, not yet prepared; ``spoil`` is as for :func:`aligned`.

    Raises:
        TaskError: a tap is wrong, or a loss names what the task does not have.
    """
    table: Literal["teacher", "student"] = "teacher" if models.anchor is None else "student"
    where = Where(task.modalities, taps.student, getattr(taps, table), table)
    read, asked = places(taps.student, config, "student"), places(taps.teacher, config, "teacher")
    with ExitStack() as stack:
        student = stack.enter_context(TappedModel(models.trained, read))
        known = [tapped_teacher(member, asked, taps.precision) for member in members(models.teacher)]
        live = Live(*(stack.enter_context(one) for one in known))
        teacher = Cached(live, models.outputs, report) if models.outputs else live
        anchor = teacher if models.anchor is None else Live(stack.enter_context(TappedModel(models.anchor, read)))
        yield Distillation(student, teacher, anchor, config, where, report, spoil)
