"""How long a step of training takes with one thread and with several."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

from edgekd.errors import EdgekdError
from edgekd.training.distillation.objective import SupervisedObjective
from edgekd.training.distillation.task_losses import losses_of
from edgekd.training.loop.autograd_layers import train_unfrozen
from edgekd.training.loop.batches import BatchOrder
from edgekd.training.loop.loop import training_loss
from edgekd.training.loop.reading import BatchDraw, BatchReader
from edgekd.training.loop.weights import build
from edgekd.training.stage_run import Resources, computing
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from edgekd.config.recipe import Recipe
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.protocol import Batch

#: Each number of threads is timed in turns with the other, since the machine may be busy now and idle then.
_ROUNDS, _STEPS = 7, 3

#: After this time a round is the last one.
_LONGEST_S = 4.0

#: What is slower by this factor in its first step is timed no more: it may be slower by a thousand, and take as long.
_HOPELESS = 5.0

#: More threads are taken only where they are faster by this factor: what is gained by less is lost beside other work.
_WORTH = 1.15


def time_threads(task: LoadedTask, taps: Taps, recipe: Recipe, most: int) -> dict[int, float]:
    """Return the milliseconds of a supervised step of teacher and student together, on the CPU.

    Args:
        task: The task.
        taps: Where the networks' embeddings are.
        recipe: Sizes of the batches.
        most: The most threads.

    Returns:
        The time with one thread and, where ``most`` is more, with ``most``.
    """
    sections = (
        (task.task.teacher, taps.teacher, recipe.teacher.batch_size),
        (task.task.student, taps.student, recipe.distill.batch_size),
    )
    counts, losses = sorted({1, most}), losses_of(task)
    totals = dict.fromkeys(counts, 0.0)
    for factory, own_taps, batch_size in sections:
        order = BatchOrder(len(task.splits["train"]), batch_size, recipe.seed, 1)
        with TappedModel(build(factory, recipe.seed), own_taps) as tapped:
            objective = SupervisedObjective(tapped, losses)
            for count, seconds in _time(objective, _first_batch(task, order), counts).items():
                totals[count] += 1000 * seconds
    return totals


def faster(times: dict[int, float]) -> int:
    """Return the number of threads to train with: several only where they are clearly faster than one."""
    quickest = min(times, key=times.__getitem__)
    return quickest if times[quickest] * _WORTH <= times[1] else 1


def _first_batch(task: LoadedTask, order: BatchOrder) -> Batch:
    batch = BatchReader(task.splits["train"])[BatchDraw(order.seed, next(iter(order)))]
    if isinstance(batch, EdgekdError):
        raise batch
    return batch


def _time(objective: SupervisedObjective, batch: Batch, counts: list[int]) -> dict[int, float]:
    """Return for each number of threads the median seconds of a step; the first number is 1."""
    train_unfrozen(objective.tapped.model)

    def seconds(count: int, steps: int) -> float:
        with computing(Resources(count)):
            began = time.perf_counter()
            for _ in range(steps):
                torch.autograd.backward(training_loss(objective, batch, 0.0)[0])
            return (time.perf_counter() - began) / steps

    seconds(counts[0], 1)  # warms up
    first = {count: seconds(count, 1) for count in counts}
    timed = {count: list[float]() for count in counts if first[count] <= _HOPELESS * first[counts[0]]}
    ends = time.perf_counter() + _LONGEST_S
    for turn in range(_ROUNDS):
        if turn and time.perf_counter() > ends:
            break
        for count, each in timed.items():
            each.append(seconds(count, _STEPS))
    return first | {count: statistics.median(each) for count, each in timed.items()}
