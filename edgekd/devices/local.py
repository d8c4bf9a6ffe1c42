"""This host as a device. Engines run in processes of their own, which never import torch."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import edgekd
from edgekd.devices import agent_host
from edgekd.devices.agent_host import AGENT, LocalHost
from edgekd.devices.base import browser_refusal, host_mismatch
from edgekd.devices.extra_measurements import nanoseconds
from edgekd.devices.interleave import profile_interleaved
from edgekd.runtime.measure.machine import cpu_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from edgekd.config.recipe import ProfileConfig
    from edgekd.config.target import Target
    from edgekd.devices.agent_host import AgentHost
    from edgekd.files import JsonObject
    from edgekd.runtime.backends.registry import Runtime
    from edgekd.runtime.measure.results import Nanoseconds, Profile
    from edgekd.runtime.session import BuiltEngine
    from edgekd.runtime.verification import Verification

#: The longest time that one answer may take: enough for the largest evaluation, but a hung driver ends.
_TIMEOUT_SECONDS = 600.0


class LocalDevice:
    """This host. Each engine gets an agent, a subprocess of its own, that lives as long as one call below."""

    name = "local"
    no_latency = None

    def __init__(self, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        self._timeout_seconds = timeout_seconds

    @property
    def arch(self) -> str:
        """The processor's architecture."""
        return platform.machine()

    def missing(self) -> None:
        """Return what must be installed: nothing."""

    def refusal(self, target: Target, runtime: Runtime) -> str | None:
        """Return the reason why this machine cannot run a target's engines; None where it can."""
        mismatch = host_mismatch(target, platform.machine(), cpu_model())
        return browser_refusal(runtime) or mismatch or runtime.absent()

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return what tells this machine from another kind; starts no process and loads no engine library."""
        return runtime.describe()

    def evaluate(
        self,
        engine: Path,
        runtime: Runtime,
        inputs: Path,
        outputs: Path,
        threads: int,
        notify: Callable[[str], None] = lambda _: None,  # noqa: ARG002 - nothing takes long
    ) -> None:
        """Run every row of ``inputs`` through an engine; see :class:`~edgekd.devices.base.Device`."""
        agent_host.evaluate_engine(self._here(), engine, runtime, inputs, outputs, threads)

    def verify(
        self,
        bundle: Path,
        runtime: Runtime,
        threads: int,
        notify: Callable[[str], None],  # noqa: ARG002 - the same
    ) -> Verification:
        """Check a bundle; see :class:`~edgekd.devices.base.Verifier`."""
        return agent_host.verify_bundle(self._here(), bundle, runtime, threads)

    def build(
        self,
        engine: Path,
        runtime: Runtime,
        folder: Path,
        threads: int,
        notify: Callable[[str], None],  # noqa: ARG002 - the same
    ) -> BuiltEngine | None:
        """Keep what the library compiles of an engine; see :class:`~edgekd.devices.base.Verifier`."""
        return agent_host.build_engine(self._here(), engine, runtime, folder, threads)

    def profile(
        self,
        engines: Mapping[str, Path],
        runtime: Runtime,
        inputs: Path,
        folder: Path,
        config: ProfileConfig,
        advance: Callable[[int, int, str], None],
    ) -> Profile:
        """Measure engines side by side, at batch 1; see :func:`~edgekd.devices.interleave.profile_interleaved`."""
        return profile_interleaved(
            lambda engine: AgentEngine(self._here(), engine, runtime, config.threads),
            engines, inputs, folder, config, advance,
        )  # fmt: skip

    def compile(self, model: Path, plan: Path, layers: Path, library: str, options: Mapping[str, object]) -> JsonObject:
        """Build an engine ahead of time, in a process of its own: an engine library's crash is one error here.

        Args:
            model: The ONNX file.
            plan: The file of the engine.
            layers: The file of the description of its layers, JSON.
            library: The library that builds it, "tensorrt-rtx".
            options: Fields of :class:`edgekd.runtime.backends.tensorrt_build.BuildOptions`.

        Returns:
            ``library`` with its version, the number of ``layers``, and the ``messages`` that the library gave.

        Raises:
            MissingDependency: the library is not installed.
            ModelError: it refuses the graph, or would get it wrong.
            DeviceError: it crashed or hung.
        """
        with self._here().start() as agent:
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

    def close(self) -> None:
        """Free what it holds: nothing."""

    def _here(self) -> LocalHost:
        return LocalHost([sys.executable, *AGENT], agent_environment(), self._timeout_seconds)


class AgentEngine:
    """One engine in an agent's process; see :class:`~edgekd.devices.interleave.EngineProcess`."""

    def __init__(self, host: AgentHost, engine: Path, runtime: Runtime, threads: int) -> None:
        self._host = host
        remote, named = host.send(engine), host.runtime_arguments(runtime)
        with ExitStack() as stack:
            self._agent = stack.enter_context(host.start())
            opened = self._agent.ask("open", "import_ms", "load_ms", engine=remote, threads=threads, **named)
            self.import_ms: float = opened["import_ms"]
            self.load_ms: float = opened["load_ms"]
            stack.pop_all()

    def first(self, feeds: Path) -> float:
        """Read the rows that :meth:`measure` cycles through, and time one inference of the first."""
        first_run_ms: float = self._agent.ask("first", "first_run_ms", feeds=self._host.send(feeds))["first_run_ms"]
        return first_run_ms

    def measure(self, iterations: int, warmup: int) -> Nanoseconds:
        """Time inferences of single rows."""
        return nanoseconds(self._agent.ask("measure", "ns", iterations=iterations, warmup=warmup))

    def compute(self, iterations: int, warmup: int) -> Nanoseconds | None:
        """Time computing alone."""
        answer = self._agent.ask("compute", "ns", iterations=iterations, warmup=warmup)
        return None if answer["ns"] is None else nanoseconds(answer)

    def ask(self, job: str, *wanted: str, **arguments: object) -> JsonObject:
        """Give the agent a further job."""
        return self._agent.ask(job, *wanted, **arguments)

    def peak_rss_bytes(self) -> int:
        """Return the process's peak resident memory so far."""
        peak: int = self._agent.ask("memory", "peak_rss_bytes")["peak_rss_bytes"]
        return peak

    def machine(self) -> dict[str, str]:
        """Describe the machine and the libraries that it runs."""
        facts: dict[str, str] = self._agent.ask("facts", "facts")["facts"]
        return facts

    def __enter__(self) -> AgentEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._agent.close()


def agent_environment() -> dict[str, str]:
    """Return an environment in which an agent imports this very edgekd, and nothing from the working directory."""
    here = str(Path(edgekd.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([here, inherited] if inherited else [here])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
