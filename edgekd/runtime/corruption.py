"""Corruptions of one modality of a network's inputs, and the robustness of its metric to them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgekd.runtime.session import open_arrays, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float32]
    #: Replaces a modality's rows [N, ...], in order, some rows at a time.
    Corruption: TypeAlias = Callable[[Array], Array]

_MEAN, _DEVIATION = "mean.", "deviation."


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of one modality over the training split, for each channel, the first dimension of a sample.

    Attributes:
        mean: The mean, float32 [C, 1, ...], so that it broadcasts to a sample; [] where a sample is a single number.
        deviation: The standard deviation, of the same shape.
    """

    mean: Array
    deviation: Array


@dataclass(frozen=True)
class NetworkRobustness:
    """A network's task metric on the test split, with clean and with corrupted inputs.

    Attributes:
        clean: The metric with the inputs as they are.
        dropped: The metric by the modality whose inputs are replaced by the training mean of each channel.
        noisy: The metric by the modality to whose inputs Gaussian noise is added.
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
    means = {_MEAN + name: channels.mean for name, channels in known.items()}
    write_arrays(path, means | {_DEVIATION + name: channels.deviation for name, channels in known.items()})


def load_statistics(path: Path) -> dict[str, ChannelStatistics]:
    """Read the statistics that :func:`save_statistics` wrote."""
    with open_arrays(path) as arrays:
        names = [key.removeprefix(_MEAN) for key in arrays if key.startswith(_MEAN)]
        return {name: ChannelStatistics(arrays[_MEAN + name], arrays[_DEVIATION + name]) for name in names}


def drop_modality(channels: ChannelStatistics) -> Corruption:
    """Return the corruption that replaces a modality by its training mean.

    A network that standardises its inputs sees zeros instead.
    """
    return lambda rows: np.broadcast_to(channels.mean, rows.shape).astype(np.float32)


def add_noise(channels: ChannelStatistics, level: float, seed: Sequence[int]) -> Corruption:
    """Return the corruption that adds Gaussian noise to a modality.

    Rows that come in the same order get the same noise, however they are divided.

    Args:
        channels: The modality's statistics.
        level: The standard deviation of the noise, in standard deviations of each channel.
        seed: The seed of the noise.
    """
    random = np.random.default_rng(seed)
    spread = np.float32(level) * channels.deviation
    return lambda rows: rows + spread * random.standard_normal(rows.shape, np.float32)


def measure_robustness(
    clean: float,
    evaluate: Callable[[str, Corruption], float],
    known: Mapping[str, ChannelStatistics],
    noise: float,
    seed: int,
) -> NetworkRobustness:
    """Measure one network with each modality dropped, and with noise in each.

    Args:
        clean: The network's metric with the inputs as they are.
        evaluate: Returns the metric for a modality and the corruption of its rows.
        known: The statistics of each modality.
        noise: The standard deviation of the noise, in standard deviations of each channel.
        seed: The seed of the noise, which is the same for every network.
    """
    dropped = {name: evaluate(name, drop_modality(channels)) for name, channels in known.items()}
    noisy = {
        name: evaluate(name, add_noise(channels, noise, (seed, index)))
        for index, (name, channels) in enumerate(known.items())
    }
    return NetworkRobustness(clean, dropped, noisy)
