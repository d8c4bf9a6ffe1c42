"""From what a user says with ``--device``, or nothing, to the machine on which a target's engines run."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.devices import browser, emulator
from edgekd.devices.browser import BrowserDevice
from edgekd.devices.emulated import EmulatedDevice
from edgekd.devices.local import LocalDevice
from edgekd.errors import DeviceError, TargetError, nearest
from edgekd.runtime.machine import cpu_model
from edgekd.runtime.registry import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from edgekd.devices.device import Device
    from edgekd.target import Target

KINDS = ("local", "browser", "emulated:PROCESSOR", "none")


@dataclass(frozen=True)
class Absent:
    """No device of the target's kind is at hand; ``reason`` says why not."""

    reason: str


def assign_devices(targets: Sequence[Target], requests: Iterable[str]) -> dict[str, Device | Absent]:
    """Return each target's device, by the target's name.

    Args:
        targets: of one build.
        requests: ``DEVICE`` for all targets, or ``TARGET=DEVICE`` for one; the last that fits a target counts.

    Raises:
        TargetError: a request names a target that is not built.
        DeviceError: there is no such device, it is not of the target's kind, or it is not installed.
    """
    wanted: dict[str, str | None] = dict.fromkeys(target.name for target in targets)
    for request in requests:
        name, equals, device = request.rpartition("=")
        if equals and name not in wanted:
            raise TargetError(
                f"--device {request}: '{name}' is not among the targets of this build{nearest(name, wanted)}"
            )
        for target_name in [name] if equals else wanted:
            wanted[target_name] = device
    return {target.name: choose(target, wanted[target.name]) for target in targets}


def choose(target: Target, request: str | None) -> Device | Absent:
    """Return the device that a target's engines run on.

    Args:
        target: of which kind it must be.
        request: "local", "browser", "emulated:<processor>" or "none"; None for what is at hand.

    Raises:
        DeviceError: there is no such device, it is not of the target's kind, or it is not installed.
    """
    runtime = Runtime(target.runtime, target.options)
    if request == "none":
        return Absent("no device was asked for")
    if request is None:
        return _at_hand(target, runtime)
    device: Device
    if request == "local":
        reason = _misfit(target, platform.machine(), cpu_model()) or runtime.absent()
        if reason or target.runtime == "onnxruntime-web":
            raise DeviceError(f"--device local: {reason or 'a browser target runs in a browser: --device browser'}")
        return LocalDevice()
    if request == "browser":
        if target.runtime != "onnxruntime-web":
            raise DeviceError(f"--device browser: target '{target.name}' is for {target.runtime}, not for a browser")
        device = BrowserDevice()
    elif request.startswith("emulated:"):
        device = EmulatedDevice(request.removeprefix("emulated:"))
        reason = _misfit(target, device.arch, target.hosts.model, request) or device.refuses(runtime)
        if reason:
            raise DeviceError(f"--device {request}: {reason}")
    else:
        raise DeviceError(f"--device {request}: there is no such device{nearest(request, KINDS)}")
    if reason := device.missing():
        raise DeviceError(f"--device {request}: {reason}")
    return device


def _at_hand(target: Target, runtime: Runtime) -> Device | Absent:
    if target.runtime == "onnxruntime-web":
        device = BrowserDevice()
        reason = device.missing()
        return Absent(reason) if reason else device
    reason = _misfit(target, platform.machine(), cpu_model()) or runtime.absent()
    return Absent(reason) if reason else LocalDevice()


def _misfit(target: Target, arch: str, model: str, machine: str = "this machine") -> str | None:
    """Say why a machine is not of the target's kind."""
    if arch not in target.hosts.arch:
        return f"target '{target.name}' is for {' or '.join(target.hosts.arch)}, and {machine} is {arch}"
    if target.hosts.model not in model:
        return f"target '{target.name}' is for '{target.hosts.model}', and {machine} is '{model}'"
    return None


def known_devices() -> tuple[Device, ...]:
    """Return every device that this host can offer, installed or not."""
    return LocalDevice(), BrowserDevice(), *(EmulatedDevice(processor) for processor in emulator.processors())


def install(name: str, advance: Callable[[int, int, str], None]) -> Path | None:
    """Fetch what a device needs into the user's cache, once.

    Args:
        name: of the device.
        advance: called after each step with steps done, steps in all, and what was done.

    Returns:
        Where it is; None for a device that needs nothing.

    Raises:
        DeviceError: there is no such device, or what it needs cannot be fetched.
    """
    if name == "browser":
        return browser.install(advance)
    if name.startswith("emulated:"):
        return emulator.install(name.removeprefix("emulated:"), advance)
    if name == "local":
        return None
    raise DeviceError(f"there is no device '{name}' to install{nearest(name, (d.name for d in known_devices()))}")
