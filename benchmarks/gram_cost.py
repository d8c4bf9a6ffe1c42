"""What the Gram costs: a training step with it against the same step with CE + KD alone.

Students take turns, a block of steps each, in one process; ratios are of the means over all steps, norms measured now
and then as in training. A step is the whole of it: batch, teacher, student, loss, backward, optimizer. Beside the
shipped tasks there is ``four-images``: batch 128, four modalities, encoders of three convolutions, where the goals
are at most 1.03 for scope `sample` and 1.10 for `joint`. What the images show does not matter to the time.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from common import TASKS, arguments, parse, write_result
from torch.utils.data import DataLoader

from edgekd.config.loading import load_recipe
from edgekd.config.recipe import LossConfig
from edgekd.stages.progress import Silent, StageReporter
from edgekd.tasks.av_digits import AvDigits
from edgekd.training.distillation.loss_taps import LossTaps
from edgekd.training.distillation.objective import DistillationObjective
from edgekd.training.distillation.references import LiveReference
from edgekd.training.loop.weights import build
from edgekd.training.taps.taps import TappedModel, resolve_taps
from edgekd.training.task.loading import load_task
from edgekd.training.task.models import Conv2dEncoder, LateFusion
from edgekd.training.task.protocol import ArraySplit, Modality, collate

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from torch import nn

LOSSES = {
    "kd": LossConfig(extra={}),
    "default": LossConfig(),
    **{scope: LossConfig(extra={scope: 1.0}) for scope in ("sample", "intra", "cross", "joint")},
}
FOUR_IMAGES = "four-images"


class FourImages:
    """Four images of the digits of `av-digits`, each rolled by another number of samples."""

    def __init__(self) -> None:
        source = AvDigits(train=1280)
        self.modalities = [Modality(f"image{n}", source.modalities[0].shape) for n in range(4)]
        self.student_taps = {modality.name: f"encoders.{modality.name}" for modality in self.modalities}
        train = source.splits()["train"]
        inputs = {m.name: train.inputs["image"].roll(n, 0) for n, m in enumerate(self.modalities)}
        self.train = ArraySplit(train.ids, inputs, train.labels)

    def student(self) -> nn.Module:
        """Return the untrained student."""
        return self._network((16, 32, 32), 32)

    def teacher(self) -> nn.Module:
        """Return the untrained teacher."""
        return self._network((32, 64, 64), 64)

    def _network(self, channels: tuple[int, ...], width: int) -> nn.Module:
        encoders = {m.name: Conv2dEncoder((1, *channels), width) for m in self.modalities}
        return LateFusion(encoders, width, 64, 10)


def stepper(name: str, loss: LossConfig) -> Callable[[], float]:
    """Return a function that takes one training step and returns its time in ms."""
    if name == FOUR_IMAGES:
        task, batch = FourImages(), 128
        split = task.train
    else:
        recipe = load_recipe(name)
        loaded = load_task(recipe.task)
        task, split, batch = loaded.task, loaded.splits["train"], recipe.distill.batch_size
    modalities = [modality.name for modality in task.modalities]
    taps = resolve_taps("student", {}, task.student_taps, modalities)
    student, teacher = build(task.student, 0), build(task.teacher, 0)
    tapped, reference = TappedModel(student, taps).__enter__(), LiveReference(TappedModel(teacher, taps).__enter__())
    where = LossTaps(modalities, taps, taps, "teacher")
    objective = DistillationObjective(tapped, reference, reference, loss, where, StageReporter(Silent(), name))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    loader = DataLoader(split, batch, shuffle=True, collate_fn=collate, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> float:
        start = time.perf_counter()
        total, _ = objective(next(batches), 0.0)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        return (time.perf_counter() - start) * 1e3

    return step


def measure(name: str, options: Namespace) -> dict[str, Any]:
    """Time all losses on one task, in turns."""
    steppers = {loss: stepper(name, config) for loss, config in LOSSES.items()}
    for step in steppers.values():
        for _ in range(options.lead_in):
            step()
    times: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    for block in range(options.blocks):
        for loss in list(LOSSES)[:: 1 if block % 2 else -1]:
            times[loss] += [steppers[loss]() for _ in range(options.block)]
    medians = {loss: statistics.median(values) for loss, values in times.items()}
    means = {loss: statistics.fmean(values) for loss, values in times.items()}
    return {
        "step_ms_median": medians,
        "step_ms_mean": means,
        "ratio_median": {loss: medians[loss] / medians["kd"] for loss in LOSSES},
        "ratio_mean": {loss: means[loss] / means["kd"] for loss in LOSSES},
        "raw_ms": {loss: [round(value, 4) for value in values] for loss, values in times.items()},
    }


def main() -> None:
    parser = arguments(__doc__, TASKS)
    parser.add_argument("--blocks", type=int, default=40, help="blocks of each loss")
    parser.add_argument("--block", type=int, default=20, help="steps in a block")
    parser.add_argument("--lead-in", type=int, default=60, help="steps that do not count yet, with all norms")
    parser.add_argument("--threads", type=int, default=1)
    options = parse(parser, tasks=["digits"], blocks=2, block=1, lead_in=1)
    torch.set_num_threads(options.threads)
    tasks = {name: measure(name, options) for name in (*options.tasks, FOUR_IMAGES)}
    for name, result in tasks.items():
        ratios = ", ".join(f"{loss} {ratio:.3f}" for loss, ratio in result["ratio_mean"].items())
        print(f"{name}: a step takes, as a multiple of one with KD alone (means): {ratios}")
    write_result(__file__, {"threads": options.threads, "tasks": tasks}, options)


if __name__ == "__main__":
    main()
