"""The device side: ``python -m edgekd.runtime.agent.agent`` answers one JSON job a line with one JSON line.

A job is ``{"job": name, ...arguments}``, named like a method of :class:`Agent`. The answer is ``{"ok": true, ...}``,
or ``{"ok": false, "kind": "ModelError", "error": "..."}`` for what a user can cause. A defect of edgekd ends the agent
with a traceback on stderr. A process holds one engine: two in one process spoil each other's figures.
"""

from __future__ import annotations

import base64
import errno
import inspect
import itertools
import json
import os
import select
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import DeviceError, EdgekdError, StorageError, nearest
from edgekd.files import write_text
from edgekd.runtime import bundle
from edgekd.runtime.backends import tensorrt
from edgekd.runtime.backends.registry import PACKAGES, Runtime
from edgekd.runtime.measure import energy, machine, sensors
from edgekd.runtime.session import ComputeTimer, read_feeds, run_rows, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from edgekd.runtime.session import Array, Session

Answer = dict[str, Any]

#: The runtimes whose engines run on a GPU, whose clock is then told.
_ON_GPU = ("tensorrt", "tensorrt-rtx")
_LAYER_RUNS = 100

#: What the system refuses, rather than a defect of edgekd.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)

#: Exit code of an agent that nobody hears any more.
_UNHEARD = 3


class Agent:
    """One engine on this machine, and the jobs that it can be given; ``done`` once it was told to quit."""

    def __init__(self) -> None:
        self.done = False
        self._session: Session | None = None
        self._runtime: Runtime | None = None
        self._opened: tuple[Path, int] | None = None
        self._rows: Iterator[dict[str, Array]] | None = None

    def open(self, engine: str, threads: int, runtime: str, options: dict[str, Any]) -> Answer:
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
        """Time computing alone on the next row, again and again; ``ns`` is null where that cannot be told apart."""
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
        """Time inferences one after the other for so long; say what the sensors read before and after."""
        session, rows, gpu = self._engine(), self._inputs("sustain"), self._on_gpu()
        before = sensors.read_sensors(gpu=gpu)
        ns: list[int] = []
        end = time.perf_counter_ns() + round(seconds * 1e9)
        while not ns or time.perf_counter_ns() < end:
            ns.append(_time_run(session, next(rows)))
        after = sensors.read_sensors(gpu=gpu)
        told = {"temperature_c": after.temperature_c, "clock_mhz": after.clock_mhz}
        return {**_times(np.array(ns, "<i8")), **told, "throttled": sensors.throttled(before, after)}

    def energy(self, seconds: float, rails: list[str]) -> Answer:
        """Measure the energy of one inference: so long idle, so long busy; or say in ``reason`` why it cannot be."""
        session, rows = self._engine(), self._inputs("energy")
        try:
            found = energy.measure_energy(energy.find_rails(rails), lambda: session.run(next(rows)), seconds)
        except DeviceError as error:
            return {"energy": None, "reason": str(error)}
        return {"energy": asdict(found)}

    def layers(self) -> Answer:
        """Open the engine once more, in place of the one that is open, under the library's profiler; close it.

        ``layers`` is null where the runtime has no profiler that edgekd knows.
        """
        self._engine()
        rows, runtime, opened = self._inputs("layers"), self._runtime, self._opened
        assert runtime is not None  # what opened the engine
        assert opened is not None
        self._close()
        times = runtime.layer_times(*opened, list(itertools.islice(rows, _LAYER_RUNS)))
        return {"layers": None if times is None else [asdict(layer) for layer in times]}

    def evaluate(self, inputs: str, outputs: str, batch: int) -> Answer:
        """Run every row of one ``.npz`` and write every output, by its name, to another."""
        session = self._engine()
        results = run_rows(session, read_feeds(Path(inputs), session.inputs), batch)
        write_arrays(Path(outputs), results)
        return {"rows": len(next(iter(results.values())))}

    def compile(self, model: str, plan: str, layers: str, library: str, options: dict[str, Any]) -> Answer:
        """Build an engine ahead of time from ONNX, and write it and, as JSON, its layers."""
        built = tensorrt.build_plan(Path(model), library, tensorrt.BuildOptions(**options))
        Path(plan).write_bytes(built.content)
        described = {"from": built.layers_from, "dla_fallback": built.dla_fallback, "layers": built.layers}
        write_text(Path(layers), json.dumps(described, indent=1) + "\n")
        named = f"{built.library} {built.version}"
        return {"library": named, "layers": len(built.layers), "messages": list(built.messages)}

    def build(self, engine: str, folder: str, threads: int, runtime: str, options: dict[str, Any]) -> Answer:
        """Write what the library makes of an engine for this very machine, if it makes anything that can be kept."""
        built = Runtime(runtime, options).build(Path(engine), Path(folder), threads)
        return {"built": None if built is None else asdict(built)}

    def verify(self, bundle_folder: str, runtime: str | None, threads: int) -> Answer:
        """Check a bundle's digests, and its reference samples and their Grams in its engine."""
        with bundle.load(Path(bundle_folder), threads=threads, runtime=runtime, allow_rejected=True) as loaded:
            return {"verification": asdict(loaded.verify())}

    def describe(self, runtime: str, options: dict[str, Any]) -> Answer:
        """Tell this machine from another kind, and say why the runtime can run nothing on it, if that is so."""
        library = Runtime(runtime, options)
        if library.custom:
            library.load()
        reason = library.absent()
        return {"absent": reason, "facts": {} if reason else library.describe()}

    def facts(self) -> Answer:
        """Describe this machine, and how the engine library runs the engine."""
        facts = machine.machine_facts(PACKAGES.get(self._runtime.name, ()) if self._runtime else ())
        if self._session and self._runtime:
            facts |= {**self._runtime.hardware(), **self._session.facts}
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
        return self._runtime is not None and self._runtime.name in _ON_GPU

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
    """Sleep until a time of ``perf_counter_ns``; return at once where it is over."""
    while (left := ns - time.perf_counter_ns()) > 0:
        time.sleep(left / 1e9)


JOBS: dict[str, Callable[..., Answer]] = {
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


def _answer(agent: Agent, jobs: Mapping[str, Callable[..., Answer]], line: str) -> Answer:
    """Do the job that ``line`` asks for."""
    try:
        name, arguments = _parse(line, jobs)
        return {"ok": True, **jobs[name](agent, **arguments)}
    except EdgekdError as error:
        return _failed(error)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        return _failed(StorageError(f"{error.filename or 'a file'}: {error.strerror}"))


def _failed(error: EdgekdError) -> Answer:
    return {"ok": False, "kind": type(error).__name__, "error": str(error)}


def _parse(line: str, jobs: Mapping[str, Callable[..., Answer]]) -> tuple[str, dict[str, Any]]:
    try:
        arguments = json.loads(line)
    except ValueError as error:
        raise DeviceError(f"the agent was sent a line that is not JSON: {error}") from error
    if not isinstance(arguments, dict) or "job" not in arguments:
        raise DeviceError("the agent was sent a line without a 'job'")
    name = str(arguments.pop("job"))
    if name not in jobs:
        raise DeviceError(f"the agent has no job '{name}'{nearest(name, jobs)}")
    try:
        inspect.signature(jobs[name]).bind(None, **arguments)
    except TypeError as error:
        raise DeviceError(f"the agent's job '{name}' was given wrong arguments: {error}") from error
    return name, arguments


def serve(
    agent: Agent,
    jobs: Mapping[str, Callable[..., Answer]],
    greeting: str | None = None,
    silence_s: float | None = None,
) -> None:
    """Answer jobs from stdin until 'quit' or its end.

    An agent whose answers nobody reads any more ends at once, whatever it is doing: its host was killed, or its link.

    Args:
        agent: does the jobs.
        jobs: by name.
        greeting: a line to say first.
        silence_s: of an agent whose host is another machine: end in the middle of a job, too, where stdin ends or
            nothing came in for so long, since a link that was cut does not close. Empty lines are no jobs, but they are
            no silence either.
    """
    # Answers get stdout to themselves: what a library prints there goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines: SimpleQueue[str | None] = SimpleQueue()
    heard = [time.monotonic()]
    threading.Thread(target=_listen, args=(lines, heard, silence_s is not None), daemon=True).start()
    if hasattr(select, "poll"):  # not on Windows
        threading.Thread(target=_watch, args=(answers.fileno(), heard, silence_s), daemon=True).start()
    if greeting is not None:
        print(greeting, file=answers, flush=True)
    for line in iter(lines.get, None):
        print(json.dumps(_answer(agent, jobs, line)), file=answers, flush=True)
        if agent.done:
            break


def _listen(lines: SimpleQueue[str | None], heard: list[float], remote: bool) -> None:
    """Pass on stdin line by line, and None at its end, or end with it; ``heard`` is when it last said something."""
    for line in sys.stdin:
        heard[0] = time.monotonic()
        if line.strip():
            lines.put(line)
    if remote:
        os._exit(_UNHEARD)
    lines.put(None)


def _watch(answers: int, heard: list[float], silence_s: float | None) -> None:
    """End the process when the reader of its answers is gone, or silent for too long."""
    reader = select.poll()
    reader.register(answers, 0)  # no event is waited for but the reader's end, which is always told
    while not (events := reader.poll(None if silence_s is None else silence_s * 250)):
        if silence_s is not None and time.monotonic() - heard[0] > silence_s:
            break
    if not any(event & select.POLLNVAL for _, event in events):  # closed here: the agent is ending by itself
        os._exit(_UNHEARD)


def main() -> None:
    """Be the agent of this host."""
    serve(Agent(), JOBS)


if __name__ == "__main__":
    main()
