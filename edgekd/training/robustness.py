"""Stage: what losing or spoiling one modality costs the networks that were trained, on the test split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from edgekd.runtime.corruption import NetworkRobustness, Robustness, measure_robustness, save_statistics
from edgekd.stages.artifacts import CHANNELS
from edgekd.training.loop.evaluate import probe, truth
from edgekd.training.loop.input_statistics import training_channels
from edgekd.training.loop.loop import compute_device

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from edgekd.config.recipe import RobustnessConfig
    from edgekd.runtime.corruption import Corruption
    from edgekd.stages.progress import StageReporter
    from edgekd.training.task.protocol import Batch, LoadedTask


@dataclass(frozen=True)
class MeasuredNetwork:
    """A trained network, and its metric on the test split."""

    model: nn.Module
    metric: float


def run(
    task: LoadedTask,
    networks: Mapping[str, MeasuredNetwork],
    config: RobustnessConfig,
    seed: int,
    folder: Path,
    report: StageReporter,
) -> Robustness:
    """Measure every network; the training statistics are left in ``folder`` for the engines.

    Raises:
        TaskError: no training sample has one of the modalities.
    """
    known = training_channels(task.splits["train"], seed)
    save_statistics(known, folder / CHANNELS)
    labels = truth(task.splits["test"]).labels
    total = len(networks) * len(known) * 2
    done = 0
    found: dict[str, NetworkRobustness] = {}
    for name, network in networks.items():
        model = network.model.to(compute_device())

        def evaluate(modality: str, corruption: Corruption, model: nn.Module = model, name: str = name) -> float:
            nonlocal done
            logits = probe(model, {}, task.splits["test"], lambda batch: _changed(batch, modality, corruption)).logits
            done += 1
            report.advance(done, total, name)
            return task.metric(logits, labels)

        found[name] = measure_robustness(network.metric, evaluate, known, config.noise, seed)
    return Robustness(config.noise, found)


def _changed(batch: Batch, modality: str, corruption: Corruption) -> Batch:
    return replace(
        batch, inputs={**batch.inputs, modality: torch.from_numpy(corruption(batch.inputs[modality].numpy()))}
    )
