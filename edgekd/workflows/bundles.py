"""Measure a finished bundle where it is: on the device that it is for."""

from __future__ import annotations

import json
import re
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from edgekd.config.target import shipped_targets
from edgekd.devices.base import Verifier
from edgekd.devices.parallel import run_parallel
from edgekd.devices.select import open_device
from edgekd.devices.ssh.device import SshDevice
from edgekd.devices.targets import load_target
from edgekd.errors import BundleError, DeviceError, OutputError
from edgekd.files import make_folder
from edgekd.runtime.bundle import check_bundle, engine_file, read_branches
from edgekd.runtime.manifest import REFERENCE, read_file
from edgekd.runtime.measure.layers import assign_branches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from edgekd.config.recipe import ProfileConfig
    from edgekd.devices.base import Device
    from edgekd.runtime.backends.registry import Runtime
    from edgekd.runtime.manifest import Manifest
    from edgekd.runtime.measure.results import Profile
    from edgekd.runtime.verification import Verification

_ENGINE = "engine"


@dataclass(frozen=True)
class ProfiledBundle:
    """A bundle as it was measured on one device.

    Attributes:
        manifest: the bundle's.
        ledger: its ``ledger.json``.
        runtime: the library that ran it.
        device: what ran it, in a user's words.
        profile: of its engine alone.
        folder: where the raw times are; None where they were dropped.
    """

    manifest: Manifest
    ledger: dict[str, Any]
    runtime: str
    device: str
    profile: Profile
    folder: Path | None


def profile_bundle(
    path: Path,
    runtime: str | None,
    config: ProfileConfig,
    advance: Callable[[int, int, str], None],
    output: Path | None = None,
    requests: Sequence[str] = (),
) -> list[ProfiledBundle]:
    """Check a bundle and measure its ``deploy`` variant on its reference samples.

    Args:
        path: the bundle's folder.
        runtime: as for :func:`edgekd.load`.
        config: threads, how many inferences and fresh processes, and what else; where it names no power rails, those of
            the bundle's target are read.
        advance: called after each step with steps done, steps in all, and what came out.
        output: keeps the raw times, of several devices in a folder for each; None to drop them.
        requests: on which devices, see :func:`edgekd.devices.select.open_device`; boards measure at the same time. By
            default this machine, or for a bundle for the browser a browser on it.

    Returns:
        What was measured, of each device in the order of ``requests``.

    Raises:
        BundleError: it is no bundle, or was altered.
        MissingDependency: its engine library is not installed.
        ModelError: its engine cannot be opened there.
        DeviceError: the machine lacks what the bundle needs, or the measuring process was lost.
        OutputError: ``output`` cannot be made.
    """
    manifest, library = check_bundle(path, runtime)
    branches, ledger = read_branches(path, manifest), _ledger(path, manifest)
    own = "browser" if library.backend.in_browser else "local"
    if not config.rails and manifest.target in shipped_targets():
        config = replace(config, rails=load_target(manifest.target).power_rails)
    engine = path / engine_file(manifest, "deploy", library)
    with ExitStack() as stack:
        devices = _open(dict.fromkeys(requests or [own]), stack)

        def measure(device: Device) -> ProfiledBundle:
            folder = output and (output if len(devices) == 1 else output / _file_name(device.name))
            with tempfile.TemporaryDirectory() as scratch:
                raw = folder or Path(scratch)
                make_folder(raw, OutputError, "--output")
                found = device.profile({_ENGINE: engine}, library, path / REFERENCE, raw, config, advance)
            folded = assign_branches(found, {_ENGINE: branches})
            return ProfiledBundle(manifest, ledger, library.name, device.name, folded, folder)

        boards = [device for device in devices if isinstance(device, SshDevice)]
        found = {device.name: measure(device) for device in devices if device not in boards}
        jobs = {board.name: lambda board=board: measure(board) for board in boards}

        def stop() -> None:
            for board in boards:
                board.stop()

        found |= run_parallel(jobs, stop)
    return [found[device.name] for device in devices]


def _file_name(device: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", device).strip("-")


def _ledger(path: Path, manifest: Manifest) -> dict[str, Any]:
    try:
        ledger = json.loads(read_file(path, manifest, "ledger.json"))
    except ValueError as error:
        raise BundleError(f"{path / 'ledger.json'}: is not valid JSON: {error}") from error
    if not isinstance(ledger, dict):
        raise BundleError(f"{path / 'ledger.json'}: must be a JSON object, not a {type(ledger).__name__}")
    return ledger


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
    manifest, library = check_bundle(path, runtime)
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
