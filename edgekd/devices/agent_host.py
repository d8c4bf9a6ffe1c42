"""What agents do, wherever they run: this host and a board differ in how a file gets there."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.devices.agent_process import AgentProcess
from edgekd.runtime.bundle import Verification
from edgekd.runtime.session import Built

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

    def spell(self, runtime: Runtime) -> dict[str, Any]:
        """Return a runtime as an agent there is told of it."""


@dataclass(frozen=True)
class Here:
    """This host: a file is where it is.

    Attributes:
        command: what starts an agent.
        environment: its variables.
        patience_seconds: how long one answer may take.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    patience_seconds: float

    def start(self) -> AgentProcess:
        """Start an agent."""
        return AgentProcess(self.command, self.environment, self.patience_seconds)

    def send(self, path: Path) -> str:
        """Return the path itself."""
        return str(path)

    @contextmanager
    def receive(self, folder: Path) -> Iterator[str]:
        """Yield the folder itself."""
        yield str(folder)

    def spell(self, runtime: Runtime) -> dict[str, Any]:
        """Return its name and options."""
        return {"runtime": runtime.name, "options": dict(runtime.options)}


def evaluate(place: AgentHost, engine: Path, runtime: Runtime, inputs: Path, outputs: Path, threads: int) -> None:
    """Let an agent open an engine and run every row of ``inputs`` through it into ``outputs``."""
    with place.start() as agent, place.receive(outputs.parent) as there:
        agent.ask("open", engine=place.send(engine), threads=threads, **place.spell(runtime))
        agent.ask("evaluate", inputs=place.send(inputs), outputs=f"{there}/{outputs.name}", batch=_BATCH)


def verify(place: AgentHost, bundle: Path, runtime: Runtime, threads: int) -> Verification:
    """Let an agent check a bundle; see :class:`~edgekd.devices.base.Verifier`."""
    with place.start() as agent:
        told = place.spell(runtime)["runtime"]
        found = agent.ask("verify", "verification", bundle_folder=place.send(bundle), runtime=told, threads=threads)
    return Verification(**found["verification"])


def build(place: AgentHost, engine: Path, runtime: Runtime, folder: Path, threads: int) -> Built | None:
    """Let an agent keep what its library makes of an engine; see :class:`~edgekd.devices.base.Verifier`."""
    with place.start() as agent, place.receive(folder) as there:
        told = place.spell(runtime)
        built = agent.ask("build", "built", engine=place.send(engine), folder=there, threads=threads, **told)["built"]
    return None if built is None else Built(**{**built, "files": tuple(built["files"])})
