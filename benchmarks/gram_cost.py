"""What the Gram loss costs: a training step with the default loss against the same step with CE + KD alone.

Both students take turns, a block of steps each, in one process; the ratio is of the two means over all steps. A step is
the whole of it: batch, teacher, student, loss, backward, optimizer.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from common import arguments, write_result
from torch.utils.data import DataLoader

from edgekd.learn.objective import Distillation
from edgekd.learn.reference import Live
from edgekd.learn.taps import Tapped, resolve_taps
from edgekd.learn.task import collate, load_task
from edgekd.learn.terms import Where
from edgekd.learn.weights import build
from edgekd.progress import Silent, StageReporter
from edgekd.recipe import LossConfig, load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

LOSSES = {"kd": LossConfig(extra={}), "kd+gram": LossConfig()}
BLOCK = 20


def stepper(name: str, loss: LossConfig) -> Callable[[], float]:
    """Return a function that takes one training step and returns its time in ms."""
    recipe = load_recipe(name)
    loaded = load_task(recipe.task)
    taps = resolve_taps("student", {}, loaded.task.student_taps, loaded.modalities)
    student, teacher = build(loaded.task.student, 0), build(loaded.task.teacher, 0)
    tapped, reference = Tapped(student, taps).__enter__(), Live(Tapped(teacher, taps).__enter__())
    where = Where(loaded.modalities, taps, taps, "teacher")
    objective = Distillation(tapped, reference, reference, loss, where, StageReporter(Silent(), name))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    loader = DataLoader(
        loaded.splits["train"], recipe.distill.batch_size, shuffle=True, collate_fn=collate, drop_last=True
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> float:
        start = time.perf_counter()
        total, _ = objective(next(batches), 0.0)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        return (time.perf_counter() - start) * 1e3

    return step


def measure(name: str, blocks: int) -> dict[str, Any]:
    """Time both losses on one task, in turns."""
    steppers = {loss: stepper(name, config) for loss, config in LOSSES.items()}
    for step in steppers.values():
        for _ in range(60):  # past the steps at which every norm is measured
            step()
    times: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    for block in range(blocks):
        for loss in list(LOSSES)[:: 1 if block % 2 else -1]:
            times[loss] += [steppers[loss]() for _ in range(BLOCK)]
    medians = {loss: statistics.median(values) for loss, values in times.items()}
    means = {loss: statistics.fmean(values) for loss, values in times.items()}
    return {
        "step_ms_median": medians,
        "step_ms_mean": means,
        "ratio_median": medians["kd+gram"] / medians["kd"],
        "ratio_mean": means["kd+gram"] / means["kd"],
        "raw_ms": {loss: [round(value, 4) for value in values] for loss, values in times.items()},
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--blocks", type=int, default=40, help=f"blocks of {BLOCK} steps for each loss")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks = {name: measure(name, options.blocks) for name in options.tasks}
    for name, result in tasks.items():
        print(f"{name}: a step with the Gram loss takes {result['ratio_mean']:.3f} times one with KD alone (means)")
    write_result(__file__, {"threads": options.threads, "tasks": tasks})


if __name__ == "__main__":
    main()
