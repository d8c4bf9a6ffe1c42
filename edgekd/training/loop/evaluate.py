"""Run a model over a split, for its outputs, embeddings and metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from edgekd.gram.drift import measure_drift
from edgekd.gram.intervals import Bootstrap
from edgekd.gram.nest import take_rows
from edgekd.gram.npz import EMBEDDING_PREFIX, answers_of, embeddings_of
from edgekd.gram.probe import Probe
from edgekd.stages.artifacts import PROBE, WEIGHTS
from edgekd.stages.trained import Trained
from edgekd.training.loop import distributed
from edgekd.training.loop.weights import save_weights
from edgekd.training.taps.taps import TappedModel
from edgekd.training.task.protocol import Batch, Split, as_dataset, collate, read_batch
from edgekd.training.task.targets import join_nests, numpy_nest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from edgekd.config.recipe import Tap
    from edgekd.gram.nest import Nest
    from edgekd.training.loop.loop import Epoch
    from edgekd.training.task.loading import LoadedTask
    from edgekd.training.task.targets import Nest as TensorNest

_BATCH = 256

#: Only the mean is shown for each epoch, so no time is spent on its bound.
_UNBOUNDED = Bootstrap(resamples=1)


@dataclass(frozen=True)
class GroundTruth:
    """Ids, labels, groups and targets of a split.

    Attributes:
        ids: Names of the N samples.
        labels: Class indices [N], or UNLABELLED.
        groups: Names of the samples' groups [N], or None where samples are independent.
        targets: What the answers should be, as the task gives it, each leaf [N, ...]: the labels where it gives none.
    """

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_] | None
    targets: Nest

    @property
    def has_targets(self) -> bool:
        """Whether samples have targets beside their labels."""
        return self.targets is not self.labels

    def part(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> GroundTruth:
        """Return the ground truth of some samples."""
        labels = self.labels[rows]
        targets = take_rows(self.targets, rows) if self.has_targets else labels
        return GroundTruth(self.ids[rows], labels, None if self.groups is None else self.groups[rows], targets)


def batches(split: Split) -> DataLoader[Batch]:
    """Return the batches of a split, in order."""
    return DataLoader(as_dataset(split), _BATCH, collate_fn=collate)


def example_batch(task: LoadedTask, device: torch.device) -> Batch:
    """Return the first two training samples, which are enough to see the widths of networks."""
    split = task.splits["train"]
    return read_batch(split, range(min(2, len(split)))).to(device)


def ground_truth(split: Split, check: Callable[[Batch], None] | None = None) -> GroundTruth:
    """Read ids, labels, groups and targets of a split; ``check`` is called with each batch on the way."""
    ids: list[str] = []
    groups: list[str] = []
    labels: list[NDArray[np.int64]] = []
    targets: list[TensorNest[Tensor]] = []
    for batch in batches(split):
        if check is not None:
            check(batch)
        ids += batch.ids
        groups += batch.groups
        labels.append(batch.labels.numpy())
        if batch.has_targets:
            targets.append(batch.targets)
    all_labels = np.concatenate(labels)
    joined = numpy_nest(join_nests(torch.cat, targets)) if targets else all_labels
    return GroundTruth(np.array(ids), all_labels, np.array(groups) if any(groups) else None, joined)


def probe(
    model: nn.Module, taps: Mapping[str, Tap], split: Split, change: Callable[[Batch], Batch] | None = None
) -> Probe:
    """Return a model's outputs and embeddings on a split, computed in float32 on the model's device.

    Args:
        model: The model; it is in evaluation mode meanwhile.
        taps: For each modality where its embedding is, and which outputs are read.
        split: The split.
        change: Makes of each batch, in order, the one that the model is given; None for the batch itself.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    ids: list[str] = []
    readings: list[dict[str, NDArray[np.float32]]] = []
    with torch.inference_mode(), TappedModel(model, taps) as tapped:
        for batch in map(change, batches(split)) if change else batches(split):
            ids += batch.ids
            answers, embeddings = tapped(list(batch.to(device).inputs.values()))
            named = answers | {EMBEDDING_PREFIX + name: z for name, z in embeddings.items()}
            readings.append({name: x.float().cpu().numpy() for name, x in named.items()})
    model.train(was_training)
    whole = {name: np.concatenate([reading[name] for reading in readings]) for name in readings[0]}
    return Probe(np.array(ids), answers_of(whole), embeddings_of(whole))


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
        figures = {"validation": self._task.metric(probed.answer, self._truth.targets)}
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
    score = task.metric(probed.answer, ground_truth(task.splits["test"]).targets)
    return Trained(score, sum(p.numel() for p in model.parameters()), history)
