"""A processor that is not here, emulated on this host: what an engine computes on it, never how fast.

Kernels for INT8 differ by processor, and so may their results: x86-64 with AVX2 and no VNNI saturates where others do
not. Under emulation the engine library takes the very kernels that it would take on that processor.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import edgekd
from edgekd.devices import agent_host
from edgekd.devices.agent_host import AGENT, LocalHost
from edgekd.devices.emulated import qemu
from edgekd.devices.local import agent_environment
from edgekd.errors import DeviceError, MissingDependency
from edgekd.runtime.backends.registry import PACKAGES
from edgekd.runtime.measure.machine import package_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgekd.config.recipe import ProfileConfig
    from edgekd.runtime.backends.registry import Runtime
    from edgekd.runtime.measure.results import Profile

#: How long one answer may take: emulation is slow.
_TIMEOUT_SECONDS = 3600.0

#: Runtimes whose results were seen to be the processor's: those of this host's own Python, and of an ARM user space.
_NATIVE, _GUEST = ("onnxruntime", "openvino"), ("onnxruntime",)


class EmulatedDevice:
    """One emulated processor. Each engine gets an agent, a process of its own, that lives as long as one call below.

    Args:
        processor: its name, e.g. "cortex-a76".
        timeout_seconds: how long one answer may take.

    Raises:
        DeviceError: the processor is not known.
    """

    no_latency = "not measured: emulated time says nothing of the processor"

    def __init__(self, processor: str, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        self._processor = qemu.find_processor(processor)
        self._timeout_seconds = timeout_seconds
        self.name = f"emulated:{self._processor.name}"
        self.arch = self._processor.arch

    def missing(self) -> str | None:
        """Say how to install it; None where it is installed."""
        try:
            found = qemu.installed_root(self._processor.name)
        except MissingDependency as error:
            return str(error)
        return None if found else f"{self.name} is not installed on this host: edgekd device install {self.name}"

    def refuses(self, runtime: Runtime) -> str | None:
        """Say why it does not run a runtime's engines; None where it does."""
        known = _NATIVE if self._processor.native else _GUEST
        if runtime.name in known:
            return None
        why = ": OpenVINO's INT8 is wrong on an emulated ARM processor" if runtime.name == "openvino" else ""
        return f"{self.name} does not run engines of {runtime.name}, only of {' and '.join(known)}{why}"

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return processor, emulator and the versions inside of it; starts no engine.

        Raises:
            DeviceError: it is not installed.
        """
        root = self._root()
        facts = {"cpu": f"{self._processor.name}, emulated", "arch": self.arch}
        facts["emulator"] = f"QEMU {qemu.find_qemu(self._processor).version}"
        if self._processor.native:
            return {**facts, **package_versions(PACKAGES.get(runtime.name, ()))}
        return {**facts, **qemu.guest_versions(root)}

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
        if reason := self.refuses(runtime):
            raise DeviceError(reason)
        command = [*qemu.python_command(self._processor, root), *AGENT]
        with tempfile.TemporaryDirectory() as sources:
            environment = self._environment(root, Path(sources))
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
        """Let go of it: nothing is held."""

    def _root(self) -> Path:
        root = qemu.installed_root(self._processor.name)
        if root is None:
            raise DeviceError(str(self.missing()))
        return root

    def _environment(self, root: Path, sources: Path) -> dict[str, str]:
        if self._processor.native:
            return agent_environment()
        # A link to edgekd alone: beside it may lie this host's site-packages, which are not for this processor.
        (sources / "edgekd").symlink_to(Path(edgekd.__file__).resolve().parent)
        return qemu.guest_environment(root, sources)
