"""Profile engines side by side, in the same order on every device, so that their figures can be compared."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgekd.devices.extra_measurements import ExtraMeasurements, count_steps, measure_extras, nothing_measured
from edgekd.devices.schedule import Schedule
from edgekd.files import scratch_folder
from edgekd.gram.npz import INPUT_PREFIX
from edgekd.runtime.measure.results import EngineProfile, Profile, latency_from
from edgekd.runtime.session import open_arrays, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from edgekd.config.recipe import ProfileConfig
    from edgekd.files import JsonObject
    from edgekd.runtime.measure.results import Nanoseconds

#: Inferences of a process that tell how long one takes; the first of them may be slow.
_PACED = 3
#: Rows that the timed inferences cycle through. Few, since they count towards the process's peak memory.
_ROWS = 64


class EngineProcess(Protocol):
    """One engine, open in a process of its own. A context manager: at the end the process is gone."""

    @property
    def import_ms(self) -> float | None:
        """The time to import the engine library, in ms; None where it is part of loading."""

    @property
    def load_ms(self) -> float:
        """The time to open the engine, in ms."""

    def ask(self, job: str, *wanted: str, **arguments: object) -> JsonObject:
        """Give the agent a further job; not called where only latency can be measured."""

    def first(self, feeds: Path) -> float:
        """Read the rows that :meth:`measure` cycles through; return the time of one inference of the first, in ms."""

    def measure(self, iterations: int, warmup: int) -> Nanoseconds:
        """Time inferences of single rows, one after the other, in ns [iterations]."""

    def compute(self, iterations: int, warmup: int) -> Nanoseconds | None:
        """Time computing alone, in ns [iterations]; None where the runtime cannot time it by itself."""

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
    """The measurements of one engine so far, with one entry for each fresh process."""

    extras: ExtraMeasurements
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
    no_extras: str | None = None,
) -> Profile:
    """Measure engines side by side, at batch 1.

    The inferences of each engine are shared equally by several fresh processes, one after another: each gives a cold
    start, though the engine's file may be in the system's cache, and then its share. In each round all engines are open
    and take turns of a few inferences, end to end and then computing alone, in an order that rotates. The extra
    measurements are made in the last round's processes, one engine after the other. Where engines are slow there are
    fewer inferences, as :class:`~edgekd.devices.schedule.Schedule` says.

    Args:
        open_engine: Opens an engine file in a process of its own.
        engines: The engine files by name.
        inputs: The ``.npz`` of real samples, ``input.<name>`` [N, ...].
        folder: The folder that receives ``<name>.npy`` with every timed inference in ns, in order,
            ``<name>.compute.npy`` of computing alone, and ``<name>.paced.npy`` and ``<name>.sustained.npy`` where these
            are asked for.
        config: The number of inferences, of fresh processes and of untimed inferences before, and what else to measure.
        advance: Called after each step with the steps done, the steps in all, and the step's result.
        no_extras: The reason why nothing but latency can be measured there: ``"not measured: ..."``; None where more
            can.
    """
    schedule = Schedule(config, len(engines), 0 if no_extras else count_steps(config))
    done = 0
    times = {name: _EngineTimes(nothing_measured(no_extras or "not measured")) for name in engines}

    def notify(note: str) -> None:
        nonlocal done
        done += 1
        advance(done, schedule.steps, note)

    with scratch_folder() as scratch:
        feeds = scratch / "feeds.npz"
        _save_first_rows(inputs, feeds)
        last = False
        while not last:
            with ExitStack() as stack:
                running = {}
                for name in _turn(engines, schedule.processes):
                    running[name] = stack.enter_context(open_engine(engines[name]))
                    _start(running[name], feeds, times[name])
                    notify(f"{name} opened in {running[name].load_ms:.1f} ms")
                schedule.open({name: _pace(opened) for name, opened in running.items()})
                _time(running, schedule, config, times, notify)
                last = schedule.close([latency_from(*engine.latency).p50 for engine in times.values()])
                if not last:
                    continue
                machine = next(iter(running.values())).machine()
                for name, opened in () if no_extras else running.items():
                    runs = schedule.layer_runs(name)
                    times[name].extras = measure_extras(name, opened.ask, folder, config, notify, runs)
    no_compute = _NO_COMPUTE if config.compute else "not measured: it is switched off (profile.compute = false)"
    profiles = tuple(_summary(name, engines[name], times[name], folder, no_compute) for name in engines)
    return Profile(machine, config.threads, schedule.block, profiles, schedule.processes)


def _start(opened: EngineProcess, feeds: Path, times: _EngineTimes) -> None:
    times.load_ms.append(opened.load_ms)
    if opened.import_ms is not None:
        times.import_ms.append(opened.import_ms)
    times.first_run_ms.append(opened.first(feeds))


def _pace(opened: EngineProcess) -> float:
    """Return the time of one inference in s."""
    return float(np.min(opened.measure(_PACED, 0))) / 1e9


def _time(
    running: Mapping[str, EngineProcess],
    schedule: Schedule,
    config: ProfileConfig,
    times: Mapping[str, _EngineTimes],
    notify: Callable[[str], None],
) -> None:
    """Time the open engines in turns."""
    parts: dict[str, list[Nanoseconds]] = {name: [] for name in running}
    alone: dict[str, list[Nanoseconds]] = {name: [] for name in running}
    for name, opened in running.items():
        opened.measure(0, schedule.warmup(name))
    for index, block in enumerate(schedule.blocks):
        for name in _turn(running, index):
            parts[name].append(running[name].measure(block, schedule.lead_in))
            computed = running[name].compute(block, schedule.lead_in) if config.compute else None
            alone[name] += [] if computed is None else [computed]
            notify(f"{name} {np.median(parts[name][-1]) / 1e6:.3f} ms")
    for name, opened in running.items():
        if parts[name]:
            times[name].latency.append(np.concatenate(parts[name]))
        if alone[name]:
            times[name].compute.append(np.concatenate(alone[name]))
        times[name].peak_rss_bytes = max(times[name].peak_rss_bytes, opened.peak_rss_bytes())


def _summary(name: str, engine: Path, times: _EngineTimes, folder: Path, no_compute: str) -> EngineProfile:
    """Write the raw times of an engine and return their summary."""
    np.save(folder / f"{name}.npy", np.concatenate(times.latency))
    if times.compute:
        np.save(folder / f"{name}.compute.npy", np.concatenate(times.compute))
    extras = times.extras
    return EngineProfile(
        name=name,
        latency=latency_from(*times.latency),
        load_ms=tuple(times.load_ms),
        first_run_ms=tuple(times.first_run_ms),
        peak_rss_bytes=times.peak_rss_bytes,
        size_bytes=engine.stat().st_size,
        raw_file=f"{name}.npy",
        import_ms=tuple(times.import_ms),
        compute=latency_from(*times.compute) if times.compute else None,
        paced=extras.paced,
        sustained=extras.sustained,
        energy=extras.energy,
        layers=extras.layers,
        not_measured={**({} if times.compute else {"compute": no_compute}), **extras.not_measured},
    )


def _turn(engines: Mapping[str, object], index: int) -> list[str]:
    """Return the engines' names in an order that begins with another engine each turn."""
    names = list(engines)
    shift = index % len(names)
    return names[shift:] + names[:shift]


def _save_first_rows(inputs: Path, path: Path) -> None:
    with open_arrays(inputs) as archive:
        rows = {key: archive[key][:_ROWS] for key in archive if key.startswith(INPUT_PREFIX)}
    write_arrays(path, rows)
