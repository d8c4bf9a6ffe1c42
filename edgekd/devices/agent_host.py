"""Jobs of agents, wherever these run: this host and a board differ only in how a file gets there."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgekd.devices.agent_process import AgentProcess
from edgekd.runtime.session import BuiltEngine
from edgekd.runtime.verification import Verification

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from edgekd.files import JsonObject
    from edgekd.runtime.backends.registry import Runtime

#: Arguments with which an interpreter of this host runs an agent.
AGENT = ("-m", "edgekd.runtime.agent.agent")

_BATCH = 64


class AgentHost(Protocol):
    """A machine on which agents run, and the transfer of files to it and back."""

    def start(self) -> AgentProcess:
        """Start an agent on it."""

    def send(self, path: Path) -> str:
        """Return the path there of a file or a folder of this host, having sent it where that is needed."""

    def receive(self, folder: Path) -> AbstractContextManager[str]:
        """Yield the path of a folder there; the files that an agent writes into it are in ``folder`` at the end."""

    def runtime_arguments(self, runtime: Runtime) -> JsonObject:
        """Return the arguments by which a job names a runtime there: ``runtime`` and ``options``."""


@dataclass(frozen=True)
class LocalHost:
    """This host, on which no file needs to be sent.

    Attributes:
        command: The command that starts an agent.
        environment: The agent's environment variables.
        timeout_seconds: The longest time that one answer may take.
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

    def runtime_arguments(self, runtime: Runtime) -> JsonObject:
        """Return the runtime's name and options."""
        return {"runtime": runtime.name, "options": dict(runtime.options)}


def evaluate_engine(host: AgentHost, engine: Path, runtime: Runtime, inputs: Path, outputs: Path, threads: int) -> None:
    """Have an agent open an engine and run every row of ``inputs`` through it into ``outputs``."""
    with host.start() as agent, host.receive(outputs.parent) as remote:
        agent.ask("open", engine=host.send(engine), threads=threads, **host.runtime_arguments(runtime))
        agent.ask("evaluate", inputs=host.send(inputs), outputs=f"{remote}/{outputs.name}", batch=_BATCH)


def verify_bundle(host: AgentHost, bundle: Path, runtime: Runtime, threads: int) -> Verification:
    """Have an agent check a bundle; see :class:`~edgekd.devices.base.Verifier`."""
    with host.start() as agent:
        name = host.runtime_arguments(runtime)["runtime"]
        answer = agent.ask("verify", "verification", bundle_folder=host.send(bundle), runtime=name, threads=threads)
    return Verification(**answer["verification"])


def build_engine(host: AgentHost, engine: Path, runtime: Runtime, folder: Path, threads: int) -> BuiltEngine | None:
    """Have an agent keep what its library compiles of an engine; see :class:`~edgekd.devices.base.Verifier`."""
    with host.start() as agent, host.receive(folder) as remote:
        named = host.runtime_arguments(runtime)
        built = agent.ask("build", "built", engine=host.send(engine), folder=remote, threads=threads, **named)["built"]
    return None if built is None else BuiltEngine(**{**built, "files": tuple(built["files"])})
