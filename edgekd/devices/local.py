"""This host as a device. Engines run in processes of their own, which torch has never been in."""

from __future__ import annotations

import base64
import itertools
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import edgekd
from edgekd.devices.process import AgentProcess
from edgekd.runtime.measure import EngineProfile, Profile, cpu_model, latency_from, package_versions
from edgekd.runtime.registry import PACKAGES
from edgekd.runtime.session import INPUT_PREFIX, open_arrays, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgekd.recipe import ProfileConfig
    from edgekd.runtime.registry import Runtime

#: What an interpreter runs to be an agent.
AGENT = ("-m", "edgekd.runtime.agent")

_Times = np.ndarray[Any, np.dtype[np.int64]]

#: Inferences of one engine before the next takes its turn: short, so that a drift of the machine's speed hits all.
_BLOCK = 50
#: Untimed inferences at the start of a turn: caches and threads were the other engines', which a p99 would show.
_LEAD_IN = 5
#: Rows that the timed inferences cycle through. Few, since they count towards the process's peak memory.
_ROWS = 64
_BATCH = 64
#: How long one answer may take: the largest evaluation, not a hung driver.
_PATIENCE_SECONDS = 600.0


class LocalDevice:
    """This host. Each engine gets an agent, a subprocess of its own, that lives as long as one call below."""

    name = "local"
    no_latency = None

    def __init__(self, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds

    @property
    def arch(self) -> str:
        """The processor's architecture."""
        return platform.machine()

    def missing(self) -> None:
        """Say what must be installed: nothing, here."""

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return what tells this machine from another kind; starts no process and loads no engine library."""
        host = {"cpu": cpu_model(), "arch": platform.machine(), "logical_cores": str(os.cpu_count())}
        return {**host, **package_versions(PACKAGES.get(runtime.name, ()))}

    def evaluate(self, engine: Path, runtime: Runtime, inputs: Path, outputs: Path, threads: int) -> None:
        """Run every row of ``inputs`` through an engine; see :class:`~edgekd.devices.device.Device`."""
        with self._agent() as agent:
            evaluate(agent, engine, runtime, inputs, outputs, threads)

    def profile(
        self,
        engines: Mapping[str, Path],
        runtime: Runtime,
        inputs: Path,
        folder: Path,
        config: ProfileConfig,
        advance: Callable[[int, int, str], None],
    ) -> Profile:
        """Measure engines side by side, at batch 1; see :class:`~edgekd.devices.device.Device`.

        Cold starts come first: fresh processes, though the engine's file may be in the system's cache. Then the engines
        take turns of a few inferences, in an order that rotates.
        """
        blocks = [min(_BLOCK, config.iterations - start) for start in range(0, config.iterations, _BLOCK)]
        total = len(engines) * (config.cold_starts + len(blocks))
        done = itertools.count(1)

        def step(note: str) -> None:
            advance(next(done), total, note)

        with tempfile.TemporaryDirectory() as scratch:
            feeds = Path(scratch) / "feeds.npz"
            save_first_rows(inputs, feeds)
            setup = _Setup(engines, runtime, feeds, config.threads, self._agent)
            colds = _start_cold(setup, config.cold_starts, step)
            timed = _take_turns(setup, blocks, config.warmup, step)
        profiles = []
        for name, engine in engines.items():
            np.save(folder / f"{name}.npy", timed.ns[name])
            profiles.append(
                EngineProfile(
                    name=name,
                    latency=latency_from(timed.ns[name]),
                    load_ms=tuple(cold["load_ms"] for cold in colds[name]),
                    first_run_ms=tuple(cold["first_run_ms"] for cold in colds[name]),
                    peak_rss_bytes=timed.peak_rss_bytes[name],
                    size_bytes=engine.stat().st_size,
                    raw_file=f"{name}.npy",
                )
            )
        return Profile(machine=timed.machine, threads=config.threads, block=_BLOCK, engines=tuple(profiles))

    def compile(
        self, model: Path, plan: Path, layers: Path, library: str, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Build an engine ahead of time, in a process of its own: an engine library's crash is one error here.

        Args:
            model: ONNX.
            plan: where the engine goes.
            layers: where the description of its layers goes, JSON.
            library: which one builds it, "tensorrt-rtx".
            options: fields of :class:`edgekd.runtime.tensorrt.BuildOptions`.

        Returns:
            ``library`` with its version, the number of ``layers``, and the ``messages`` that the library gave.

        Raises:
            MissingDependency: the library is not installed.
            ModelError: it refuses the graph, or would get it wrong.
            DeviceError: it crashed or hung.
        """
        with self._agent() as agent:
            return agent.ask(
                "compile",
                "library",
                "layers",
                "messages",
                model=str(model),
                plan=str(plan),
                layers=str(layers),
                library=library,
                options=dict(options),
            )

    def _agent(self) -> AgentProcess:
        return AgentProcess([sys.executable, *AGENT], agent_environment(), self._patience_seconds)


def evaluate(agent: AgentProcess, engine: Path, runtime: Runtime, inputs: Path, outputs: Path, threads: int) -> None:
    """Let an agent open an engine and run every row of ``inputs`` through it into ``outputs``."""
    agent.ask("open", engine=str(engine), threads=threads, **_spelled(runtime))
    agent.ask("evaluate", inputs=str(inputs), outputs=str(outputs), batch=_BATCH)


def _spelled(runtime: Runtime) -> dict[str, Any]:
    return {"runtime": runtime.name, "options": dict(runtime.options)}


@dataclass(frozen=True)
class _Setup:
    engines: Mapping[str, Path]
    runtime: Runtime
    feeds: Path
    threads: int
    agent: Callable[[], AgentProcess]

    def start(self, agent: AgentProcess, name: str) -> dict[str, float]:
        """Open an engine and run it once; return ``load_ms`` and ``first_run_ms``."""
        engine = str(self.engines[name])
        load = agent.ask("open", "load_ms", engine=engine, threads=self.threads, **_spelled(self.runtime))
        first = agent.ask("first", "first_run_ms", feeds=str(self.feeds))
        return {"load_ms": load["load_ms"], "first_run_ms": first["first_run_ms"]}

    def turn(self, index: int) -> list[str]:
        """Return the engines' names in an order that begins with another one each turn."""
        names = list(self.engines)
        shift = index % len(names)
        return names[shift:] + names[:shift]


@dataclass(frozen=True)
class _Timed:
    ns: dict[str, _Times]
    peak_rss_bytes: dict[str, int]
    machine: dict[str, str]


def _start_cold(setup: _Setup, cold_starts: int, step: Callable[[str], None]) -> dict[str, list[dict[str, float]]]:
    colds: dict[str, list[dict[str, float]]] = {name: [] for name in setup.engines}
    for index in range(cold_starts):
        for name in setup.turn(index):
            with setup.agent() as agent:
                colds[name].append(setup.start(agent, name))
            step(f"{name} opened in {colds[name][-1]['load_ms']:.1f} ms")
    return colds


def _take_turns(setup: _Setup, blocks: Sequence[int], warmup: int, step: Callable[[str], None]) -> _Timed:
    parts: dict[str, list[_Times]] = {name: [] for name in setup.engines}
    with ExitStack() as stack:
        agents = {name: stack.enter_context(setup.agent()) for name in setup.engines}
        for name, agent in agents.items():
            setup.start(agent, name)
            agent.ask("measure", iterations=0, warmup=warmup)
        for index, block in enumerate(blocks):
            for name in setup.turn(index):
                answer = agents[name].ask("measure", "ns", iterations=block, warmup=_LEAD_IN)
                ns = np.frombuffer(base64.b64decode(answer["ns"]), "<i8")
                parts[name].append(ns)
                step(f"{name} {np.median(ns) / 1e6:.3f} ms")
        memory = {name: agent.ask("memory", "peak_rss_bytes")["peak_rss_bytes"] for name, agent in agents.items()}
        machine = next(iter(agents.values())).ask("facts", "facts")["facts"]
    return _Timed({name: np.concatenate(part) for name, part in parts.items()}, memory, machine)


def save_first_rows(inputs: Path, path: Path) -> None:
    """Write the rows that timed inferences cycle through."""
    with open_arrays(inputs) as archive:
        rows = {key: archive[key][:_ROWS] for key in archive if key.startswith(INPUT_PREFIX)}
    write_arrays(path, rows)


def agent_environment() -> dict[str, str]:
    """Return an environment in which the agent imports this very edgekd, and nothing from the working directory."""
    here = str(Path(edgekd.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([here, inherited] if inherited else [here])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
