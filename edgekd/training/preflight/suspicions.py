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
    from edgekd.gram.npz import Array
    from edgekd.gram.output_kind import OutputName
    from edgekd.gram.probe import Answer
    from edgekd.training.loop.evaluate import GroundTruth
    from edgekd.training.preflight.networks import BuiltNetwork
    from edgekd.training.taps.taps import TapOutputs
    from edgekd.training.task.loading import LoadedTask

#: The axis of the classes, by the kind of output.
_CLASS_AXES: Mapping[str, int] = {"classes": 1, "dense-classes": 1, "sequence-classes": -1}

#: So many logits are hardly all between 0 and 1 by chance.
_ENOUGH = 16

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
    for (name, kind), answer in zip(task.outputs.items(), answers_of(reading), strict=True):
        if not kind.probabilities and (function := _squashed(answer, kind.name)):
            where = f" as '{name}'" if len(task.outputs) > 1 else ""
            yield (
                f"{network.title}, gives probabilities{where}, and the losses take logits: a {function} of a "
                f"{function} learns slowly and hides what the teacher knows; leave the {function} out"
            )
    for name, x in zip(task.inputs, inputs, strict=True):
        z = reading.embeddings.get(name)
        if z is not None and x.is_floating_point() and float(x.abs().max()) > _RAW and _size(z) > _LARGE:
            yield (
                f"{network.title}, is fed '{name}' as it is, up to {float(x.abs().max()):,.0f}, and its embedding is "
                f"of the order of {_size(z):,.0f} before any training: standardise it in the network, as with "
                "edgekd.Standardize"
            )


def _size(x: Tensor) -> float:
    return float(x.detach().double().pow(2).mean().sqrt())


def _squashed(answer: Tensor, kind: OutputName) -> str:
    """Return the function that made probabilities of answers where logits are asked for; "" where none did."""
    rows = answer.detach().double()
    if kind == "multilabel":  # half of all logits are negative before any training
        return "sigmoid" if rows.numel() >= _ENOUGH and bool(((rows > 0) & (rows < 1)).all()) else ""
    axis = _CLASS_AXES.get(kind)
    if axis is None or rows.dim() < 2 or rows.shape[axis] < 2:
        return ""
    return "softmax" if bool((rows >= 0).all() and ((rows.sum(axis) - 1).abs() < _SUM).all()) else ""


def describe_metric(task: LoadedTask, recipe: Recipe, answer: Answer, truth: GroundTruth) -> Iterator[str]:
    """Yield a sentence for what is odd about the task's metric.

    Args:
        task: The user's task.
        recipe: The recipe.
        answer: What an untrained student answers to the samples of a split.
        truth: The ground truth of these samples.
    """
    values = [task.metric(answer, truth.targets)]
    labels = _classes(task, answer, truth) if isinstance(answer, np.ndarray) else None
    if labels is not None and isinstance(answer, np.ndarray):
        right, constant = (np.full_like(answer, -10) for _ in range(2))
        rows = np.flatnonzero(truth.labels != UNLABELLED)
        right[rows, truth.labels[rows]] = 10
        constant[:, np.bincount(labels).argmax()] = 10
        values += [value for value in [_tried(task, right, truth)[0]] if math.isfinite(value)]
        value, reason = _tried(task, constant, truth)
        if math.isnan(value) and len(np.unique(labels)) > 1:
            yield (
                f"the task's {task.metric_name} has no value where every answer is the same ({reason}), so nothing "
                "will tell whether a student learned more than that"
            )
    largest = _SHARE if task.higher_is_better else _LOSS
    limit = GateConfig().max_metric_drop
    if recipe.gate.max_metric_drop == limit and max(values) > largest:
        yield (
            f"the task's {task.metric_name} goes up to {max(values):.4g} or more, and [gate] max_metric_drop = {limit} "
            f"is in its unit, so a fall of {100 * limit / max(values):.2g} % is refused: set the limit in that unit, "
            f"in percent gate.max_metric_drop = {100 * limit:g}"
        )


def _classes(task: LoadedTask, answer: Array, truth: GroundTruth) -> NDArray[np.int64] | None:
    """Return the labels that there are, where the answer is scores of classes; else None."""
    kinds = [kind.name for kind in task.outputs.values()]
    known = truth.labels[truth.labels != UNLABELLED]
    fits = kinds == ["classes"] and not truth.has_targets and answer.ndim == 2 and len(known) > 0
    return known if fits and known.max() < answer.shape[1] else None


def _tried(task: LoadedTask, answer: Answer, truth: GroundTruth) -> tuple[float, str]:
    """Return the metric of some answers; where it has none, NaN and why."""
    try:
        return task.metric(answer, truth.targets), "it is not a number"
    except TaskError as error:
        return math.nan, str(error)
