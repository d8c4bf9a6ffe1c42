"""Measure a finished bundle where it is: on the device that it is for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.devices.browser import BrowserDevice
from edgekd.devices.local import LocalDevice
from edgekd.errors import DeviceError
from edgekd.runtime.bundle import engine_file, load
from edgekd.runtime.manifest import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekd.recipe import ProfileConfig
    from edgekd.runtime.manifest import Manifest
    from edgekd.runtime.measure import Profile


def profile_bundle(
    path: Path, runtime: str | None, config: ProfileConfig, advance: Callable[[int, int, str], None]
) -> tuple[Manifest, Profile]:
    """Check a bundle and time its ``deploy`` variant on its reference samples.

    A bundle for the browser is timed in a browser, unless ``runtime`` says otherwise.

    Args:
        path: the bundle's folder.
        runtime: as for :func:`edgekd.load`.
        config: threads, and how many inferences and fresh starts.
        advance: called after each step with steps done, steps in all, and what came out.

    Raises:
        BundleError: it is no bundle, or was altered.
        MissingDependency: its engine library is not installed.
        ModelError: its engine cannot be opened here.
        DeviceError: the machine lacks what the bundle needs, or the measuring process was lost.
    """
    with load(path, runtime=runtime, threads=config.threads, allow_rejected=True) as bundle:
        manifest, library = bundle.manifest, bundle.runtime
    device = BrowserDevice() if library.name == "onnxruntime-web" else LocalDevice()
    if reason := device.missing():
        raise DeviceError(reason)
    engine = path / engine_file(manifest, "deploy", library)
    with tempfile.TemporaryDirectory() as scratch:
        found = device.profile({"engine": engine}, library, path / REFERENCE, Path(scratch), config, advance)
    return manifest, found
