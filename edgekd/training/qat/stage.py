"""Stage: fine-tune with fake quantization, the unpruned student as Gram anchor, so that INT8 keeps the Gram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.training.distillation.setup import Models, aligned
from edgekd.training.loop.autograd_layers import frozen_statistics
from edgekd.training.loop.evaluate import keep, probe
from edgekd.training.loop.loop import Fit, compute_device, fit
from edgekd.training.qat.fake_quant import fake_quantized

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from edgekd.config.recipe import QatConfig
    from edgekd.config.target import Scheme
    from edgekd.stages.artifacts import Trained
    from edgekd.stages.progress import StageReporter
    from edgekd.training.loop.loop import Epoch
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.protocol import LoadedTask


@dataclass(frozen=True)
class QatNetworks:
    """The networks of the stage: the teacher, the unpruned student, and what is tuned, most often a pruned student.

    The teacher's outputs are read where they were written.
    """

    teacher: nn.Module
    student: nn.Module
    tuned: nn.Module
    outputs: Path | None = None


def run(
    task: LoadedTask,
    networks: QatNetworks,
    taps: Taps,
    scheme: Scheme,
    config: QatConfig,
    seed: int,
    folder: Path,
    report: StageReporter,
) -> Trained:
    """Fine-tune into ``folder``; what is kept is float, and learned to have its weights rounded to the nearest level.

    Ranges are measured on the calibration split before the first epoch and after each: INT8 is calibrated there too,
    once the weights have moved. The Gram anchor and the labels are of the training split alone, as ever.

    Raises:
        TaskError: a tap is wrong.
        ModelError: training diverged.
    """
    device = compute_device()
    for network in (networks.teacher, networks.student, networks.tuned):
        network.to(device)
    model = networks.tuned
    models = Models(model, networks.teacher, networks.student, networks.outputs)
    with (
        aligned(task, models, taps, config.loss, seed, report) as (objective, validation),
        frozen_statistics(model),  # the INT8 graph has them folded into its weights, which have settled
        fake_quantized(model, scheme) as quantized,
    ):

        def calibrate() -> None:
            quantized.calibrate(lambda: probe(model, {}, task.splits["calibration"]))

        def validate() -> Epoch:
            calibrate()
            return validation()

        calibrate()
        history = fit(model, objective, task.splits["train"], validate, Fit(config, seed, folder, report))
    return keep(task, model, taps.student, history, folder)
