"""Run a model over a split, for its logits, embeddings and metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.probe import Probe
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.stages.trained import Trained
from edgekd.training.loop import distributed
from edgekd.training.loop.weights import save_weights
from edgekd.training.taps.taps import TappedModel
from edgekd.training.task.protocol import Batch, Split, as_dataset, collate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from edgekd.config.recipe import Tap
    from edgekd.training.loop.loop import Epoch
    from edgekd.training.task.loading import LoadedTask

_BATCH = 256

#: Only the mean is shown for each epoch, so no time is spent on its bound.
_UNBOUNDED = Bootstrap(resamples=1)


@dataclass(frozen=True)
class GroundTruth:
    """Ids, labels and groups of a split.

    Attributes:
        ids: Names of the N samples.
        labels: Class indices [N], or UNLABELLED.
        groups: Names of the samples' groups [N], or None where samples are independent.
    """

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_] | None


def batches(split: Split) -> DataLoader[Batch]:
    """Return the batches of a split, in order."""
    return DataLoader(as_dataset(split), _BATCH, collate_fn=collate)


def example_batch(task: LoadedTask, device: torch.device) -> Batch:
    """Return the first two training samples, which are enough to see the widths of networks."""
    split = task.splits["train"]
    return collate([split[index] for index in range(min(2, len(split)))]).to(device)


def ground_truth(split: Split, check: Callable[[Batch], None] | None = None) -> GroundTruth:
    """Read ids, labels and groups of a split; ``check`` is called with each batch on the way."""
    ids: list[str] = []
    groups: list[str] = []
    labels = []
    for batch in batches(split):
        if check is not None:
            check(batch)
        ids += batch.ids
        groups += batch.groups
        labels.append(batch.labels.numpy())
    return GroundTruth(np.array(ids), np.concatenate(labels), np.array(groups) if any(groups) else None)


def probe(
    model: nn.Module, taps: Mapping[str, Tap], split: Split, change: Callable[[Batch], Batch] | None = None
) -> Probe:
    """Return a model's logits and embeddings on a split, computed in float32 on the model's device.

    Args:
        model: The model; it is in evaluation mode meanwhile.
        taps: For each modality where its embedding is.
        split: The split.
        change: Makes of each batch, in order, the one that the model is given; None for the batch itself.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    ids: list[str] = []
    logits, embeddings = [], []
    with torch.inference_mode(), TappedModel(model, taps) as tapped:
        for batch in map(change, batches(split)) if change else batches(split):
            ids += batch.ids
            batch_logits, batch_embeddings = tapped(list(batch.to(device).inputs.values()))
            logits.append(batch_logits.float().cpu().numpy())
            embeddings.append({name: z.float().cpu().numpy() for name, z in batch_embeddings.items()})
    model.train(was_training)
    return Probe(
        np.array(ids),
        {"logits": np.concatenate(logits)},
        {name: np.concatenate([e[name] for e in embeddings]) for name in taps},
    )


class Validation:
    """Figures of a model on the validation split: its metric, and the drift of its Gram from a reference's.

    Args:
        task: The task whose split and metric are used.
        model: The model that is trained.
        taps: For each modality where the model's embedding is.
        reference: Probe of the reference on that split, or None to measure no drift.
    """

    def __init__(
        self, task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap], reference: Probe | None = None
    ) -> None:
        self._task, self._model, self._taps, self._reference = task, model, taps, reference
        self._truth = ground_truth(task.splits["val"])

    def __call__(self) -> Epoch:
        """Return the metric as "validation" and, with a reference, the mean drift as "drift"."""
        probed = probe(self._model, self._taps, self._task.splits["val"])
        figures = {"validation": self._task.metric(probed.answer, self._truth.labels)}
        if self._reference is not None:
            figures["drift"] = measure_drift(probed, self._reference, None, _UNBOUNDED).mean
        return figures


def save_trained(
    task: LoadedTask, model: nn.Module, taps: Mapping[str, Tap], history: list[Epoch], folder: Path
) -> Trained:
    """Write a trained model's weights and its probe of the test split, and return its metric and history."""
    probed = probe(model, taps, task.splits["test"])
    if distributed.is_main():
        save_weights(model, folder / WEIGHTS)
        probed.save(folder / PROBE)
    score = task.metric(probed.answer, ground_truth(task.splits["test"]).labels)
    return Trained(score, sum(p.numel() for p in model.parameters()), history)
