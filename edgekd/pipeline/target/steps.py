"""Samples that are steps of sequences: each network carries its own state, and its variants are compared from one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekd.files import scratch_folder
from edgekd.gram.npz import CARRIED_PREFIX, INPUT_PREFIX
from edgekd.runtime.sequences import read_sequences, states_before
from edgekd.runtime.session import open_arrays, write_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edgekd.runtime.session import Array


def own_states(samples: Path, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return what a network's states were before each sample [N, ...]; none where samples are independent.

    Args:
        samples: ``.npz`` of the samples.
        outputs: What the network gave for all of them, its states among it.
    """
    sequences = read_sequences(samples)
    if sequences is None:
        return {}
    with open_arrays(samples) as arrays:
        feeds = {name: arrays[INPUT_PREFIX + name] for name in sequences.states}
    return states_before(sequences, feeds, outputs)


@contextmanager
def from_states(samples: Path, outputs: Mapping[str, Array]) -> Iterator[Path]:
    """Yield samples in which each step is given by itself the state that a network had there.

    From the same state two variants of one network differ by rounding alone; each from its own, they may end anywhere.
    """
    states = own_states(samples, outputs)
    if not states:
        yield samples
        return
    with open_arrays(samples) as arrays:
        kept = {key: arrays[key] for key in arrays if not key.startswith(CARRIED_PREFIX)}
    with scratch_folder() as folder:
        path = folder / samples.name
        write_arrays(path, {**kept, **{INPUT_PREFIX + name: state for name, state in states.items()}})
        yield path
