"""What agents do, wherever they run: this host and a board differ in how a file gets there."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.devices.agent_process import AgentProcess
from edgekd.runtime.session import BuiltEngine
from edgekd.runtime.verification import Verification

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from edgekd.runtime.backends.registry import Runtime

#: What an interpreter of this host runs to be an agent.
AGENT = ("-m", "edgekd.runtime.agent.agent")

_BATCH = 64


class AgentHost(Protocol):
    """Where agents run, and the way of files there and back."""

    def start(self) -> AgentProcess:
        """Start an agent there."""

    def send(self, path: Path) -> str:
        """Return the path there of a file or a folder of this host, having brought it there where that is needed."""

    def receive(self, folder: Path) -> AbstractContextManager[str]:
        """Yield the path of a folder there; what an agent wrote into it is in ``folder`` at the end."""

    def runtime_arguments(self, runtime: Runtime) -> dict[str, Any]:
        """Return a runtime as an agent there is told of it."""


@dataclass(frozen=True)
class LocalHost:
    """This host: a file is where it is.

    Attributes:
        command: what starts an agent.
        environment: its variables.
        timeout_seconds: how long one answer may take.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    timeout_seconds: float

    def start(self) -> AgentProcess:
        """Start an agent."""
        return AgentProcess(self.command, self.environment, self.timeout_seconds)

    def send(self, path: Path) -> str:
        """Return the path itself."""
        return str(path)

    @contextmanager
    def receive(self, folder: Path) -> Iterator[str]:
        """Yield the folder itself."""
        yield str(folder)

    def runtime_arguments(self, runtime: Runtime) -> dict[str, Any]:
        """Return its name and options."""
        return {"runtime": runtime.name, "options": dict(runtime.options)}


def evaluate_engine(host: AgentHost, engine: Path, runtime: Runtime, inputs: Path, outputs: Path, threads: int) -> None:
    """Let an agent open an engine and run every row of ``inputs`` through it into ``outputs``."""
    with host.start() as agent, host.receive(outputs.parent) as there:
        agent.ask("open", engine=host.send(engine), threads=threads, **host.runtime_arguments(runtime))
        agent.ask("evaluate", inputs=host.send(inputs), outputs=f"{there}/{outputs.name}", batch=_BATCH)


def verify_bundle(host: AgentHost, bundle: Path, runtime: Runtime, threads: int) -> Verification:
    """Let an agent check a bundle; see :class:`~edgekd.devices.base.Verifier`."""
    with host.start() as agent:
        told = host.runtime_arguments(runtime)["runtime"]
        found = agent.ask("verify", "verification", bundle_folder=host.send(bundle), runtime=told, threads=threads)
    return Verification(**found["verification"])


def build_engine(host: AgentHost, engine: Path, runtime: Runtime, folder: Path, threads: int) -> BuiltEngine | None:
    """Let an agent keep what its library makes of an engine; see :class:`~edgekd.devices.base.Verifier`."""
    with host.start() as agent, host.receive(folder) as there:
        told = host.runtime_arguments(runtime)
        built = agent.ask("build", "built", engine=host.send(engine), folder=there, threads=threads, **told)["built"]
    return None if built is None else BuiltEngine(**{**built, "files": tuple(built["files"])})
