"""This host as a device. Engines run in processes of their own, which torch has never been in."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekd
from edgekd.devices.further import nanoseconds
from edgekd.devices.process import AgentProcess
from edgekd.devices.turns import take_turns
from edgekd.runtime.machine import cpu_model, package_versions
from edgekd.runtime.registry import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from edgekd.recipe import ProfileConfig
    from edgekd.runtime.measure import Nanoseconds, Profile
    from edgekd.runtime.registry import Runtime

#: What an interpreter runs to be an agent.
AGENT = ("-m", "edgekd.runtime.agent")

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
        return {**host, **runtime.hardware(), **package_versions(PACKAGES.get(runtime.name, ()))}

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
        """Measure engines side by side, at batch 1; see :func:`~edgekd.devices.turns.take_turns`."""
        return take_turns(
            lambda engine: _AgentEngine(self._agent(), engine, runtime, config.threads),
            engines, inputs, folder, config, advance,
        )  # fmt: skip

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


class _AgentEngine:
    """One engine in an agent's process."""

    def __init__(self, agent: AgentProcess, engine: Path, runtime: Runtime, threads: int) -> None:
        with ExitStack() as stack:
            self._agent = stack.enter_context(agent)
            told = {"engine": str(engine), "threads": threads, **_spelled(runtime)}
            opened = agent.ask("open", "import_ms", "load_ms", **told)
            self.import_ms: float = opened["import_ms"]
            self.load_ms: float = opened["load_ms"]
            stack.pop_all()

    def first(self, feeds: Path) -> float:
        first_run_ms: float = self._agent.ask("first", "first_run_ms", feeds=str(feeds))["first_run_ms"]
        return first_run_ms

    def measure(self, iterations: int, warmup: int) -> Nanoseconds:
        return nanoseconds(self._agent.ask("measure", "ns", iterations=iterations, warmup=warmup))

    def compute(self, iterations: int, warmup: int) -> Nanoseconds | None:
        answer = self._agent.ask("compute", "ns", iterations=iterations, warmup=warmup)
        return None if answer["ns"] is None else nanoseconds(answer)

    def ask(self, job: str, *wanted: str, **arguments: Any) -> dict[str, Any]:
        return self._agent.ask(job, *wanted, **arguments)

    def peak_rss_bytes(self) -> int:
        peak: int = self._agent.ask("memory", "peak_rss_bytes")["peak_rss_bytes"]
        return peak

    def machine(self) -> dict[str, str]:
        facts: dict[str, str] = self._agent.ask("facts", "facts")["facts"]
        return facts

    def __enter__(self) -> _AgentEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._agent.close()


def agent_environment() -> dict[str, str]:
    """Return an environment in which the agent imports this very edgekd, and nothing from the working directory."""
    here = str(Path(edgekd.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([here, inherited] if inherited else [here])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
