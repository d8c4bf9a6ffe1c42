"""Latency of a network in torch: it is exported and timed in ONNX Runtime, on this machine."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from edgekd.files import scratch_folder
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.training.export.onnx import ExportNetwork, write_onnx
from edgekd.training.loop.copies import copy_network

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgekd.config.recipe import Tap
    from edgekd.runtime.session import Session
    from edgekd.training.task.protocol import Batch

#: The operator set that torch writes without a conversion; which one it is does not change the latency.
_OPSET = 18
#: How often the two networks alternate, and the ms of inferences each time: short, so that a drift of the machine's
#: speed affects both alike.
_TURNS, _TURN_MS = 21, 5.0
_LEAD_IN = 1


@dataclass(frozen=True)
class Compared:
    """The p50 of a network and of the reference that it alternated with, in ms."""

    p50_ms: float
    reference_ms: float

    @property
    def ratio(self) -> float:
        """The network's p50 as a share of the reference's."""
        return self.p50_ms / self.reference_ms


@dataclass(frozen=True)
class _Open:
    """A network in ONNX Runtime, and one sample for it."""

    session: Session
    feeds: Mapping[str, NDArray[np.generic]]


class RelativeLatency:
    """Measures the p50 of networks as a share of a reference's, alternating with it, at batch 1 on one thread.

    Args:
        reference: The network that the others are compared with; it is copied.
        taps: Where the networks' embeddings are.
        batch: Samples to export and to time with.

    Raises:
        ModelError: Torch cannot export the network.
    """

    def __init__(self, reference: nn.Module, taps: Mapping[str, Tap], batch: Batch) -> None:
        self._taps, self._batch = taps, batch
        self._reference = _open(reference, taps, batch)

    def __call__(self, model: nn.Module) -> float:
        """Return the network's p50 as a share of the reference's."""
        return self.compare(model, self._taps, self._batch).ratio

    def compare(
        self,
        model: nn.Module,
        taps: Mapping[str, Tap],
        batch: Batch,
        alone: AbstractContextManager[object] | None = None,
    ) -> Compared:
        """Time a network, which may have other taps and inputs than the reference; ``alone`` is entered meanwhile."""
        both = (_open(model, taps, batch), self._reference)
        times: tuple[list[float], list[float]] = ([], [])
        with alone or nullcontext():
            turns = [max(1, round(_TURN_MS / _time(opened, 1)[0])) for opened in both]
            for _ in range(_TURNS):
                for opened, count, known in zip(both, turns, times, strict=True):
                    known.extend(_time(opened, count))
        return Compared(median(times[0]), median(times[1]))


def _open(model: nn.Module, taps: Mapping[str, Tap], batch: Batch) -> _Open:
    inputs = {name: x.cpu() for name, x in batch.inputs.items()}
    with scratch_folder() as scratch:
        path = scratch / "network.onnx"
        write_onnx(ExportNetwork(copy_network(model), taps), inputs, _OPSET, path)
        session = open_engine(path.read_bytes(), name=type(model).__name__)
    return _Open(session, {name: x[:1].numpy() for name, x in inputs.items()})


def _time(opened: _Open, count: int) -> list[float]:
    """Return the time of each inference, in ms."""
    for _ in range(_LEAD_IN):
        opened.session.run(opened.feeds)
    taken = []
    for _ in range(count):
        start = time.perf_counter_ns()
        opened.session.run(opened.feeds)
        taken.append((time.perf_counter_ns() - start) / 1e6)
    return taken
