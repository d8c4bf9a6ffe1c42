"""Measure and verify a finished bundle, on the device that it is for."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgekd.config.recipe import ProfileConfig
from edgekd.config.target import shipped_targets
from edgekd.devices.base import Verifier
from edgekd.devices.parallel import run_parallel
from edgekd.devices.refusals import Refusals
from edgekd.devices.select import open_device
from edgekd.devices.ssh.device import SshDevice
from edgekd.devices.targets import load_target
from edgekd.errors import BundleError, DeviceError, OutputError
from edgekd.files import disk_errors, make_folder, scratch_folder
from edgekd.pipeline.output import refuse_foreign, replacing
from edgekd.report.build.profile import profile_json, write_profile
from edgekd.report.results import PROFILE
from edgekd.runtime.bundle import check_bundle, engine_file, load
from edgekd.runtime.manifest import REFERENCE, read_branches, read_file
from edgekd.runtime.measure.layers import assign_branches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekd.devices.base import Device
    from edgekd.files import JsonObject
    from edgekd.runtime.manifest import Manifest
    from edgekd.runtime.measure.results import Profile
    from edgekd.runtime.verification import Verification

_ENGINE = "engine"
#: What :func:`profile` writes into its output.
_PLACES = (PROFILE, *(f"{_ENGINE}{kind}.npy" for kind in ("", ".compute", ".paced", ".sustained")))


@dataclass(frozen=True)
class ProfiledBundle:
    """A bundle's measurement on one device.

    Attributes:
        manifest: The bundle's manifest.
        ledger: Content of the bundle's ``ledger.json``.
        runtime: Name of the library that ran the bundle.
        device: The device that ran the bundle, in a user's words.
        profile: Profile of the bundle's engine.
        folder: Folder of ``profile.json`` and the raw times; None where they were dropped.
    """

    manifest: Manifest
    ledger: JsonObject
    runtime: str
    device: str
    profile: Profile
    folder: Path | None

    def json(self) -> JsonObject:
        """Return the content of ``profile.json``."""
        return profile_json(self.manifest, self.ledger, self.runtime, self.device, self.profile)


def profile(
    bundle: Path | str,
    *,
    devices: Sequence[str] = (),
    runtime: str | None = None,
    settings: ProfileConfig | None = None,
    output: Path | str | None = None,
    advance: Callable[[int, int, str], None] | None = None,
    refuse: Callable[[str, str], None] | None = None,
) -> list[ProfiledBundle]:
    """Check a bundle and measure its ``deploy`` variant on its reference samples.

    Args:
        bundle: The bundle's folder.
        devices: The devices to measure on, e.g. ``"ssh://user@board"``; boards measure at the same time. By default
            this machine, or for a bundle for the browser a browser on it.
        runtime: Open the bundle with this runtime instead of its own, as for :func:`edgekd.load`.
        settings: Threads, how many inferences and fresh processes, and what else to measure. Where it names no power
            rails, those of the bundle's target are read.
        output: Folder for ``profile.json`` and the raw times, with a folder for each of several devices; None to write
            neither.
        advance: Called after each step with the steps done, the steps in all, and the step's result in words.
        refuse: Called with the name and the reason of each of several devices that refuses; the others go on.

    Returns:
        The measurement of each device that did not refuse, in the order of ``devices``.

    Raises:
        BundleError: The folder is no bundle, or the bundle was altered.
        MissingDependency: The bundle's engine library is not installed.
        ModelError: The bundle's engine cannot be opened there.
        DeviceError: The machine lacks what the bundle needs, or the measuring process was lost; of several devices,
            all refused.
        OutputError: ``output`` cannot be made.
    """
    path, kept, config = Path(bundle), Path(output) if output is not None else None, settings or ProfileConfig()
    manifest, library = check_bundle(path, runtime)
    branches, ledger = read_branches(path, manifest), _ledger(path, manifest)
    own = "browser" if library.backend.in_browser else "local"
    if not config.rails and manifest.target in shipped_targets():
        config = replace(config, rails=load_target(manifest.target).power_rails)
    engine = path / engine_file(manifest, "deploy", library)
    wanted = tuple(dict.fromkeys(devices or [own]))
    refusals = Refusals(len(wanted), refuse or _ignore_refusal)
    with ExitStack() as stack:
        opened = {
            request: device
            for request in wanted
            if (device := refusals.attempt(request, partial(_open, request, stack)))
        }
        folders = {request: _folder_of(device, kept, len(wanted)) for request, device in opened.items()}
        for folder in filter(None, folders.values()):
            make_folder(folder, OutputError, "--output")
            refuse_foreign(folder, _PLACES)

        def measure(request: str) -> ProfiledBundle:
            device, folder = opened[request], folders[request]
            with scratch_folder() as raw:
                found = device.profile({_ENGINE: engine}, library, path / REFERENCE, raw, config, advance or _ignore)
                folded = assign_branches(found, {_ENGINE: branches})
                measured = ProfiledBundle(manifest, ledger, library.name, device.name, folded, folder)
                if folder:
                    _keep(measured, raw, folder)
            return measured

        def attempt(request: str) -> ProfiledBundle | None:
            return refusals.attempt(request, partial(measure, request))

        boards = {request: device for request, device in opened.items() if isinstance(device, SshDevice)}
        found = {request: attempt(request) for request in opened if request not in boards}
        jobs = {request: partial(attempt, request) for request in boards}

        def stop() -> None:
            for board in boards.values():
                board.stop()

        found |= run_parallel(jobs, stop)
    return [measured for request in wanted if (measured := found.get(request))]


def _folder_of(device: Device, kept: Path | None, devices: int) -> Path | None:
    """Return the folder of a device's measurement: below ``kept`` where there are several devices."""
    return kept and (kept if devices == 1 else kept / _file_name(device.name))


def _keep(measured: ProfiledBundle, raw: Path, folder: Path) -> None:
    """Write ``profile.json``, and copy the raw times."""
    with replacing(folder, _PLACES):
        for times in sorted(raw.glob("*.npy")):
            with disk_errors(folder, alone=True, wanted_bytes=times.stat().st_size):
                shutil.copyfile(times, folder / times.name)
        write_profile(measured.json(), folder)


def _ignore(_done: int, _total: int, _note: str) -> None:
    """Ignore the progress."""


def _ignore_refusal(_device: str, _reason: str) -> None:
    """Ignore the refusal."""


def _file_name(device: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", device).strip("-")


def _ledger(path: Path, manifest: Manifest) -> JsonObject:
    try:
        ledger = json.loads(read_file(path, manifest, "ledger.json"))
    except ValueError as error:
        raise BundleError(f"{path / 'ledger.json'}: is not valid JSON: {error}") from error
    if not isinstance(ledger, dict):
        raise BundleError(f"{path / 'ledger.json'}: must be a JSON object, not a {type(ledger).__name__}")
    return ledger


@dataclass(frozen=True)
class VerifiedBundle:
    """A bundle's verification on one device.

    Attributes:
        manifest: The bundle's manifest.
        runtime: Name of the library that ran the bundle.
        result: How the bundle's outputs compare with those recorded where it was built.
    """

    manifest: Manifest
    runtime: str
    result: Verification


def verify(bundle: Path | str, *, device: str | None = None, runtime: str | None = None) -> VerifiedBundle:
    """Check every file of a bundle, and compare its outputs on its reference samples with those recorded.

    Args:
        bundle: The bundle's folder.
        device: Where the bundle runs, e.g. ``"ssh://user@board"``; by default in this very process.
        runtime: Open the bundle with this runtime instead of its own, as for :func:`edgekd.load`.

    Raises:
        BundleError: The folder is no bundle, or the bundle was altered.
        DeviceError: There is no such device, the device does not verify bundles, or it was lost.
        MissingDependency: The device lacks what the bundle needs.
        ModelError: The engine cannot be opened there.
    """
    path = Path(bundle)
    if device is None:
        with load(path, runtime=runtime, allow_rejected=True) as loaded:
            return VerifiedBundle(loaded.manifest, loaded.runtime.name, loaded.verify())
    manifest, library = check_bundle(path, runtime)
    with ExitStack() as stack:
        opened = _open(device, stack)
        if not isinstance(opened, Verifier):
            raise DeviceError(f"{opened.name} does not verify bundles; this machine (local) and boards (ssh://...) do")
        return VerifiedBundle(manifest, library.name, opened.verify(path, library, 1, lambda _: None))


def _open(request: str, stack: ExitStack) -> Device:
    device = open_device(request)
    stack.callback(device.close)
    if reason := device.missing():
        raise DeviceError(f"--device {request}: {reason}")
    return device
