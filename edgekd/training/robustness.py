"""Stage: measure, on the test split, what a lost or noisy modality costs the networks that were trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from edgekd.runtime.corruption import NetworkRobustness, Robustness, count_changes, measure_robustness, save_statistics
from edgekd.stages.artifacts import CHANNELS
from edgekd.stages.labels import UNLABELLED
from edgekd.training.loop.compute_device import compute_device
from edgekd.training.loop.evaluate import ground_truth, probe
from edgekd.training.loop.input_statistics import training_channels
from edgekd.training.taps.taps import NetworkTaps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from edgekd.config.recipe import RobustnessConfig
    from edgekd.runtime.corruption import InputChange
    from edgekd.training.stage_run import StageRun
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.protocol import Batch


#: How many samples more or less another modality must make, or none makes a difference.
_CLEARLY = 5


@dataclass(frozen=True)
class MeasuredNetwork:
    """A trained network, and its metric on the test split."""

    model: nn.Module
    metric: float


def run(
    task: LoadedTask, networks: Mapping[str, MeasuredNetwork], config: RobustnessConfig, stage: StageRun
) -> Robustness:
    """Measure every network; the training statistics are left in the stage's folder for the engines.

    Raises:
        TaskError: No training sample has one of the modalities.
    """
    channels = training_channels(task.splits["train"], task.task.modalities, stage.seed)
    save_statistics(channels, stage.folder / CHANNELS)
    truth = ground_truth(task.splits["test"])
    total = len(networks) * count_changes(channels)
    done = 0
    measured: dict[str, NetworkRobustness] = {}
    for name, network in networks.items():
        model = network.model.to(compute_device())

        def evaluate(_modality: str, change: InputChange, model: nn.Module = model, name: str = name) -> float:
            nonlocal done
            answer = probe(
                model, NetworkTaps({}, task.outputs), task.splits["test"], lambda batch: _changed(batch, change)
            ).answer
            done += 1
            stage.report.advance(done, total, name)
            return task.metric(answer, truth.targets)

        measured[name] = measure_robustness(network.metric, evaluate, channels, config.noise, stage.seed)
    known = len(truth.ids) if truth.has_targets else int((truth.labels != UNLABELLED).sum())
    warnings = tuple(_describe_unused(task, measured, known))
    for warning in warnings:
        stage.report.warn(warning)
    return Robustness(config.noise, measured, warnings)


def _describe_unused(task: LoadedTask, measured: Mapping[str, NetworkRobustness], samples: int) -> Iterator[str]:
    """Yield a sentence for each modality without which the student answers as well, though not without another."""
    student, sign = measured.get("student"), 1 if task.higher_is_better else -1
    if student is None:
        return
    losses = {name: (student.clean - metric) * sign for name, metric in student.dropped.items()}
    one = abs(student.clean) / max(samples, 1)  # about what one sample more or less makes
    for name, loss in losses.items():
        if loss <= one and max(losses.values()) > _CLEARLY * one:
            teacher = measured.get("teacher")
            said = f"; the teacher's goes from {teacher.clean:.4g} to {teacher.dropped[name]:.4g}" if teacher else ""
            yield (
                f"the student makes nothing of '{name}': its {task.metric_name} is {student.dropped[name]:.4g} without "
                f"it and {student.clean:.4g} with it{said}"
            )


def _changed(batch: Batch, change: InputChange) -> Batch:
    arrays = {name: x.numpy() for name, x in batch.inputs.items()}
    return replace(batch, inputs={name: torch.from_numpy(x) for name, x in change(arrays).items()})
