"""One sequence that a bundle runs step by step: the state that it gives after one step is fed to it at the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ModelError
from edgekd.runtime.manifest import states_in
from edgekd.runtime.sequences import next_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.runtime.manifest import Manifest
    from edgekd.runtime.session import Array, Feeds, TensorSpec


class Initial:
    """What the states of a bundle are before the first step: zeros.

    Args:
        manifest: The bundle's manifest.
        specs: The inputs of its engine.

    Attributes:
        states: For each input that is a state the output that holds it after a step.
    """

    def __init__(self, manifest: Manifest, specs: Sequence[TensorSpec]) -> None:
        known = {spec.name: spec for spec in specs}
        self.states = {name: output for name, output in states_in(manifest).items() if name in known}
        self._specs = [known[name] for name in self.states]

    def begin(self, feeds: object) -> dict[str, Array]:
        """Return what the caller gave as feeds, and zeros for the states that are not among them.

        Raises:
            ModelError: A size of a state is open, and nothing in the feeds tells it.
        """
        if not isinstance(feeds, Mapping):
            return feeds  # type: ignore[return-value]  # the session says what is wrong with it
        left_out = [spec for spec in self._specs if spec.name not in feeds]
        rows = next((array.shape[0] for array in feeds.values() if getattr(array, "ndim", 0)), 1) if left_out else 0
        return {**feeds, **{spec.name: _zeros(spec, rows) for spec in left_out}}


def _zeros(spec: TensorSpec, rows: int) -> Array:
    if any(isinstance(size, str) for size in spec.shape[1:]):
        raise ModelError(f"the state '{spec.name}' is {spec}, whose sizes are open: feed what it begins with")
    return np.zeros([size if isinstance(size, int) else rows for size in spec.shape], spec.dtype)


class Stream:
    """One sequence of a bundle, which carries its state from step to step; a bundle may have any number of them.

    A stream is one caller's: two threads with one stream would mix their steps up. Streams of one bundle may run in any
    threads. :meth:`edgekd.Bundle.stream` makes them.
    """

    def __init__(self, run: Callable[[Feeds], dict[str, Array]], initial: Initial) -> None:
        self._run, self._initial = run, initial
        self._state: dict[str, Array] = {}

    @property
    def state(self) -> dict[str, Array]:
        """The state after the last step by the names of its inputs; empty before the first, when it is zero."""
        return dict(self._state)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run the next step, and return every output, the state after it among them.

        Args:
            feeds: The inputs of the step, without the states; a state that is among them is taken for the carried one.

        Raises:
            ModelError: As of :meth:`edgekd.Bundle.run`; the state stays what it was.
        """
        fed = self._initial.begin({**self._state, **feeds} if isinstance(feeds, Mapping) else feeds)
        outputs = self._run(fed)
        self._state = next_state(self._initial.states, fed, outputs)
        return outputs

    def reset(self) -> None:
        """Begin anew: the next step is the first of another sequence."""
        self._state = {}
