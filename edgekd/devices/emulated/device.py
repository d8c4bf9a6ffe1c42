"""A processor emulated on this host, which shows what an engine computes on it, never how fast.

Kernels for INT8 differ by processor, and so may their results: x86-64 with AVX2 and no VNNI saturates where others do
not. Under emulation the engine library takes the very kernels that it would take on that processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import edgekd
from edgekd.devices import agent_host
from edgekd.devices.agent_host import AGENT, LocalHost
from edgekd.devices.base import host_mismatch
from edgekd.devices.emulated import user_space
from edgekd.devices.emulated.processors import find_processor
from edgekd.devices.emulated.qemu import find_qemu
from edgekd.devices.local import agent_environment
from edgekd.errors import DeviceError, MissingDependency
from edgekd.files import scratch_folder
from edgekd.runtime.backends.registry import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgekd.config.recipe import ProfileConfig
    from edgekd.config.target import Target
    from edgekd.runtime.backends.registry import Runtime
    from edgekd.runtime.measure.results import Profile

#: The longest time that one answer may take: emulation is slow.
_TIMEOUT_SECONDS = 3600.0


class EmulatedDevice:
    """One emulated processor. Each engine gets an agent, a process of its own, that lives as long as one call below.

    Args:
        processor: The processor's name, e.g. "cortex-a76".
        timeout_seconds: The longest time that one answer may take.

    Raises:
        DeviceError: the processor is not known.
    """

    no_latency = "not measured: emulated time says nothing of the processor"

    def __init__(self, processor: str, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        self._processor = find_processor(processor)
        self._timeout_seconds = timeout_seconds
        self.name = f"emulated:{self._processor.name}"
        self.arch = self._processor.arch

    def missing(self) -> str | None:
        """Return how to install it; None where it is installed."""
        try:
            root = user_space.installed_root(self._processor.name)
        except MissingDependency as error:
            return str(error)
        return None if root else f"{self.name} is not installed on this host: edgekd device install {self.name}"

    def refusal(self, target: Target, runtime: Runtime) -> str | None:
        """Return the reason why it cannot run a target's engines; None where it can."""
        return host_mismatch(target, self.arch, target.hosts.model, self.name) or self._unsupported(runtime)

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return processor, emulator and the versions inside of it; no engine is started.

        Raises:
            DeviceError: it is not installed.
        """
        root = self._root()
        facts = {"cpu": f"{self._processor.name}, emulated", "arch": self.arch}
        facts["emulator"] = f"QEMU {find_qemu(self._processor).version}"
        if self._processor.native:
            return {**facts, **runtime.versions()}
        return {**facts, **user_space.guest_versions(root)}

    def evaluate(
        self,
        engine: Path,
        runtime: Runtime,
        inputs: Path,
        outputs: Path,
        threads: int,
        notify: Callable[[str], None] = lambda _: None,  # noqa: ARG002 - nothing is said while an engine runs
    ) -> None:
        """Run every row of ``inputs`` through an engine; see :class:`~edgekd.devices.base.Device`.

        Raises:
            DeviceError: also where it is not installed, and for a runtime whose results under emulation are not known
                to be the processor's.
        """
        root = self._root()
        if reason := self._unsupported(runtime):
            raise DeviceError(reason)
        command = [*user_space.python_command(self._processor, root), *AGENT]
        with scratch_folder() as sources:
            environment = self._environment(root, sources)
            here = LocalHost(command, environment, self._timeout_seconds)
            agent_host.evaluate_engine(here, engine, runtime, inputs, outputs, threads)

    def profile(
        self,
        engines: Mapping[str, Path],  # noqa: ARG002
        runtime: Runtime,  # noqa: ARG002
        inputs: Path,  # noqa: ARG002
        folder: Path,  # noqa: ARG002
        config: ProfileConfig,  # noqa: ARG002
        advance: Callable[[int, int, str], None],  # noqa: ARG002
    ) -> Profile:
        """Refuse: see :attr:`no_latency`.

        Raises:
            DeviceError: always.
        """
        raise DeviceError(f"{self.name}: {self.no_latency}")

    def close(self) -> None:
        """Free what it holds: nothing."""

    def _unsupported(self, runtime: Runtime) -> str | None:
        known = [name for name, backend in BACKENDS.items() if self.arch in backend.emulated_arches]
        if runtime.name in known:
            return None
        note = runtime.backend.emulation_note
        return f"{self.name} does not run engines of {runtime.name}, only of {' and '.join(known)}{note}"

    def _root(self) -> Path:
        root = user_space.installed_root(self._processor.name)
        if root is None:
            raise DeviceError(str(self.missing()))
        return root

    def _environment(self, root: Path, sources: Path) -> dict[str, str]:
        if self._processor.native:
            return agent_environment()
        # A link to edgekd alone: this host's site-packages may lie beside it, which are not for this processor.
        (sources / "edgekd").symlink_to(Path(edgekd.__file__).resolve().parent)
        return user_space.guest_environment(root, sources)
