"""From what a user says with ``--device``, or nothing, to the machine on which a target's engines run."""

from __future__ import annotations

import platform
from contextlib import ExitStack
from typing import TYPE_CHECKING

from edgekd.devices import browser
from edgekd.devices.base import Absent
from edgekd.devices.browser import BrowserDevice
from edgekd.devices.emulated import qemu
from edgekd.devices.emulated.device import EmulatedDevice
from edgekd.devices.local import LocalDevice
from edgekd.devices.ssh import SCHEME, SshDevice
from edgekd.errors import DeviceError, TargetError, nearest
from edgekd.runtime.backends.registry import Runtime
from edgekd.runtime.measure.machine import cpu_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from edgekd.config.target import Target
    from edgekd.devices.base import Device

KINDS = ("local", "browser", "emulated:PROCESSOR", "ssh://[USER@]HOST[:PORT][?python=COMMAND]", "none")


def assign_devices(targets: Sequence[Target], requests: Iterable[str]) -> dict[str, Device | Absent]:
    """Return each target's device, by the target's name.

    Args:
        targets: of one build.
        requests: ``DEVICE`` for all targets, or ``TARGET=DEVICE`` for one; the last that fits a target counts. A board
            that is named for several targets is one device.

    Raises:
        TargetError: a request names a target that is not built.
        DeviceError: there is no such device, it is not of the target's kind, or it is not installed.
    """
    wanted: dict[str, str | None] = dict.fromkeys(target.name for target in targets)
    for request in requests:
        name, device = _split(request)
        if name is not None and name not in wanted:
            raise TargetError(
                f"--device {request}: '{name}' is not among the targets of this build{nearest(name, wanted)}"
            )
        for target_name in wanted if name is None else [name]:
            wanted[target_name] = device
    boards = {device: SshDevice(device) for device in wanted.values() if device and device.startswith(SCHEME)}
    with ExitStack() as stack:
        for board in boards.values():
            stack.callback(board.close)
        found = {target.name: choose(target, wanted[target.name], boards) for target in targets}
        stack.pop_all()
    return found


def _split(request: str) -> tuple[str | None, str]:
    """Split ``TARGET=DEVICE``; the address of a board may hold a "=" of its own."""
    before, scheme, address = request.partition(SCHEME)
    name, equals, device = before.rpartition("=")
    return name if equals else None, device + scheme + address


def choose(target: Target, request: str | None, boards: Mapping[str, SshDevice] | None = None) -> Device | Absent:
    """Return the device that a target's engines run on.

    Args:
        target: of which kind it must be.
        request: "local", "browser", "emulated:<processor>", "ssh://..." or "none"; None for what is at hand.
        boards: those that other targets have already, by request.

    Raises:
        DeviceError: there is no such device, it is not of the target's kind, or it is not installed.
        MissingDependency: it lacks what the target's runtime needs.
    """
    runtime = Runtime(target.runtime, target.options)
    if request == "none":
        return Absent("no device was asked for")
    if request is None:
        return _at_hand(target, runtime)
    device = (boards or {}).get(request) or open_device(request)
    if reason := _refusal(target, runtime, device) or device.missing():
        raise DeviceError(f"--device {request}: {reason}")
    return device


def open_device(request: str) -> Device:
    """Return a device for whatever runs on it.

    Args:
        request: "local", "browser", "emulated:<processor>" or "ssh://...".

    Raises:
        DeviceError: there is no such device.
    """
    if request == "local":
        return LocalDevice()
    if request == "browser":
        return BrowserDevice()
    if request.startswith("emulated:"):
        return EmulatedDevice(request.removeprefix("emulated:"))
    if request.startswith(SCHEME):
        return SshDevice(request)
    raise DeviceError(f"--device {request}: there is no such device{nearest(request, KINDS)}")


def _refusal(target: Target, runtime: Runtime, device: Device) -> str | None:
    """Say why a device is not of the target's kind, or cannot run its engines."""
    for_browser = target.runtime == "onnxruntime-web"
    if isinstance(device, BrowserDevice):
        return None if for_browser else f"target '{target.name}' is for {target.runtime}, not for a browser"
    if isinstance(device, EmulatedDevice):
        return _misfit(target, device.arch, target.hosts.model, device.name) or device.refuses(runtime)
    if for_browser:
        return "a browser target runs in a browser: --device browser"
    if isinstance(device, SshDevice):
        # The architecture first: it is known before anything is sent there.
        return _misfit(target, device.arch, target.hosts.model, "it") or _misfit(
            target, device.arch, device.describe(runtime)["cpu"], "it"
        )
    return _misfit(target, platform.machine(), cpu_model()) or runtime.absent()


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
    return LocalDevice(), BrowserDevice(), *(EmulatedDevice(processor) for processor in qemu.processors())


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
        return qemu.install(name.removeprefix("emulated:"), advance)
    if name == "local":
        return None
    raise DeviceError(f"there is no device '{name}' to install{nearest(name, (d.name for d in known_devices()))}")
