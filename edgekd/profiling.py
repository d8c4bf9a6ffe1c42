"""Measure a finished bundle where it is: on the device that it is for."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from edgekd.devices.browser import BrowserDevice
from edgekd.devices.local import LocalDevice
from edgekd.errors import BundleError, DeviceError, OutputError
from edgekd.files import make_folder
from edgekd.runtime.bundle import engine_file, load, read_branches
from edgekd.runtime.layers import fold
from edgekd.runtime.manifest import REFERENCE, read_file
from edgekd.target import load_target, shipped_targets

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.recipe import ProfileConfig
    from edgekd.runtime.manifest import Manifest
    from edgekd.runtime.measure import Profile

_ENGINE = "engine"


@dataclass(frozen=True)
class Profiled:
    """A bundle as it was measured.

    Attributes:
        manifest: the bundle's.
        ledger: its ``ledger.json``.
        runtime: the library that ran it.
        device: what ran it, in a user's words.
        profile: of its engine alone.
    """

    manifest: Manifest
    ledger: dict[str, Any]
    runtime: str
    device: str
    profile: Profile


def profile_bundle(
    path: Path,
    runtime: str | None,
    config: ProfileConfig,
    advance: Callable[[int, int, str], None],
    folder: Path | None = None,
) -> Profiled:
    """Check a bundle and measure its ``deploy`` variant on its reference samples.

    A bundle for the browser is measured in a browser, unless ``runtime`` says otherwise.

    Args:
        path: the bundle's folder.
        runtime: as for :func:`edgekd.load`.
        config: threads, how many inferences and fresh processes, and what else; where it names no power rails, those of
            the bundle's target are read.
        advance: called after each step with steps done, steps in all, and what came out.
        folder: keeps the raw times; None to drop them.

    Raises:
        BundleError: it is no bundle, or was altered.
        MissingDependency: its engine library is not installed.
        ModelError: its engine cannot be opened here.
        DeviceError: the machine lacks what the bundle needs, or the measuring process was lost.
        OutputError: ``folder`` cannot be made.
    """
    with load(path, runtime=runtime, threads=config.threads, allow_rejected=True) as bundle:
        manifest, library = bundle.manifest, bundle.runtime
    branches, ledger = read_branches(path, manifest), _ledger(path, manifest)
    device = BrowserDevice() if library.name == "onnxruntime-web" else LocalDevice()
    if reason := device.missing():
        raise DeviceError(reason)
    if not config.rails and manifest.target in shipped_targets():
        config = replace(config, rails=load_target(manifest.target).power_rails)
    engine = path / engine_file(manifest, "deploy", library)
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_folder(folder, OutputError, "--output")
        found = device.profile({_ENGINE: engine}, library, path / REFERENCE, folder, config, advance)
    return Profiled(manifest, ledger, library.name, device.name, fold(found, {_ENGINE: branches}))


def _ledger(path: Path, manifest: Manifest) -> dict[str, Any]:
    try:
        ledger = json.loads(read_file(path, manifest, "ledger.json"))
    except ValueError as error:
        raise BundleError(f"{path / 'ledger.json'}: is not valid JSON: {error}") from error
    if not isinstance(ledger, dict):
        raise BundleError(f"{path / 'ledger.json'}: must be a JSON object, not a {type(ledger).__name__}")
    return ledger
