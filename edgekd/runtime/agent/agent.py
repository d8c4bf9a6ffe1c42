"""One engine on this machine and the jobs that it can be given: ``python -m edgekd.runtime.agent.agent``.

A job is named like a method of :class:`Agent`; :mod:`edgekd.runtime.agent.serve` says how jobs and answers travel. A
process holds one engine, since two in one process spoil each other's figures.
"""

from __future__ import annotations

import base64
import itertools
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import DeviceError
from edgekd.files import write_text
from edgekd.runtime.agent.serve import serve
from edgekd.runtime.backends.registry import Runtime
from edgekd.runtime.feeds import read_feeds
from edgekd.runtime.measure import energy, machine, sensors
from edgekd.runtime.sequences import run_samples
from edgekd.runtime.session import ComputeTimer, write_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekd.files import JsonObject
    from edgekd.runtime.agent.serve import Answer, Jobs
    from edgekd.runtime.session import Array, Session


class Agent:
    """One engine on this machine, and the jobs that it can be given.

    Attributes:
        done: Whether it was told to quit.
    """

    def __init__(self) -> None:
        self.done = False
        self._session: Session | None = None
        self._runtime: Runtime | None = None
        self._opened: tuple[Path, int] | None = None
        self._rows: Iterator[dict[str, Array]] | None = None

    def open(self, engine: str, threads: int, runtime: str, options: JsonObject) -> Answer:
        """Open an engine in place of the last one; ``load_ms`` is without ``import_ms`` of the engine library."""
        self._close()
        library = Runtime(runtime, options)
        begin = time.perf_counter_ns()
        library.load()
        imported = time.perf_counter_ns()
        self._runtime, self._opened = library, (Path(engine), threads)
        self._session = library.open(Path(engine), threads)
        loaded = time.perf_counter_ns()
        return {"import_ms": (imported - begin) / 1e6, "load_ms": (loaded - imported) / 1e6}

    def first(self, feeds: str) -> Answer:
        """Read the inputs that :meth:`measure` cycles through, and time one inference of the first row."""
        session = self._engine()
        arrays = read_feeds(Path(feeds), session.inputs)
        count = len(next(iter(arrays.values())))
        rows = [{name: array[row : row + 1] for name, array in arrays.items()} for row in range(count)]
        self._rows = itertools.cycle(rows)
        return {"first_run_ms": _time_run(session, rows[0]) / 1e6}

    def measure(self, iterations: int, warmup: int) -> Answer:
        """Time inferences of single rows, one after the other; ``ns`` is base64 of little-endian int64 [iterations]."""
        session, rows = self._engine(), self._inputs("measure")
        for _ in range(warmup):
            session.run(next(rows))
        ns = np.empty(iterations, "<i8")
        for index in range(iterations):
            ns[index] = _time_run(session, next(rows))
        return _times(ns)

    def compute(self, iterations: int, warmup: int) -> Answer:
        """Time computing alone on the next row, again and again; ``ns`` is null where it cannot be timed by itself."""
        session, rows = self._engine(), self._inputs("compute")
        compute = session.bind_inputs(next(rows)) if isinstance(session, ComputeTimer) else None
        if compute is None:
            return {"ns": None}
        for _ in range(warmup):
            compute()
        return _times(np.array([compute() for _ in range(iterations)], "<i8"))

    def pace(self, rate_hz: float, iterations: int) -> Answer:
        """Time inferences whose inputs arrive at a rate, from arrival to result.

        Between them the agent sleeps, as an app does that waits for its sensor, so that clocks fall and caches cool.
        ``late`` inputs arrived before the result of the one before.
        """
        session, rows = self._engine(), self._inputs("pace")
        period_ns, late = 1e9 / rate_hz, 0
        ns = np.empty(iterations, "<i8")
        begin = done = time.perf_counter_ns()
        for index in range(iterations):
            arrival, row = begin + round((index + 1) * period_ns), next(rows)
            late += done > arrival
            _sleep_until(arrival)
            session.run(row)
            done = time.perf_counter_ns()
            ns[index] = done - arrival
        return {**_times(ns), "late": late}

    def sustain(self, seconds: float) -> Answer:
        """Time inferences one after the other for ``seconds``, and read the sensors before and after."""
        session, rows, gpu = self._engine(), self._inputs("sustain"), self._on_gpu()
        before = sensors.read_sensors(gpu=gpu)
        ns: list[int] = []
        end = time.perf_counter_ns() + round(seconds * 1e9)
        while not ns or time.perf_counter_ns() < end:
            ns.append(_time_run(session, next(rows)))
        after = sensors.read_sensors(gpu=gpu)
        readings = {"temperature_c": after.temperature_c, "clock_mhz": after.clock_mhz}
        return {**_times(np.array(ns, "<i8")), **readings, "throttled": sensors.throttled(before, after)}

    def energy(self, seconds: float, rails: list[str]) -> Answer:
        """Measure the energy of one inference over ``seconds`` idle and ``seconds`` busy.

        Where it cannot be measured, ``energy`` is null and ``reason`` says why.
        """
        session, rows = self._engine(), self._inputs("energy")
        try:
            measured = energy.measure_energy(energy.find_rails(rails), lambda: session.run(next(rows)), seconds)
        except DeviceError as error:
            return {"energy": None, "reason": str(error)}
        return {"energy": asdict(measured)}

    def layers(self, runs: int) -> Answer:
        """Close the engine, run it ``runs`` times under the library's profiler, and return the times of its layers.

        ``layers`` is null where the library has no profiler that edgekd knows.
        """
        self._engine()
        rows, runtime, opened = self._inputs("layers"), self._runtime, self._opened
        assert runtime is not None  # what opened the engine
        assert opened is not None
        self._close()
        times = runtime.layer_times(*opened, list(itertools.islice(rows, runs)))
        return {"layers": None if times is None else [asdict(layer) for layer in times]}

    def evaluate(self, inputs: str, outputs: str, batch: int) -> Answer:
        """Run every row of one ``.npz`` and write every output, by its name, to another."""
        session = self._engine()
        results = run_samples(session, Path(inputs), batch)
        write_arrays(Path(outputs), results)
        return {"rows": len(next(iter(results.values())))}

    def compile(self, model: str, plan: str, layers: str, library: str, options: JsonObject) -> Answer:
        """Build an engine ahead of time from ONNX, and write it and, as JSON, its layers."""
        from edgekd.runtime.backends.tensorrt_build import BuildOptions, build_plan  # for this job alone

        built = build_plan(Path(model), library, BuildOptions(**options))
        Path(plan).write_bytes(built.content)
        described = {"from": built.layers_from, "dla_fallback": built.dla_fallback, "layers": built.layers}
        write_text(Path(layers), json.dumps(described, indent=1) + "\n")
        named = f"{built.library} {built.version}"
        return {"library": named, "layers": len(built.layers), "messages": list(built.messages)}

    def build(self, engine: str, folder: str, threads: int, runtime: str, options: JsonObject) -> Answer:
        """Write the engine that the library compiles for this very machine, if it compiles one that can be kept."""
        built = Runtime(runtime, options).build(Path(engine), Path(folder), threads)
        return {"built": None if built is None else asdict(built)}

    def verify(self, bundle_folder: str, runtime: str | None, threads: int) -> Answer:
        """Check a bundle's digests, and its reference samples and their Grams in its engine."""
        from edgekd.runtime import bundle  # for this job alone

        with bundle.load(Path(bundle_folder), threads=threads, runtime=runtime, allow_rejected=True) as loaded:
            return {"verification": asdict(loaded.verify())}

    def describe(self, runtime: str, options: JsonObject) -> Answer:
        """Return what tells this machine from another kind, and in ``absent`` why the library cannot run on it."""
        library = Runtime(runtime, options)
        if library.custom:
            library.load()
        reason = library.absent()
        return {"absent": reason, "facts": {} if reason else library.describe()}

    def facts(self) -> Answer:
        """Return facts of this machine, and of how the engine library runs the engine."""
        facts = machine.machine_facts()
        if self._session and self._runtime:
            facts |= {**self._runtime.versions(), **self._runtime.hardware(), **self._session.facts}
        return {"facts": facts}

    def memory(self) -> Answer:
        """Return the peak resident memory of this process."""
        return {"peak_rss_bytes": machine.peak_rss_bytes()}

    def quit(self) -> Answer:
        """Free the engine and end."""
        self._close()
        self.done = True
        return {}

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = self._rows = None

    def _on_gpu(self) -> bool:
        return self._runtime is not None and self._runtime.backend.on_gpu

    def _inputs(self, job: str) -> Iterator[dict[str, Array]]:
        if self._rows is None:
            raise DeviceError(f"the agent has no inputs yet: send it 'first' before '{job}'")
        return self._rows

    def _engine(self) -> Session:
        if self._session is None:
            raise DeviceError("the agent has no engine yet: send it 'open' first")
        return self._session


def _time_run(session: Session, feeds: dict[str, Array]) -> int:
    start = time.perf_counter_ns()
    session.run(feeds)
    return time.perf_counter_ns() - start


def _times(ns: Array) -> Answer:
    return {"ns": base64.b64encode(ns.tobytes()).decode()}


def _sleep_until(ns: int) -> None:
    """Sleep until a time of ``perf_counter_ns``; return at once where it is past."""
    while (left := ns - time.perf_counter_ns()) > 0:
        time.sleep(left / 1e9)


JOBS: Jobs = {
    "open": Agent.open,
    "first": Agent.first,
    "measure": Agent.measure,
    "compute": Agent.compute,
    "pace": Agent.pace,
    "sustain": Agent.sustain,
    "energy": Agent.energy,
    "layers": Agent.layers,
    "evaluate": Agent.evaluate,
    "compile": Agent.compile,
    "build": Agent.build,
    "verify": Agent.verify,
    "describe": Agent.describe,
    "facts": Agent.facts,
    "memory": Agent.memory,
    "quit": Agent.quit,
}


def main() -> None:
    """Run the agent of this host."""
    serve(Agent(), JOBS)


if __name__ == "__main__":
    main()
