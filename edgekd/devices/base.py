"""What every device looks like from here: it runs engines on samples, and measures them where that means something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edgekd.config.recipe import ProfileConfig
    from edgekd.runtime.backends.registry import Runtime
    from edgekd.runtime.bundle import Verification
    from edgekd.runtime.measure.results import Profile
    from edgekd.runtime.session import Built


@dataclass(frozen=True)
class Absent:
    """No device of the target's kind is at hand; ``reason`` says why not."""

    reason: str


class Device(Protocol):
    """One machine of a target's kind: this host, a browser on it, a processor emulated on it, a board over SSH."""

    @property
    def name(self) -> str:
        """What a user calls it, e.g. "local" or "emulated:cortex-a76"."""

    @property
    def no_latency(self) -> str | None:
        """Why :meth:`profile` cannot be had here: ``"not measured: ..."``; None where it can."""

    @property
    def arch(self) -> str:
        """Its processor's architecture, as ``uname -m`` prints it."""

    def missing(self) -> str | None:
        """Say what must be installed on this host before it can be used, and how; None where nothing is missing."""

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return what tells its results from another device's: processor, library versions. It costs no engine."""

    def evaluate(
        self,
        engine: Path,
        runtime: Runtime,
        inputs: Path,
        outputs: Path,
        threads: int,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Run every row of ``inputs`` through an engine.

        Args:
            engine: the engine file.
            runtime: the library that runs it.
            inputs: ``.npz`` with ``input.<name>`` [N, ...] for each of its inputs.
            outputs: ``.npz`` to write, with every output by its name [N, ...].
            threads: threads of one inference.
            tell: called with what takes a while, e.g. "sending deploy.onnx, 3.1 MB".

        Raises:
            DeviceError: the device was lost, hung or answered nonsense.
            ModelError: the engine cannot be opened or does not take these inputs.
        """

    def profile(
        self,
        engines: Mapping[str, Path],
        runtime: Runtime,
        inputs: Path,
        folder: Path,
        config: ProfileConfig,
        advance: Callable[[int, int, str], None],
    ) -> Profile:
        """Measure engines side by side, at batch 1: they take turns of a few inferences, in an order that rotates.

        Args:
            engines: engine files by name.
            runtime: the library that runs them.
            inputs: ``.npz`` of real samples, as for :meth:`evaluate`.
            folder: receives ``<name>.npy`` with every timed inference in ns, in order.
            config: threads, and how many inferences and fresh starts.
            advance: called after each step with steps done, steps in all, and what came out.

        Raises:
            DeviceError: the device was lost, hung or answered nonsense, or has no latency to measure.
            ModelError: an engine cannot be opened or does not take these inputs.
        """

    def close(self) -> None:
        """Let go of it; a connection is made again when it is used again."""


@runtime_checkable
class Verifier(Device, Protocol):
    """A device on which edgekd's own agent runs, beside the engine library that an app would use there."""

    def verify(self, bundle: Path, runtime: Runtime, threads: int, tell: Callable[[str], None]) -> Verification:
        """Check a bundle's digests there, and its reference samples and their Grams in its engine.

        Args:
            bundle: its folder.
            runtime: the library that runs it.
            threads: threads of one inference.
            tell: as for :meth:`evaluate`.

        Raises:
            BundleError: a file was altered.
            DeviceError: the device was lost, hung or answered nonsense.
            ModelError: the engine cannot be opened.
        """

    def build(
        self, engine: Path, runtime: Runtime, folder: Path, threads: int, tell: Callable[[str], None]
    ) -> Built | None:
        """Bring here what the engine library makes of an engine for that very machine.

        Args:
            engine: the engine file.
            runtime: the library.
            folder: receives the files.
            threads: threads of one inference.
            tell: as for :meth:`evaluate`.

        Returns:
            None where the library makes nothing that can be kept.

        Raises:
            DeviceError: the device was lost, hung or answered nonsense.
            ModelError: the engine cannot be built.
        """
