"""Devices: what every machine that runs engines looks like to edgekd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edgekd.config.recipe import ProfileConfig
    from edgekd.config.target import Target
    from edgekd.runtime.backends.registry import Runtime
    from edgekd.runtime.measure.results import Profile
    from edgekd.runtime.session import BuiltEngine
    from edgekd.runtime.verification import Verification


@dataclass(frozen=True)
class Absent:
    """No device of the target's kind is at hand.

    Attributes:
        reason: The reason for that, as a sentence.
    """

    reason: str


class Device(Protocol):
    """One machine of a target's kind: this host, a browser on it, a processor emulated on it, a board over SSH."""

    @property
    def name(self) -> str:
        """The name that a user gives it, e.g. "local" or "emulated:cortex-a76"."""

    @property
    def no_latency(self) -> str | None:
        """The reason why :meth:`profile` cannot be had here: ``"not measured: ..."``; None where it can."""

    @property
    def arch(self) -> str:
        """The architecture of its processor, as ``uname -m`` prints it."""

    def missing(self) -> str | None:
        """Return what must be installed on this host before it can be used, and how; None where nothing is missing."""

    def refusal(self, target: Target, runtime: Runtime) -> str | None:
        """Return the reason why it cannot run a target's engines, e.g. that it is of another kind; None where it can.

        Args:
            target: The target.
            runtime: The target's engine library with its options.

        Raises:
            DeviceError: the device was lost, or lacks what the library needs.
            MissingDependency: the library is not installed there.
        """

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return what tells its results from another device's: processor, library versions. No engine is opened."""

    def evaluate(
        self,
        engine: Path,
        runtime: Runtime,
        inputs: Path,
        outputs: Path,
        threads: int,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Run every row of ``inputs`` through an engine.

        Args:
            engine: The engine file.
            runtime: The library that runs it.
            inputs: The ``.npz`` with ``input.<name>`` [N, ...] for each of its inputs.
            outputs: The ``.npz`` to write, with every output by its name [N, ...].
            threads: The number of threads of one inference.
            notify: Called with what takes a while, e.g. "sending deploy.onnx, 3.1 MB".

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
            engines: The engine files by name.
            runtime: The library that runs them.
            inputs: The ``.npz`` of real samples, as for :meth:`evaluate`.
            folder: The folder that receives ``<name>.npy`` with every timed inference in ns, in order.
            config: The number of threads, of inferences and of fresh starts.
            advance: Called after each step with the steps done, the steps in all, and the step's result.

        Raises:
            DeviceError: the device was lost, hung or answered nonsense, or has no latency to measure.
            ModelError: an engine cannot be opened or does not take these inputs.
        """

    def close(self) -> None:
        """Free what it holds; a connection is made again when it is used again."""


@runtime_checkable
class Verifier(Device, Protocol):
    """A device on which edgekd's own agent runs, beside the engine library that an app would use there."""

    def verify(self, bundle: Path, runtime: Runtime, threads: int, notify: Callable[[str], None]) -> Verification:
        """Check there a bundle's digests, and in its engine the reference samples and their Grams.

        Args:
            bundle: The bundle's folder.
            runtime: The library that runs it.
            threads: The number of threads of one inference.
            notify: As for :meth:`evaluate`.

        Raises:
            BundleError: a file was altered.
            DeviceError: the device was lost, hung or answered nonsense.
            ModelError: the engine cannot be opened.
        """

    def build(
        self, engine: Path, runtime: Runtime, folder: Path, threads: int, notify: Callable[[str], None]
    ) -> BuiltEngine | None:
        """Fetch what the engine library compiles of an engine for that very machine.

        Args:
            engine: The engine file.
            runtime: The library.
            folder: The folder that receives the files.
            threads: The number of threads of one inference.
            notify: As for :meth:`evaluate`.

        Returns:
            None where the library compiles nothing that can be kept.

        Raises:
            DeviceError: the device was lost, hung or answered nonsense.
            ModelError: the engine cannot be built.
        """


def host_mismatch(target: Target, arch: str, model: str, machine: str = "this machine") -> str | None:
    """Return the reason why a machine is not of a target's kind; None where it is.

    Args:
        target: The target.
        arch: The machine's architecture, as ``uname -m`` prints it.
        model: The name of its board or processor.
        machine: The machine in the sentence.
    """
    if arch not in target.hosts.arch:
        return f"target '{target.name}' is for {' or '.join(target.hosts.arch)}, and {machine} is {arch}"
    if target.hosts.model not in model:
        return f"target '{target.name}' is for '{target.hosts.model}', and {machine} is '{model}'"
    return None


def browser_refusal(runtime: Runtime) -> str | None:
    """Return the reason why a device without a browser does not run a runtime's engines; None where it does."""
    return "a browser target runs in a browser: --device browser" if runtime.backend.in_browser else None
