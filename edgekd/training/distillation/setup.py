"""What distillation and the fine-tunes share: a student that learns from a teacher and is aligned with an anchor."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekd.errors import TaskError
from edgekd.training.distillation.cached_teacher import CachedReference
from edgekd.training.distillation.ensemble import members, taps_of
from edgekd.training.distillation.half_precision import tapped_teacher
from edgekd.training.distillation.loss_taps import LossTaps, taps_with_losses
from edgekd.training.distillation.objective import DistillationObjective
from edgekd.training.distillation.references import LiveReference
from edgekd.training.distillation.task_losses import losses_of
from edgekd.training.loop.evaluate import Validation, example_batch, probe
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

    from edgekd.config.recipe import LossConfig
    from edgekd.stages.progress import StageReporter
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.protocol import Batch


@dataclass(frozen=True)
class DistillationNetworks:
    """The networks of a distillation or a fine-tune, on one device.

    Attributes:
        trained: The student that is trained.
        teacher: The network that gives the answers.
        anchor: The network that gives the embeddings: the student whose structure is to be kept, or None for the
            teacher.
        outputs: Folder of the teacher's outputs, which
            :func:`edgekd.training.distillation.cached_teacher.write_outputs` wrote; None to run it on every batch.
    """

    trained: nn.Module
    teacher: nn.Module
    anchor: nn.Module | None = None
    outputs: Path | None = None


@contextmanager
def distillation_setup(
    task: LoadedTask,
    networks: DistillationNetworks,
    taps: Taps,
    config: LossConfig,
    seed: int,
    report: StageReporter,
    transform: Callable[[Batch], Batch] | None = None,
) -> Iterator[tuple[DistillationObjective, Validation]]:
    """Yield the objective, and the figures of an epoch with the drift from the anchor on the validation split.

    ``transform`` makes of each training batch the one that the student is given.

    Raises:
        TaskError: A tap is wrong, or a loss names what the task does not have or needs what the networks do not give.
    """
    device = next(networks.trained.parameters()).device
    anchor_taps = taps.teacher if networks.anchor is None else taps.student
    anchor = networks.anchor or networks.teacher
    reference = probe(anchor, taps_of(anchor, anchor_taps), task.splits["val"])
    with distillation_objective(task, networks, taps, config, report, transform) as objective:
        objective.prepare(example_batch(task, device), seed)
        yield objective, Validation(task, networks.trained, taps.student, reference)


@contextmanager
def distillation_objective(
    task: LoadedTask,
    networks: DistillationNetworks,
    taps: Taps,
    config: LossConfig,
    report: StageReporter,
    transform: Callable[[Batch], Batch] | None = None,
) -> Iterator[DistillationObjective]:
    """Yield the objective, not yet prepared; ``transform`` is as for :func:`distillation_setup`.

    Raises:
        TaskError: A tap is wrong, a loss names what the task does not have, or reads what is not cached.
    """
    table: Literal["teacher", "student"] = "teacher" if networks.anchor is None else "student"
    loss_taps = LossTaps(task.modalities, taps.student, getattr(taps, table), table, losses_of(task))
    student_taps = taps_with_losses(taps.student, config, "student")
    teacher_taps = taps_with_losses(taps.teacher, config, "teacher")
    with ExitStack() as stack:
        student = stack.enter_context(TappedModel(networks.trained, student_taps))
        teachers = [tapped_teacher(member, teacher_taps, taps.precision) for member in members(networks.teacher)]
        live = LiveReference(*(stack.enter_context(tapped) for tapped in teachers))
        teacher = CachedReference(live, networks.outputs, report) if networks.outputs else live
        anchor = (
            teacher
            if networks.anchor is None
            else LiveReference(stack.enter_context(TappedModel(networks.anchor, student_taps)))
        )
        objective = DistillationObjective(student, teacher, anchor, config, loss_taps, report, transform)
        if objective.reads_maps and anchor is teacher and networks.outputs:
            raise TaskError("cache_teacher keeps no feature maps, which a loss reads: leave one of the two out")
        yield objective
