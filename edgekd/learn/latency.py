"""Latency of a network that is still torch's: exported and timed in ONNX Runtime, on this machine."""

from __future__ import annotations

import time
from copy import deepcopy
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekd.learn.to_onnx import Network, write_onnx
from edgekd.runtime.ort import open_engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from edgekd.learn.task import Batch
    from edgekd.recipe import Tap
    from edgekd.runtime.session import Session

#: That torch writes without converting; what an operator set is called does not change how fast it is.
_OPSET = 18
#: Turns of the two networks, and the inferences of one turn: as many as take 5 ms, so that a drift of the machine's
#: speed hits both alike.
_TURNS, _TURN_MS = 21, 5.0
_LEAD_IN = 1


class RelativeLatency:
    """The p50 of networks as shares of a reference's, each timed in turns with it, at batch 1 on one thread.

    Args:
        reference: what the others are compared with; it is copied.
        taps: where the networks' embeddings are.
        batch: samples to export and to time with.

    Raises:
        ModelError: torch cannot export the network.
    """

    def __init__(self, reference: nn.Module, taps: Mapping[str, Tap], batch: Batch) -> None:
        self._taps = taps
        self._inputs = {name: x.cpu() for name, x in batch.inputs.items()}
        self._feeds = {name: x[:1].numpy() for name, x in self._inputs.items()}
        self._reference = self._open(reference)

    def __call__(self, model: nn.Module) -> float:
        """Return the network's p50 as a share of the reference's."""
        sessions = (self._open(model), self._reference)
        turns = [max(1, round(_TURN_MS / self._time(session, 1)[0])) for session in sessions]
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(_TURNS):
            for session, count, known in zip(sessions, turns, times, strict=True):
                known.extend(self._time(session, count))
        return median(times[0]) / median(times[1])

    def _open(self, model: nn.Module) -> Session:
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "network.onnx"
            write_onnx(Network(deepcopy(model), self._taps), self._inputs, _OPSET, path)
            return open_engine(path.read_bytes(), name=type(model).__name__)

    def _time(self, session: Session, count: int) -> list[float]:
        """Return the times of inferences, in ms."""
        for _ in range(_LEAD_IN):
            session.run(self._feeds)
        taken = []
        for _ in range(count):
            start = time.perf_counter_ns()
            session.run(self._feeds)
            taken.append((time.perf_counter_ns() - start) / 1e6)
        return taken
