"""Measure or verify a finished bundle where it is to run: on this machine, or on a board."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.devices.choose import open_device
from edgekd.devices.device import Verifier
from edgekd.devices.ssh import SshDevice
from edgekd.devices.together import together
from edgekd.errors import DeviceError
from edgekd.runtime.bundle import engine_file, examine
from edgekd.runtime.manifest import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from edgekd.devices.device import Device
    from edgekd.recipe import ProfileConfig
    from edgekd.runtime.bundle import Verification
    from edgekd.runtime.manifest import Manifest
    from edgekd.runtime.measure import Profile
    from edgekd.runtime.registry import Runtime


def profile_bundle(
    path: Path,
    runtime: str | None,
    config: ProfileConfig,
    advance: Callable[[int, int, str], None],
    requests: Sequence[str] = (),
) -> tuple[Manifest, dict[str, Profile]]:
    """Check a bundle and time its ``deploy`` variant on its reference samples.

    Args:
        path: the bundle's folder.
        runtime: as for :func:`edgekd.load`.
        config: threads, and how many inferences and fresh starts.
        advance: called after each step with steps done, steps in all, and what came out.
        requests: on which devices, see :func:`edgekd.devices.choose.open_device`; boards measure at the same time. By
            default this machine, or for a bundle for the browser a browser on it.

    Returns:
        The bundle's manifest, and by device what was measured.

    Raises:
        BundleError: it is no bundle, or was altered.
        MissingDependency: its engine library is not installed.
        ModelError: its engine cannot be opened there.
        DeviceError: the machine lacks what the bundle needs, or the measuring process was lost.
    """
    manifest, library = examine(path, runtime)
    own = "browser" if library.name == "onnxruntime-web" else "local"
    engine = path / engine_file(manifest, "deploy", library)
    with ExitStack() as stack:
        devices = _open(dict.fromkeys(requests or [own]), stack)

        def measure(device: Device) -> Profile:
            with tempfile.TemporaryDirectory() as scratch:
                return device.profile({"engine": engine}, library, path / REFERENCE, Path(scratch), config, advance)

        boards = [device for device in devices if isinstance(device, SshDevice)]
        found = {device.name: measure(device) for device in devices if device not in boards}
        jobs = {board.name: lambda board=board: measure(board) for board in boards}

        def stop() -> None:
            for board in boards:
                board.stop()

        found |= together(jobs, stop)
    return manifest, {device.name: found[device.name] for device in devices}


def verify_bundle(path: Path, runtime: str | None, request: str) -> tuple[Manifest, Runtime, Verification]:
    """Check a bundle on a device.

    Args:
        path: the bundle's folder.
        runtime: as for :func:`edgekd.load`.
        request: the device.

    Returns:
        The bundle's manifest, the library that ran it, and what came out.

    Raises:
        BundleError: it is no bundle, or was altered.
        DeviceError: there is no such device, it cannot do that, or it was lost.
        MissingDependency: it lacks what the bundle needs.
        ModelError: the engine cannot be opened there.
    """
    manifest, library = examine(path, runtime)
    with ExitStack() as stack:
        (device,) = _open([request], stack)
        if not isinstance(device, Verifier):
            raise DeviceError(f"{device.name} does not verify bundles; this machine (local) and boards (ssh://...) do")
        return manifest, library, device.verify(path, library, 1, lambda _: None)


def _open(requests: Iterable[str], stack: ExitStack) -> list[Device]:
    devices = []
    for request in requests:
        device = open_device(request)
        stack.callback(device.close)
        if reason := device.missing():
            raise DeviceError(f"--device {request}: {reason}")
        devices.append(device)
    return devices
