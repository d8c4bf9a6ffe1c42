"""Measuring engines side by side: the same order of things on every device, so that their figures compare."""

from __future__ import annotations

import itertools
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgekd.devices.extra_measurements import ExtraMeasurements, count_steps, measure_extras, nothing_measured
from edgekd.gram.npz import INPUT_PREFIX
from edgekd.runtime.measure.results import EngineProfile, Profile, latency_from
from edgekd.runtime.session import open_arrays, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from edgekd.config.recipe import ProfileConfig
    from edgekd.runtime.measure.results import Nanoseconds

#: Inferences of one engine before the next takes its turn: short, so that a drift of the machine's speed hits all.
_BLOCK = 50
#: Untimed inferences at the start of a turn: caches and threads were the other engines', which a p99 would show.
_LEAD_IN = 5
#: Rows that the timed inferences cycle through. Few, since they count towards the process's peak memory.
_ROWS = 64


class EngineProcess(Protocol):
    """One engine, open in a process of its own. A context manager: at the end the process is gone."""

    @property
    def import_ms(self) -> float | None:
        """How long importing the engine library took; None where that is not told from loading."""

    @property
    def load_ms(self) -> float:
        """How long opening took."""

    def ask(self, job: str, *wanted: str, **arguments: Any) -> dict[str, Any]:
        """Give the agent a further job; where nothing further can be measured, this is not called."""

    def first(self, feeds: Path) -> float:
        """Read the rows that :meth:`measure` cycles through; return the time of one inference of the first, in ms."""

    def measure(self, iterations: int, warmup: int) -> Nanoseconds:
        """Time inferences of single rows, one after the other, in ns [iterations]."""

    def compute(self, iterations: int, warmup: int) -> Nanoseconds | None:
        """Time computing alone, in ns [iterations]; None where the runtime does not tell it from the rest."""

    def peak_rss_bytes(self) -> int:
        """Return the process's peak resident memory so far."""

    def machine(self) -> dict[str, str]:
        """Describe the machine and the libraries that it runs."""

    def __enter__(self) -> EngineProcess: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass
class _EngineTimes:
    """What was measured of one engine so far; of each fresh process one entry."""

    further: ExtraMeasurements
    import_ms: list[float] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    first_run_ms: list[float] = field(default_factory=list)
    latency: list[Nanoseconds] = field(default_factory=list)
    compute: list[Nanoseconds] = field(default_factory=list)
    peak_rss_bytes: int = 0


_NO_COMPUTE = "not measured: the runtime does not tell computing from taking inputs and giving outputs"


def profile_interleaved(
    open_engine: Callable[[Path], EngineProcess],
    engines: Mapping[str, Path],
    inputs: Path,
    folder: Path,
    config: ProfileConfig,
    advance: Callable[[int, int, str], None],
    no_further: str | None = None,
) -> Profile:
    """Measure engines side by side, at batch 1.

    The inferences of each engine are shared equally by several fresh processes, one after another: each gives a cold
    start, though the engine's file may be in the system's cache, and then its share. In each round all engines are open
    and take turns of a few inferences, end to end and then computing alone, in an order that rotates. What else is
    asked for is measured in the last round's processes, one engine after the other.

    Args:
        open_engine: opens an engine file in a process of its own.
        engines: engine files by name.
        inputs: ``.npz`` of real samples, ``input.<name>`` [N, ...].
        folder: receives ``<name>.npy`` with every timed inference in ns, in order, ``<name>.compute.npy`` of computing
            alone, and ``<name>.paced.npy`` and ``<name>.sustained.npy`` where these are asked for.
        config: how many inferences and fresh processes, untimed inferences before, and what else.
        advance: called after each step with steps done, steps in all, and what came out.
        no_further: why nothing but latency can be measured there: ``"not measured: ..."``; None where it can.
    """
    shares = [_split(share, -(-share // _BLOCK)) for share in _split(config.iterations, config.cold_starts)]
    total = len(engines) * (sum(1 + len(blocks) for blocks in shares) + (0 if no_further else count_steps(config)))
    done = itertools.count(1)
    found = {name: _EngineTimes(nothing_measured(no_further or "not measured")) for name in engines}

    def notify(note: str) -> None:
        advance(next(done), total, note)

    with tempfile.TemporaryDirectory() as scratch:
        feeds = Path(scratch) / "feeds.npz"
        _save_first_rows(inputs, feeds)
        for index, blocks in enumerate(shares):
            with ExitStack() as stack:
                running = {}
                for name in _turn(engines, index):
                    running[name] = stack.enter_context(open_engine(engines[name]))
                    _start(running[name], feeds, found[name])
                    notify(f"{name} opened in {running[name].load_ms:.1f} ms")
                _time(running, blocks, config, found, notify)
                if index < len(shares) - 1:
                    continue
                machine = next(iter(running.values())).machine()
                for name, opened in () if no_further else running.items():
                    found[name].further = measure_extras(name, opened.ask, folder, config, notify)
    no_compute = _NO_COMPUTE if config.compute else "not measured: it is switched off (profile.compute = false)"
    profiles = tuple(_summary(name, engines[name], found[name], folder, no_compute) for name in engines)
    return Profile(machine, config.threads, _BLOCK, profiles, config.cold_starts)


def _start(opened: EngineProcess, feeds: Path, found: _EngineTimes) -> None:
    found.load_ms.append(opened.load_ms)
    if opened.import_ms is not None:
        found.import_ms.append(opened.import_ms)
    found.first_run_ms.append(opened.first(feeds))


def _time(
    running: Mapping[str, EngineProcess],
    blocks: list[int],
    config: ProfileConfig,
    found: Mapping[str, _EngineTimes],
    notify: Callable[[str], None],
) -> None:
    """Let engines that are open take turns."""
    parts: dict[str, list[Nanoseconds]] = {name: [] for name in running}
    alone: dict[str, list[Nanoseconds]] = {name: [] for name in running}
    for opened in running.values():
        opened.measure(0, config.warmup)
    for index, block in enumerate(blocks):
        for name in _turn(running, index):
            parts[name].append(running[name].measure(block, _LEAD_IN))
            computed = running[name].compute(block, _LEAD_IN) if config.compute else None
            alone[name] += [] if computed is None else [computed]
            notify(f"{name} {np.median(parts[name][-1]) / 1e6:.3f} ms")
    for name, opened in running.items():
        if parts[name]:
            found[name].latency.append(np.concatenate(parts[name]))
        if alone[name]:
            found[name].compute.append(np.concatenate(alone[name]))
        found[name].peak_rss_bytes = max(found[name].peak_rss_bytes, opened.peak_rss_bytes())


def _summary(name: str, engine: Path, found: _EngineTimes, folder: Path, no_compute: str) -> EngineProfile:
    """Write the raw times of an engine and return what came out."""
    np.save(folder / f"{name}.npy", np.concatenate(found.latency))
    if found.compute:
        np.save(folder / f"{name}.compute.npy", np.concatenate(found.compute))
    further = found.further
    return EngineProfile(
        name=name,
        latency=latency_from(*found.latency),
        load_ms=tuple(found.load_ms),
        first_run_ms=tuple(found.first_run_ms),
        peak_rss_bytes=found.peak_rss_bytes,
        size_bytes=engine.stat().st_size,
        raw_file=f"{name}.npy",
        import_ms=tuple(found.import_ms),
        compute=latency_from(*found.compute) if found.compute else None,
        paced=further.paced,
        sustained=further.sustained,
        energy=further.energy,
        layers=further.layers,
        not_measured={**({} if found.compute else {"compute": no_compute}), **further.not_measured},
    )


def _split(count: int, parts: int) -> list[int]:
    """Return so many parts of a count, as equal as can be, the larger first."""
    return [count // parts + (part < count % parts) for part in range(parts)]


def _turn(engines: Mapping[str, object], index: int) -> list[str]:
    """Return the engines' names in an order that begins with another one each turn."""
    names = list(engines)
    shift = index % len(names)
    return names[shift:] + names[:shift]


def _save_first_rows(inputs: Path, path: Path) -> None:
    with open_arrays(inputs) as archive:
        rows = {key: archive[key][:_ROWS] for key in archive if key.startswith(INPUT_PREFIX)}
    write_arrays(path, rows)
