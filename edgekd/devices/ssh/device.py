"""A board over SSH as a device."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.devices import agent_host
from edgekd.devices.base import browser_refusal, host_mismatch
from edgekd.devices.interleave import profile_interleaved
from edgekd.devices.local import AgentEngine
from edgekd.devices.ssh.address import parse_address
from edgekd.devices.ssh.board import Board
from edgekd.devices.ssh.connection import Connection
from edgekd.devices.ssh.contact import Contact, clean_board, inspect_board, unpack_agent
from edgekd.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from edgekd.config.recipe import ProfileConfig
    from edgekd.config.target import Target
    from edgekd.runtime.backends.registry import Runtime
    from edgekd.runtime.measure.results import Profile
    from edgekd.runtime.session import BuiltEngine
    from edgekd.runtime.verification import Verification

#: The longest time that one answer may take: TensorRT builds a large engine for many minutes.
_TIMEOUT_SECONDS = 3600.0
#: The time that an agent there outlives a link that was cut.
_SILENCE_SECONDS = 60.0


@dataclass(frozen=True)
class BoardFacts:
    """A board's description for a person.

    Attributes:
        facts: Its processor, system, power mode and versions.
        used_bytes: The size of the files that edgekd keeps there.
        free_bytes: The free space of that disk.
    """

    facts: dict[str, str]
    used_bytes: int
    free_bytes: int


class SshDevice:
    """A board. It is connected at the first use, and again where the connection was lost since.

    One thread uses it at a time; :meth:`stop` is for another.

    Args:
        address: ``ssh://[user@]host[:port][?python=COMMAND]``.
        timeout_seconds: The longest time that one answer of an agent there may take.
        silence_seconds: The time that an agent there outlives a link that was cut.

    Raises:
        DeviceError: it is no address.
    """

    no_latency = None

    def __init__(
        self,
        address: str,
        timeout_seconds: float = _TIMEOUT_SECONDS,
        silence_seconds: float = _SILENCE_SECONDS,
    ) -> None:
        self._address = parse_address(address)
        self._timeout_seconds = timeout_seconds
        self._silence_seconds = silence_seconds
        self._connection: Connection | None = None
        self._contact: Contact | None = None
        self._board: Board | None = None
        self._stopped = False
        self._described: dict[str, dict[str, str]] = {}
        self.name = self._address.name

    @property
    def arch(self) -> str:
        """The processor's architecture, as the board reports it."""
        return self._look().machine

    def missing(self) -> None:
        """Return what must be installed on this host: nothing that :meth:`describe` would not report."""

    def refusal(self, target: Target, runtime: Runtime) -> str | None:
        """Return the reason why the board cannot run a target's engines; None where it can.

        Raises:
            DeviceError: it cannot be reached, or lacks what the library needs.
            MissingDependency: it has no Python, one that is too old, or no numpy or engine library.
        """
        if reason := browser_refusal(runtime):
            return reason
        # The architecture first: it is known before anything is sent there.
        return host_mismatch(target, self.arch, target.hosts.model, "it") or host_mismatch(
            target, self.arch, self.describe(runtime)["cpu"], "it"
        )

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return what tells this board's results from another's, which is not its address. It is asked once.

        Raises:
            DeviceError: it cannot be reached, or lacks what the runtime needs.
            MissingDependency: it has no Python, one that is too old, or no numpy or engine library.
        """
        key = repr(runtime)
        if key not in self._described:
            board = self._ready(runtime)
            answer = board.ask("describe", "absent", "facts", **board.runtime_arguments(runtime))
            if answer["absent"]:
                raise DeviceError(f"{self.name}: {answer['absent']}")
            self._described[key] = answer["facts"]
        return self._described[key]

    def probe(self) -> BoardFacts:
        """Return a description of the board for a person."""
        answer = self._ready(None).ask("probe", "facts", "used_bytes", "free_bytes")
        return BoardFacts(answer["facts"], answer["used_bytes"], answer["free_bytes"])

    def clean(self) -> int:
        """Remove everything of edgekd's there, and return the number of bytes.

        Raises:
            DeviceError: somebody uses it, or it cannot be reached.
        """
        with self._connected() as connection:
            freed = clean_board(connection)
        self.close()
        return freed

    def evaluate(
        self,
        engine: Path,
        runtime: Runtime,
        inputs: Path,
        outputs: Path,
        threads: int,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Run every row of ``inputs`` through an engine; see :class:`~edgekd.devices.base.Device`."""
        with self._alone(runtime, notify) as board:
            for path in (engine, inputs):
                board.send(path)
            notify(f"{_opening(runtime)} {engine.name} there")
            agent_host.evaluate_engine(board, engine, runtime, inputs, outputs, threads)

    def verify(self, bundle: Path, runtime: Runtime, threads: int, notify: Callable[[str], None]) -> Verification:
        """Check a bundle; see :class:`~edgekd.devices.base.Verifier`."""
        with self._alone(runtime, notify) as board:
            notify("verifying there")
            return agent_host.verify_bundle(board, bundle, runtime, threads)

    def build(
        self, engine: Path, runtime: Runtime, folder: Path, threads: int, notify: Callable[[str], None]
    ) -> BuiltEngine | None:
        """Fetch what the library compiles of an engine; see :class:`~edgekd.devices.base.Verifier`."""
        with self._alone(runtime, notify) as board:
            notify("asking for what was built there")
            return agent_host.build_engine(board, engine, runtime, folder, threads)

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
        with self._alone(runtime, lambda note: advance(0, 1, note)) as board:
            for engine in engines.values():  # before anything is timed
                board.send(engine)
            advance(0, 1, f"{_opening(runtime)} {', '.join(engines)} there")
            return profile_interleaved(
                lambda engine: AgentEngine(board, engine, runtime, config.threads),
                engines, inputs, folder, config, advance,
            )  # fmt: skip

    def close(self) -> None:
        """End the connection; nothing is left running there or here."""
        if self._board is not None:
            self._board.close()
        if self._connection is not None:
            self._connection.close()
        self._connection = self._contact = self._board = None

    def stop(self) -> None:
        """Make everything that another thread does with it fail soon, and for good."""
        self._stopped = True
        if (connection := self._connection) is not None:
            connection.kill()

    @contextmanager
    def _alone(self, runtime: Runtime, notify: Callable[[str], None]) -> Iterator[Board]:
        board = self._ready(runtime)
        with board.exclusive(notify):
            yield board

    def _ready(self, runtime: Runtime | None) -> Board:
        """Return the board, connected, with what the runtime needs and the agent unpacked."""
        contact, connection = self._look(), self._connection
        assert connection is not None  # _look has just made it
        if runtime is not None:
            contact.require(runtime.backend, self.name)
        if self._board is None:
            if not contact.unpacked:
                unpack_agent(connection)
            self._board = Board(connection, contact.root, self._timeout_seconds, self._silence_seconds)
        return self._board

    def _look(self) -> Contact:
        lost = self._board is not None and not self._board.alive
        if self._contact is None or self._connection is None or not self._connection.alive or lost:
            self.close()
            self._connection = Connection(self._address)
            try:
                if self._stopped:
                    raise DeviceError(f"{self.name}: was stopped")
                self._contact = inspect_board(self._connection)
            except BaseException:
                self.close()
                raise
        return self._contact

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Yield a separate connection: cleaning needs no more of the board than its Python."""
        self.close()
        connection = Connection(self._address)
        try:
            yield connection
        finally:
            connection.close()


def _opening(runtime: Runtime) -> str:
    """Return what opening an engine is in words: TensorRT first builds one, for minutes."""
    return "building and running" if runtime.compiles else "running"
