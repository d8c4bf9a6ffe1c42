"""Corruptions of one modality of a network's inputs, and the robustness of its metric to them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgekd.runtime.session import open_arrays, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]
    #: Replaces a modality's rows [N, ...], in order, some rows at a time.
    Corruption: TypeAlias = Callable[[Array], Array]
    #: Returns a network's inputs with some replaced, some rows at a time, in order.
    InputChange: TypeAlias = Callable[[Mapping[str, Array]], dict[str, Array]]

#: Arrays of the file: the stand-in and the deviation of a modality; the stand-in of a companion, and whose it is.
_MEAN, _DEVIATION, _COMPANION, _OF = "mean.", "deviation.", "companion.", "of."


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of one modality over the training split, for each channel, the first dimension of a sample.

    Attributes:
        mean: What stands in for the modality where it is missing, in its type and of a shape that broadcasts to a
            sample: most often the mean [C, 1, ...]; [] where a sample is a single number.
        deviation: The standard deviation, float32 of the same shape; None where values are ids, masks or bytes, which
            noise would make others.
        companions: For each input that describes the modality, such as its mask, what stands in for it meanwhile; not
            for those that stay as they are.
    """

    mean: Array
    deviation: NDArray[np.float32] | None
    companions: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkRobustness:
    """A network's task metric on the test split, with clean and with corrupted inputs.

    Attributes:
        clean: The metric with the inputs as they are.
        dropped: The metric by the modality that is missing: its training mean, or what the task says, stands in.
        noisy: The metric by the modality to whose inputs Gaussian noise is added, without those that take none.
    """

    clean: float
    dropped: dict[str, float]
    noisy: dict[str, float]


@dataclass(frozen=True)
class Robustness:
    """The robustness of the trained networks to the loss of one modality, or to noise in it.

    Attributes:
        noise: The standard deviation of the noise, in training standard deviations of each channel.
        networks: The networks' robustness by their names.
        warnings: What the user was warned of.
    """

    noise: float
    networks: dict[str, NetworkRobustness]
    warnings: tuple[str, ...] = ()


def save_statistics(known: Mapping[str, ChannelStatistics], path: Path) -> None:
    """Write the statistics of each modality as an ``.npz``."""
    arrays: dict[str, Array] = {}
    for name, channels in known.items():
        arrays[_MEAN + name] = channels.mean
        if channels.deviation is not None:
            arrays[_DEVIATION + name] = channels.deviation
        for companion, stand_in in channels.companions.items():
            arrays |= {_COMPANION + companion: stand_in, _OF + companion: np.array(name)}
    write_arrays(path, arrays)


def load_statistics(path: Path) -> dict[str, ChannelStatistics]:
    """Read the statistics that :func:`save_statistics` wrote."""
    with open_arrays(path) as arrays:
        names = [key.removeprefix(_MEAN) for key in arrays if key.startswith(_MEAN)]
        companions: dict[str, dict[str, Array]] = {name: {} for name in names}
        for key in arrays:
            if key.startswith(_COMPANION):
                companion = key.removeprefix(_COMPANION)
                companions[str(arrays[_OF + companion])][companion] = arrays[key]
        return {
            name: ChannelStatistics(arrays[_MEAN + name], arrays.get(_DEVIATION + name), companions[name])
            for name in names
        }


def drop_modality(channels: ChannelStatistics) -> Corruption:
    """Return the corruption that replaces a modality by what stands in for it, such as its training mean.

    A network that standardises its inputs sees zeros instead.
    """
    return lambda rows: np.broadcast_to(channels.mean, rows.shape).astype(rows.dtype)


def add_noise(channels: ChannelStatistics, level: float, seed: Sequence[int]) -> Corruption:
    """Return the corruption that adds Gaussian noise to a modality.

    Rows that come in the same order get the same noise, however they are divided.

    Args:
        channels: The statistics of a modality that has a deviation.
        level: The standard deviation of the noise, in standard deviations of each channel.
        seed: The seed of the noise.
    """
    random = np.random.default_rng(seed)
    assert channels.deviation is not None
    spread = np.float32(level) * channels.deviation
    return lambda rows: (rows + spread * random.standard_normal(rows.shape, np.float32)).astype(rows.dtype)


def change_inputs(name: str, corruption: Corruption, companions: Mapping[str, Array] | None = None) -> InputChange:
    """Return the change of a network's inputs that corrupts one modality, and fills the companions with stand-ins."""

    def change(inputs: Mapping[str, Array]) -> dict[str, Array]:
        filled = {
            companion: np.broadcast_to(stand_in, inputs[companion].shape).astype(inputs[companion].dtype)
            for companion, stand_in in (companions or {}).items()
            if companion in inputs
        }
        return {**inputs, name: corruption(inputs[name]), **filled}

    return change


def count_changes(known: Mapping[str, ChannelStatistics]) -> int:
    """Return how often :func:`measure_robustness` evaluates a network."""
    return len(known) + sum(channels.deviation is not None for channels in known.values())


def measure_robustness(
    clean: float,
    evaluate: Callable[[str, InputChange], float],
    known: Mapping[str, ChannelStatistics],
    noise: float,
    seed: int,
) -> NetworkRobustness:
    """Measure one network with each modality dropped, and with noise in each that takes any.

    Args:
        clean: The network's metric with the inputs as they are.
        evaluate: Returns the metric for a modality and the change of the inputs that spoils it.
        known: The statistics of each modality.
        noise: The standard deviation of the noise, in standard deviations of each channel.
        seed: The seed of the noise, which is the same for every network.
    """
    dropped = {
        name: evaluate(name, change_inputs(name, drop_modality(channels), channels.companions))
        for name, channels in known.items()
    }
    noisy = {
        name: evaluate(name, change_inputs(name, add_noise(channels, noise, (seed, index))))
        for index, (name, channels) in enumerate(known.items())
        if channels.deviation is not None
    }
    return NetworkRobustness(clean, dropped, noisy)
