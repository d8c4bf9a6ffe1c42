"""How many inferences of each engine are timed in a profile, and in how many processes, within the time that it has."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekd.config.recipe import ProfileConfig
    from edgekd.runtime.measure.results import Quantile

#: Inferences of one engine before the next takes its turn, at most and at least, and how long they should take; few,
#: so that a drift of the machine's speed affects all.
_BLOCK, _LEAST_BLOCK, _TURN_S = 50, 5, 0.5
#: Untimed inferences at the start of a turn, for each ten timed ones: the other engines had used caches and threads.
_LEAD_IN = 0.1
#: Shares of the time that there is for untimed inferences before the first turn, and for all layers' profiles.
_WARM_UP, _LAYERS = 0.1, 0.1
#: Inferences under the library's profiler, at most and at least.
_LAYER_RUNS, _LEAST_LAYER_RUNS = 100, 5
#: Fewest inferences of an engine: with fewer p50 has no interval.
_LEAST = 6
#: A profile that took this long ends after this many processes once each p50's interval is this narrow a share of it.
_ENOUGH_S, _ENOUGH_PROCESSES, _NARROW = 20.0, 3, 0.02


class Schedule:
    """The processes of a profile, one after another; all engines have as many inferences in each of them.

    Where the inferences that were asked for, and those before them, do not fit into ``limit_s``, there are fewer: first
    of each process, then processes. The first process tells how long they take. Where they take long, and all p50 are
    known well, the profile ends early.

    Attributes:
        processes: The number of processes that are finished.
        block: The most inferences of one engine before the next takes its turn.
    """

    def __init__(self, config: ProfileConfig, engines: int, extras: int) -> None:
        """Begin the first process.

        Args:
            config: The inferences and processes that are asked for, and the limit.
            engines: The number of engines.
            extras: The number of further steps for each engine.
        """
        self._config, self._engines, self._extras = config, engines, extras
        self._begin = time.monotonic()
        self._shares = _split(config.iterations, config.cold_starts)
        self._inference_s: Mapping[str, float] = {}
        self._warm_up_s = math.inf
        self.processes, self.block = 0, _BLOCK

    @property
    def steps(self) -> int:
        """The number of steps, as far as is known: each engine's opening, turns and extra measurements."""
        turns = sum(1 + math.ceil(share / self.block) for share in self._shares)
        return self._engines * (turns + self._extras)

    def open(self, inference_s: Mapping[str, float]) -> None:
        """Receive that the engines of a process are open, and how long an inference of each takes."""
        if not self.processes:
            self._inference_s = inference_s
            self._fit(time.monotonic() - self._begin)

    def _fit(self, opening_s: float) -> None:
        """Share out what fits into the limit, given how long it takes to open all engines."""
        config, slowest_s = self._config, max(self._inference_s.values())
        self.block = max(_LEAST_BLOCK, min(_BLOCK, int(_TURN_S / slowest_s)))
        if not config.limit_s:
            return
        timed_s = config.limit_s * (1 - _LAYERS * config.layers)
        one_s = sum(self._inference_s.values()) * (1 + config.compute) * (1 + self.lead_in / self.block)
        processes = int((timed_s * (1 - _WARM_UP)) // (opening_s + one_s))
        processes = max(1, min(config.cold_starts, processes))
        self._warm_up_s = _WARM_UP * timed_s / processes / self._engines
        each = int((timed_s * (1 - _WARM_UP) / processes - opening_s) / one_s)
        each = max(each, math.ceil(_LEAST / processes))
        self._shares = [min(share, each) for share in _split(config.iterations, processes)]

    @property
    def lead_in(self) -> int:
        """The number of untimed inferences at the start of a turn."""
        return max(1, round(_LEAD_IN * self.block))

    @property
    def blocks(self) -> list[int]:
        """The timed inferences of each turn in this process."""
        share = self._shares[self.processes]
        return _split(share, math.ceil(share / self.block))

    def warmup(self, name: str) -> int:
        """Return the number of untimed inferences of an engine before the first turn of a process."""
        return int(min(self._config.warmup, max(1.0, self._warm_up_s / self._inference_s[name])))

    def layer_runs(self, name: str) -> int:
        """Return the number of inferences of an engine under the library's profiler."""
        if not self._config.limit_s:
            return _LAYER_RUNS
        runs = _LAYERS * self._config.limit_s / self._engines / self._inference_s[name]
        return int(max(_LEAST_LAYER_RUNS, min(_LAYER_RUNS, runs)))

    def close(self, medians: Sequence[Quantile | None]) -> bool:
        """Receive that a process has had its inferences, and the p50 of each engine; return whether it is the last."""
        self.processes += 1
        narrow = all(p50 and p50.high_ms - p50.low_ms <= _NARROW * p50.value_ms for p50 in medians)
        long = time.monotonic() - self._begin >= _ENOUGH_S and self.processes >= _ENOUGH_PROCESSES
        if self._config.limit_s and narrow and long:
            self._shares = self._shares[: self.processes]
        return self.processes == len(self._shares)


def _split(count: int, parts: int) -> list[int]:
    """Split a count into parts that are as equal as can be, the larger first."""
    return [count // parts + (part < count % parts) for part in range(parts)]
