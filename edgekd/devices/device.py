"""What every device looks like from here: it runs engines on samples, and measures them where that means something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edgekd.recipe import ProfileConfig
    from edgekd.runtime.measure import Profile
    from edgekd.runtime.registry import Runtime


class Device(Protocol):
    """One machine of a target's kind: this host, a browser on it, a processor that is emulated on it."""

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

    def evaluate(self, engine: Path, runtime: Runtime, inputs: Path, outputs: Path, threads: int) -> None:
        """Run every row of ``inputs`` through an engine.

        Args:
            engine: the engine file.
            runtime: the library that runs it.
            inputs: ``.npz`` with ``input.<name>`` [N, ...] for each of its inputs.
            outputs: ``.npz`` to write, with every output by its name [N, ...].
            threads: threads of one inference.

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
