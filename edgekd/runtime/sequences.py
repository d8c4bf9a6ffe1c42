"""Samples that are steps of sequences: the state that an engine gives after one step is fed to it at the next."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ModelError
from edgekd.files import scratch_folder
from edgekd.gram.npz import CARRIED_PREFIX, INPUT_PREFIX
from edgekd.runtime.feeds import read_feeds
from edgekd.runtime.session import open_arrays, run_rows, write_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekd.runtime.session import Array, Feeds, Session


@dataclass(frozen=True)
class Sequences:
    """Which samples are steps of one sequence, in their order, and what is carried from one to the next.

    Attributes:
        states: For each input that is a state the output that holds it after a step.
        members: The number of the sequence that each sample is a step of [N].
    """

    states: Mapping[str, str]
    members: NDArray[np.intp]

    @property
    def before(self) -> NDArray[np.intp]:
        """For each sample the row of the step before it [N]; -1 for the first step of a sequence."""
        before = np.full(len(self.members), -1, np.intp)
        order = np.argsort(self.members, kind="stable")
        same = self.members[order][1:] == self.members[order][:-1]
        before[order[1:][same]] = order[:-1][same]
        return before


def sequences_of(states: Mapping[str, str], groups: Array | None, rows: int) -> Sequences:
    """Return the sequences of samples whose ``groups`` [N] name the sequence of each; one of all without groups."""
    members = np.zeros(rows, np.intp) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    return Sequences(states, members)


def read_sequences(samples: Path) -> Sequences | None:
    """Return the sequences that an ``.npz`` of samples holds; None where its samples are independent."""
    with open_arrays(samples) as arrays:
        states = {
            key.removeprefix(CARRIED_PREFIX): str(arrays[key]) for key in arrays if key.startswith(CARRIED_PREFIX)
        }
        return sequences_of(states, arrays["groups"], len(arrays["groups"])) if states else None


def run_samples(session: Session, samples: Path, batch: int) -> dict[str, Array]:
    """Run all samples of an ``.npz``, and return all rows of every output.

    Steps of sequences run in their order, and each is given the engine's own state after the step before. Other
    samples run at most ``batch`` at a time.

    Raises:
        ModelError: The file does not fit the engine.
    """
    return run_feeds(session, read_feeds(samples, session.inputs), read_sequences(samples), batch)


def run_feeds(session: Session, feeds: Feeds, sequences: Sequences | None, batch: int) -> dict[str, Array]:
    """Run all rows of ``feeds`` as :func:`run_samples` does; None of ``sequences`` is for independent samples."""
    if sequences is None or not sequences.states.keys() & feeds.keys():
        return run_rows(session, feeds, batch)
    return _run_in_order(session, feeds, sequences)


def _run_in_order(session: Session, feeds: Feeds, sequences: Sequences) -> dict[str, Array]:
    states = {name: output for name, output in sequences.states.items() if name in feeds}
    latest: dict[int, dict[str, Array]] = {}
    steps = []
    for row, member in enumerate(sequences.members.tolist()):
        fed = {name: array[row : row + 1] for name, array in feeds.items()}
        fed |= latest.get(member, {})
        outputs = session.run(fed)
        latest[member] = next_state(states, fed, outputs)
        steps.append(outputs)
    return {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}


def next_state(states: Mapping[str, str], fed: Feeds, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return what the inputs that are states are given at the next step.

    Args:
        states: For each such input the output that holds it after a step.
        fed: What the inputs were given at this step.
        outputs: What the engine gave.

    Raises:
        ModelError: A state after the step has another size than before, so that it cannot be fed again.
    """
    following = {}
    for name, output in states.items():
        array = outputs[output]
        if array.size != fed[name].size:
            raise ModelError(
                f"the state '{name}' is {list(fed[name].shape)}, but '{output}' is {list(array.shape)} after a step: "
                "one that changes its size cannot be carried"
            )
        following[name] = array.reshape(fed[name].shape)
    return following


def states_before(sequences: Sequences, feeds: Feeds, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the state [N, ...] that an engine was given at each step, by the input's name.

    Args:
        sequences: The sequences.
        feeds: The inputs of all samples; of states the first step of a sequence has what it begins with.
        outputs: What the engine gave for them, in order.
    """
    before = sequences.before
    states = {}
    for name, output in sequences.states.items():
        state = feeds[name].copy()
        carried = before >= 0
        state[carried] = outputs[output].reshape(state.shape)[before[carried]]
        states[name] = state
    return states


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
