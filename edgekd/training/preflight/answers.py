"""Run an untrained network as engines, probes and exports will: on a few samples, on one, and twice."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from edgekd.errors import TaskError
from edgekd.gram.probe import answer_of
from edgekd.training.preflight.random_line import first_random
from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from edgekd.config.recipe import Tap
    from edgekd.gram.probe import Answer
    from edgekd.stages.progress import StageReporter
    from edgekd.training.preflight.networks import BuiltNetwork
    from edgekd.training.taps.taps import TapOutputs
    from edgekd.training.task.loading import LoadedTask

#: Largest |difference| of two answers that count as the same, as a share of the answer's largest magnitude. Kernels
#: round otherwise for another batch, in the seventh digit; dropout or batch statistics differ in the first.
_SAME = 1e-3


def check_answers(
    network: BuiltNetwork, taps: Mapping[str, Tap], task: LoadedTask, inputs: Sequence[Tensor], report: StageReporter
) -> TapOutputs:
    """Run the student on a few samples, on two, on one, and on one again.

    Args:
        network: The student.
        taps: Where its embeddings are.
        task: The user's task.
        inputs: A few samples, one batch for each modality.
        report: Receives a warning where the answer to a sample depends on the others of its batch.

    Returns:
        What it gives for all samples, with gradients.

    Raises:
        TaskError: A tap is wrong, it does not take the samples or one sample alone, or gives two results for one input.
    """
    reading = read(network, taps, task, inputs)
    two, one, again = (read(network, taps, task, [x[:count] for x in inputs]) for count in (2, 1, 1))
    if _difference(one, again) > _SAME:
        raise TaskError(_says_two(network, task, inputs))
    if _difference(one, two) > _SAME:
        report.warn(
            f"{network.title}, answers a sample otherwise when another is in its batch (by {_difference(one, two):.1%} "
            "of the answer): what is measured on batches is not what an engine says of one sample"
        )
    return reading


def check_twice(
    network: BuiltNetwork, taps: Mapping[str, Tap], task: LoadedTask, inputs: Sequence[Tensor], report: StageReporter
) -> TapOutputs:
    """Run the teacher twice, and return what it gives, with gradients; warn where it gives two results.

    It never ships, but students learn from what it says.

    Raises:
        TaskError: A tap is wrong, or it does not take the samples.
    """
    reading = read(network, taps, task, inputs)
    if _difference(reading, read(network, taps, task, inputs)) > _SAME:
        report.warn(_says_two(network, task, inputs))
    return reading


def _says_two(network: BuiltNetwork, task: LoadedTask, inputs: Sequence[Tensor]) -> str:
    """Return that a network gives two results for one input, and where that begins."""
    where = first_random(network.model, inputs, task.folder)
    begins = f", first {where}" if where else ""
    return (
        f"{network.title}, gives two results for one input in evaluation mode{begins}: something in it draws random "
        "numbers, as F.dropout(x) does without training=self.training"
    )


def answers_of(reading: TapOutputs) -> list[Tensor]:
    """Return a network's answers, in the task's order."""
    return list(reading.answers.values())


def as_metrics_take(task: LoadedTask, reading: TapOutputs) -> Answer:
    """Return what a network answered as a metric is given it."""
    arrays = (answer.detach().float().cpu().numpy() for answer in answers_of(reading))
    return answer_of(dict(zip(task.outputs, arrays, strict=True)))


def read(network: BuiltNetwork, taps: Mapping[str, Tap], task: LoadedTask, inputs: Sequence[Tensor]) -> TapOutputs:
    """Run a network on samples, in evaluation mode, and return what it gives, with gradients.

    Raises:
        TaskError: A tap is wrong, or the network does not take the samples.
    """
    network.model.eval()
    with named(network):
        tapped = TappedModel(network.model, taps)
    return read_tapped(network, tapped, task, inputs)


def read_tapped(network: BuiltNetwork, tapped: TappedModel, task: LoadedTask, inputs: Sequence[Tensor]) -> TapOutputs:
    """Run a network that is tapped already; see :func:`read`."""
    with tapped, task.running(_failure(network, inputs)), named(network):
        return tapped.read(inputs)


def _failure(network: BuiltNetwork, inputs: Sequence[Tensor]) -> str:
    shapes = ", ".join(f"{tuple(x.shape)}" for x in inputs)
    if len(inputs[0]) == 1:
        return f"{network.title}, does not run on a single sample, as an engine does ({shapes})"
    return f"{network.title}, cannot take the task's samples, one batch for each modality in order ({shapes})"


@contextmanager
def named(network: BuiltNetwork) -> Iterator[None]:
    """Say of a tap's error which network's it is, since both may have taps of one name and be of one class."""
    try:
        yield
    except TaskError as error:
        raise TaskError(f"{network.name}: {error}") from error


def _difference(one: TapOutputs, other: TapOutputs) -> float:
    """Return how far the first sample's answers and embeddings are apart, as a share of the largest of each."""
    pairs = [*zip(answers_of(one), answers_of(other), strict=True)]
    pairs += [(z, other.embeddings[name]) for name, z in one.embeddings.items()]
    with torch.no_grad():
        return max(float((a[0] - b[0]).abs().max() / b[0].abs().max().clamp(min=1e-6)) for a, b in pairs)
