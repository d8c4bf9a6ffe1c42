"""Inputs with one modality dropped or noisy, and what a network makes of them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.runtime.session import open_arrays, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Array = np.ndarray[Any, Any]
    #: From a modality's rows [N, ...] to what a network is given instead, in order, some rows at a time.
    Change = Callable[[Array], Array]

_MEAN, _DEVIATION = "mean.", "deviation."


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of one modality over the training split, for each channel, the first dimension of a sample.

    Attributes:
        mean: float32 [C, 1, ...], so that it broadcasts to a sample; [] where a sample is a single number.
        deviation: the standard deviation, likewise.
    """

    mean: Array
    deviation: Array


@dataclass(frozen=True)
class NetworkRobustness:
    """A network's task metric on the test split.

    Attributes:
        clean: with the inputs as they are.
        dropped: for each modality with its inputs replaced by the training mean of each channel.
        noisy: for each modality with Gaussian noise added to its inputs.
    """

    clean: float
    dropped: dict[str, float]
    noisy: dict[str, float]


@dataclass(frozen=True)
class Robustness:
    """What losing or spoiling one modality costs the networks that were trained.

    Attributes:
        noise: standard deviation of the noise, in training standard deviations of each channel.
        networks: by name.
    """

    noise: float
    networks: dict[str, NetworkRobustness]


def save_statistics(known: Mapping[str, ChannelStatistics], path: Path) -> None:
    """Write the statistics of each modality as ``.npz``."""
    means = {_MEAN + name: channels.mean for name, channels in known.items()}
    write_arrays(path, means | {_DEVIATION + name: channels.deviation for name, channels in known.items()})


def load_statistics(path: Path) -> dict[str, ChannelStatistics]:
    """Read what :func:`save_statistics` wrote."""
    with open_arrays(path) as arrays:
        names = [key.removeprefix(_MEAN) for key in arrays if key.startswith(_MEAN)]
        return {name: ChannelStatistics(arrays[_MEAN + name], arrays[_DEVIATION + name]) for name in names}


def drop_modality(channels: ChannelStatistics) -> Change:
    """Replace a modality by its training mean: what a network that standardises its inputs sees as nothing."""
    return lambda rows: np.broadcast_to(channels.mean, rows.shape).astype(np.float32)


def add_noise(channels: ChannelStatistics, level: float, seed: Sequence[int]) -> Change:
    """Add Gaussian noise to a modality; rows that come in the same order get the same, however they are divided.

    Args:
        channels: of the modality.
        level: standard deviation of the noise, in standard deviations of each channel.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    spread = np.float32(level) * channels.deviation
    return lambda rows: rows + spread * random.standard_normal(rows.shape, np.float32)


def measure_robustness(
    clean: float,
    evaluate: Callable[[str, Change], float],
    known: Mapping[str, ChannelStatistics],
    noise: float,
    seed: int,
) -> NetworkRobustness:
    """Measure one network with each modality dropped, and with each noisy.

    Args:
        clean: its metric with the inputs as they are.
        evaluate: from a modality and what happens to its rows to the metric.
        known: statistics of each modality.
        noise: standard deviation of the noise, in those of each channel.
        seed: of the noise, which is the same for every network.
    """
    dropped = {name: evaluate(name, drop_modality(channels)) for name, channels in known.items()}
    noisy = {
        name: evaluate(name, add_noise(channels, noise, (seed, index)))
        for index, (name, channels) in enumerate(known.items())
    }
    return NetworkRobustness(clean, dropped, noisy)
