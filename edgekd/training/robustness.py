"""Stage: measure, on the test split, what a lost or noisy modality costs the networks that were trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from edgekd.runtime.corruption import NetworkRobustness, Robustness, measure_robustness, save_statistics
from edgekd.stages.artifacts import CHANNELS
from edgekd.training.loop.evaluate import ground_truth, probe
from edgekd.training.loop.input_statistics import training_channels
from edgekd.training.loop.loop import compute_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from edgekd.config.recipe import RobustnessConfig
    from edgekd.runtime.corruption import Corruption
    from edgekd.training.stage_run import StageRun
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.protocol import Batch


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
    channels = training_channels(task.splits["train"], stage.seed)
    save_statistics(channels, stage.folder / CHANNELS)
    labels = ground_truth(task.splits["test"]).labels
    total = len(networks) * len(channels) * 2
    done = 0
    measured: dict[str, NetworkRobustness] = {}
    for name, network in networks.items():
        model = network.model.to(compute_device())

        def evaluate(modality: str, corruption: Corruption, model: nn.Module = model, name: str = name) -> float:
            nonlocal done
            logits = probe(model, {}, task.splits["test"], lambda batch: _changed(batch, modality, corruption)).answer
            done += 1
            stage.report.advance(done, total, name)
            return task.metric(logits, labels)

        measured[name] = measure_robustness(network.metric, evaluate, channels, config.noise, stage.seed)
    return Robustness(config.noise, measured)


def _changed(batch: Batch, modality: str, corruption: Corruption) -> Batch:
    return replace(
        batch, inputs={**batch.inputs, modality: torch.from_numpy(corruption(batch.inputs[modality].numpy()))}
    )
