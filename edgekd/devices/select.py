"""Select the machine on which a target's engines run, by the option ``--device`` or by what is at hand."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from edgekd.devices.base import Absent
from edgekd.devices.emulated.processors import find_processor, processors
from edgekd.devices.ssh.address import SCHEME
from edgekd.errors import DeviceError, TargetError, nearest
from edgekd.runtime.backends.registry import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from edgekd.config.target import Target
    from edgekd.devices.base import Device
    from edgekd.devices.refusals import Refusals

KINDS = ("local", "browser", "emulated:PROCESSOR", "ssh://[USER@]HOST[:PORT][?python=COMMAND]", "none")


def assign_devices(
    targets: Sequence[Target], requests: Iterable[str], refusals: Refusals
) -> dict[str, Device | Absent]:
    """Return each target's device, by the target's name, without those that refuse.

    Args:
        targets: The targets of one build.
        requests: ``DEVICE`` for all targets, or ``TARGET=DEVICE`` for one; the last that fits a target counts. A board
            that is named for several targets is one device.
        refusals: Takes the targets whose device does not answer, is not of their kind, or lacks something.

    Raises:
        TargetError: a request names a target that is not built.
        DeviceError: there is no such device, or no target has one.
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
    boards = {device: open_device(device) for device in wanted.values() if device and device.startswith(SCHEME)}
    with ExitStack() as stack:
        for board in boards.values():
            stack.callback(board.close)
        found = {
            target.name: refusals.attempt(target.name, partial(select_device, target, wanted[target.name], boards))
            for target in targets
        }
        stack.pop_all()
    return {name: device for name, device in found.items() if device is not None}


def _split(request: str) -> tuple[str | None, str]:
    """Split ``TARGET=DEVICE``; the address of a board may hold a "=" of its own."""
    before, scheme, address = request.partition(SCHEME)
    name, equals, device = before.rpartition("=")
    return name if equals else None, device + scheme + address


def select_device(target: Target, request: str | None, boards: Mapping[str, Device] | None = None) -> Device | Absent:
    """Return the device that a target's engines run on.

    Args:
        target: The target, of whose kind the device must be.
        request: "local", "browser", "emulated:<processor>", "ssh://..." or "none"; None for what is at hand.
        boards: The boards that other targets have already, by request.

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
    if reason := device.refusal(target, runtime) or device.missing():
        raise DeviceError(f"--device {request}: {reason}")
    return device


def open_device(request: str) -> Device:
    """Return a device, whatever target it may fit. Only its own kind is imported.

    Args:
        request: "local", "browser", "emulated:<processor>" or "ssh://...".

    Raises:
        DeviceError: there is no such device.
    """
    if request == "local":
        from edgekd.devices.local import LocalDevice

        return LocalDevice()
    if request == "browser":
        from edgekd.devices.browser.device import BrowserDevice

        return BrowserDevice()
    if request.startswith("emulated:"):
        from edgekd.devices.emulated.device import EmulatedDevice

        return EmulatedDevice(request.removeprefix("emulated:"))
    if request.startswith(SCHEME):
        from edgekd.devices.ssh.device import SshDevice

        return SshDevice(request)
    raise DeviceError(f"--device {request}: there is no such device{nearest(request, KINDS)}")


def _at_hand(target: Target, runtime: Runtime) -> Device | Absent:
    device = open_device("browser" if runtime.backend.in_browser else "local")
    reason = device.refusal(target, runtime) or device.missing()
    return Absent(reason) if reason else device


def known_devices() -> tuple[Device, ...]:
    """Return every device that this host can offer, installed or not."""
    return tuple(map(open_device, ("local", "browser", *(f"emulated:{name}" for name in processors()))))


def install(name: str, advance: Callable[[int, int, str], None]) -> Path | None:
    """Fetch what a device needs into the user's cache, once.

    Args:
        name: The device's name.
        advance: Called after each step with the steps done, the steps in all, and what was done.

    Returns:
        The folder that was installed; None for a device that needs nothing.

    Raises:
        DeviceError: there is no such device, or what it needs cannot be fetched.
    """
    if name == "browser":
        from edgekd.devices.browser.library import install as install_library

        return install_library(advance)
    if name.startswith("emulated:"):
        from edgekd.devices.emulated.install import install_processor

        return install_processor(find_processor(name.removeprefix("emulated:")).name, advance)
    if name == "local":
        return None
    raise DeviceError(f"there is no device '{name}' to install{nearest(name, (d.name for d in known_devices()))}")
