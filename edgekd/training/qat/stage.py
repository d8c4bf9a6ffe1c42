"""Stage: fine-tune with fake quantization and the unpruned student as Gram anchor, so that INT8 keeps the Gram."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekd.training.distillation.setup import DistillationNetworks, distillation_setup
from edgekd.training.loop.autograd_layers import frozen_statistics
from edgekd.training.loop.compute_device import compute_device
from edgekd.training.loop.evaluate import probe, save_trained
from edgekd.training.loop.loop import Fit, fit
from edgekd.training.loop.settings import describe_length
from edgekd.training.qat.fake_quant import fake_quantized
from edgekd.training.taps.taps import NetworkTaps

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from edgekd.config.recipe import QatConfig
    from edgekd.config.target import Scheme
    from edgekd.stages.trained import Trained
    from edgekd.training.loop.loop import Epoch
    from edgekd.training.stage_run import StageRun
    from edgekd.training.taps.taps import Taps
    from edgekd.training.task.loading import LoadedTask


@dataclass(frozen=True)
class QatNetworks:
    """The networks of the stage.

    Attributes:
        teacher: The trained teacher.
        student: The unpruned student, whose Gram is to be kept.
        tuned: The network that is fine-tuned, most often a pruned student.
        outputs: Folder of the teacher's cached outputs; None to run it on every batch.
    """

    teacher: nn.Module
    student: nn.Module
    tuned: nn.Module
    outputs: Path | None = None


def run(
    task: LoadedTask, networks: QatNetworks, taps: Taps, scheme: Scheme, config: QatConfig, stage: StageRun
) -> Trained:
    """Fine-tune with fake quantization; the weights that are kept are float, and were trained to be rounded.

    Ranges are measured on the calibration split before the first epoch and after each, since INT8 is calibrated there
    too, once the weights have moved. The Gram anchor and the labels are those of the training split alone.

    Raises:
        TaskError: A tap is wrong.
        ModelError: Training diverged.
    """
    device = compute_device()
    for network in (networks.teacher, networks.student, networks.tuned):
        network.to(device)
    model = networks.tuned
    trained = DistillationNetworks(model, networks.teacher, networks.student, networks.outputs)
    with (
        distillation_setup(task, trained, taps, config.loss, stage.seed, stage.report) as (objective, validation),
        frozen_statistics(model),  # the INT8 graph has them folded into its weights
        fake_quantized(model, scheme) as quantized,
    ):

        def calibrate() -> None:
            quantized.calibrate(lambda: probe(model, NetworkTaps({}, task.outputs), task.splits["calibration"]))

        def validate() -> Epoch:
            calibrate()
            return validation()

        calibrate()
        loop = Fit(config, stage.seed, stage.folder, stage.report, task.higher_is_better)
        history = fit(model, objective, task.splits["train"], validate, loop)
    tuned = save_trained(task, model, taps.student, history, stage.folder)
    return replace(tuned, longer=describe_length(config, len(task.splits["train"])))
