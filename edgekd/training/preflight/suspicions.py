"""What is odd about the networks and the metric, and nothing would stop at: warnings, each with what to do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekd.config.recipe import GateConfig
from edgekd.errors import TaskError
from edgekd.stages.labels import UNLABELLED
from edgekd.training.preflight.answers import answers_of
from edgekd.training.preflight.reactions import describe_ignored, describe_taps, find_reactions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from edgekd.config.recipe import Recipe, Tap
    from edgekd.training.loop.evaluate import GroundTruth
    from edgekd.training.preflight.networks import BuiltNetwork
    from edgekd.training.taps.taps import TapOutputs
    from edgekd.training.task.loading import LoadedTask

#: How far from 1 a distribution's sum may be.
_SUM = 1e-3

#: Raw values from here on, and embeddings of them from here on, are of no scale that a network is initialised for.
_RAW, _LARGE = 1e3, 1e2

#: A metric that goes from 0 to 1 is no larger; one of which smaller is better, as a logarithmic loss, may well be.
_SHARE, _LOSS = 1.5, 10.0


def describe_network(
    network: BuiltNetwork, taps: Mapping[str, Tap], task: LoadedTask, inputs: Sequence[Tensor], reading: TapOutputs
) -> Iterator[str]:
    """Yield a sentence for what is odd about an untrained network.

    Args:
        network: The network.
        taps: Where its embeddings are.
        task: The user's task.
        inputs: A few samples, one batch for each input.
        reading: What the network gave for them.
    """
    found = find_reactions(network, taps, task, inputs)
    yield from describe_taps(network, taps, found)
    yield from describe_ignored(network, found, task.modalities)
    if any(_is_distribution(answer) for answer in answers_of(reading)):
        yield (
            f"{network.title}, gives probabilities, and the losses take logits: a softmax of a softmax learns slowly "
            "and hides what the teacher knows; leave the softmax out"
        )
    for name, x in zip(task.modalities, inputs, strict=False):
        z = reading.embeddings.get(name)
        if z is not None and x.is_floating_point() and float(x.abs().max()) > _RAW and _size(z) > _LARGE:
            yield (
                f"{network.title}, is fed '{name}' as it is, up to {float(x.abs().max()):,.0f}, and its embedding is "
                f"of the order of {_size(z):,.0f} before any training: standardise it in the network, as with "
                "edgekd.Standardize"
            )


def _size(x: Tensor) -> float:
    return float(x.detach().double().pow(2).mean().sqrt())


def _is_distribution(answer: Tensor) -> bool:
    """Whether answers [B, C] are probabilities of classes."""
    if answer.dim() != 2 or answer.shape[1] < 2 or not answer.is_floating_point():
        return False
    rows = answer.detach().double()
    return bool((rows >= 0).all() and ((rows.sum(1) - 1).abs() < _SUM).all())


def describe_metric(
    task: LoadedTask, recipe: Recipe, outputs: NDArray[np.float32], truth: GroundTruth
) -> Iterator[str]:
    """Yield a sentence for what is odd about the task's metric.

    Args:
        task: The user's task.
        recipe: The recipe.
        outputs: The untrained student's answers to the samples of a split [N, C].
        truth: The labels of these samples.
    """
    values = [task.metric(outputs, truth.labels)]
    known = truth.labels[truth.labels != UNLABELLED]
    if outputs.ndim == 2 and len(known) and known.max() < outputs.shape[1]:
        values += [value for value in [_perfect(task, outputs, truth)] if value is not None]
        constant = np.zeros_like(outputs)
        constant[:, np.bincount(known).argmax()] = 1
        if (reason := _refusal(task, constant, truth)) and len(np.unique(known)) > 1:
            yield (
                f"the task's {task.metric_name} has no value where every answer is the same ({reason}), so nothing "
                "will tell whether a student learned more than that"
            )
    largest = _SHARE if task.higher_is_better else _LOSS
    limit = GateConfig().max_metric_drop
    if recipe.gate.max_metric_drop == limit and max(values) > largest:
        yield (
            f"the task's {task.metric_name} goes up to {max(values):.4g} or more, and [gate] max_metric_drop = {limit} "
            f"is in its unit, so a fall of {limit / max(values):.2%} is refused: set the limit in that unit, in "
            f"percent gate.max_metric_drop = {100 * limit:g}"
        )


def _perfect(task: LoadedTask, outputs: NDArray[np.float32], truth: GroundTruth) -> float | None:
    """Return the metric of answers that are all right; None where it has none."""
    right = np.full_like(outputs, -10)
    rows = np.flatnonzero(truth.labels != UNLABELLED)
    right[rows, truth.labels[rows]] = 10
    try:
        value = task.metric(right, truth.labels)
    except TaskError:
        return None
    return value if math.isfinite(value) else None


def _refusal(task: LoadedTask, outputs: NDArray[np.float32], truth: GroundTruth) -> str:
    """Return why the metric has no value for some answers; "" where it has one, or is infinite."""
    try:
        return "it is not a number" if math.isnan(task.metric(outputs, truth.labels)) else ""
    except TaskError as error:
        return str(error)
