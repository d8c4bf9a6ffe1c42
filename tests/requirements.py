"""What some tests need besides Python's packages: how to find it, and the command that brings it.

A test that needs something takes its mark from this table and from nowhere else (``@NPM.mark``, or ``NPM.demand()``
inside of a fixture), so that the end of a run can say what was skipped, and how to run it.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import axe
import pytest

from edgekd.devices.browser.chromium import find_chromium
from edgekd.devices.browser.device import BrowserDevice
from edgekd.devices.emulated.device import EmulatedDevice
from edgekd.errors import DeviceError
from edgekd.runtime.backends.cuda import gpu_name
from edgekd.tasks.catalogue import MNIST

#: Where programs are that only administrators have in their PATH.
_SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True)
class Requirement:
    """Something that tests need.

    Attributes:
        kind: What kind of tests need it.
        find: Return what this machine lacks, or None where it lacks nothing.
        remedy: The command that brings it, or the machine that has it.
    """

    kind: str
    find: Callable[[], str | None]
    remedy: str

    @cached_property
    def lacking(self):
        """What this machine lacks, or None; it is looked for once."""
        return self.find()

    @property
    def reason(self):
        """Why a test is skipped; :func:`kinds_skipped` reads it back."""
        return f"{self.kind}: {self.lacking}; {self.remedy}"

    @property
    def mark(self):
        """Mark of a test, or of a module, that needs it."""
        return pytest.mark.skipif(self.lacking is not None, reason=self.reason)

    def demand(self):
        """Skip the test that runs, unless it is here."""
        if self.lacking is not None:
            pytest.skip(self.reason)


def which(name):
    """Return a program's path, also where only administrators have it in their PATH, or None."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM]))


def programs(*names):
    """Return a search for programs."""

    def find():
        absent = [name for name in names if which(name) is None]
        return f"there is no {', no '.join(absent)}" if absent else None

    return find


def _sshd():
    return programs("sshd", "ssh", "ssh-keygen")() or _private_run()


def _private_run():
    """Return why root cannot run sshd, which wants a folder below /run, without changing the system."""
    return _mounts() if os.geteuid() == 0 else None


def _mounts():
    if os.geteuid() != 0:
        return "only root may mount a small disk"
    tried = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True, check=False,
    )  # fmt: skip
    return None if tried.returncode == 0 else "root may not mount anything in this container"


def _old_python():
    found = which("pypy3")
    asked = "import sys; print(sys.version_info < (3, 10))"
    said = found and subprocess.run([found, "-c", asked], check=False, capture_output=True, text=True).stdout.strip()
    return None if said == "True" else "there is no Python before 3.10"


def _chromium():
    try:
        find_chromium()
    except DeviceError as error:
        return str(error)
    return None


def _axe():
    return _chromium() or (None if axe.script().is_file() else axe.MISSING)


def _av_digits():
    return None if MNIST.fetched else programs("npm")()


def _browser():
    return BrowserDevice().missing()


def _emulated(processor):
    return lambda: EmulatedDevice(processor).missing()


def _apt():
    return programs("qemu-aarch64-static", "apt-get", "dpkg-deb")()


def _rtx():
    here = (platform.system(), platform.machine())
    return None if here == ("Linux", "x86_64") else f"TensorRT-RTX has no package for {' on '.join(here)}"


def _x86():
    return None if platform.machine() == "x86_64" else f"this machine is {platform.machine()}"


def _no_gpu():
    return None if gpu_name() == "none" else f"this machine has a GPU, {gpu_name()}"


def _no_openvino_gpu():
    from edgekd.runtime.backends.openvino import devices

    return "this machine has a GPU that OpenVINO knows" if "GPU" in devices() else None


def _linux():
    return None if platform.system() == "Linux" else f"this is {platform.system()}"


_ELSEWHERE = "run them on a machine without one"
_DEVICES = "apt-get install {} && make devices"

LINUX = Requirement("what Linux alone has", _linux, "run them on Linux")
X86 = Requirement("x86-64 hosts", _x86, "run them on x86-64")
RTX_PACKAGE = Requirement("TensorRT-RTX", _rtx, "run them on x86-64 Linux")
NO_GPU = Requirement("machines without a GPU", _no_gpu, _ELSEWHERE)
NO_OPENVINO_GPU = Requirement("machines without a GPU that OpenVINO knows", _no_openvino_gpu, _ELSEWHERE)
SSH = Requirement("boards over SSH", _sshd, "apt-get install openssh-server openssh-client")
SMALL_DISK = Requirement("full disks", _mounts, "run them as root, in a container with --cap-add SYS_ADMIN")
OLD_PYTHON = Requirement("boards with an old Python", _old_python, "apt-get install pypy3")
NPM = Requirement("npm packages", programs("npm"), "apt-get install npm")
AV_DIGITS_DATA = Requirement("npm packages", _av_digits, "apt-get install npm")
CHROMIUM = Requirement("the browser", _chromium, _DEVICES.format("chromium npm"))
AXE = Requirement("the browser", _axe, _DEVICES.format("chromium npm"))
BROWSER = Requirement("the browser", _browser, _DEVICES.format("chromium npm"))
QEMU = Requirement("emulated processors", programs("qemu-aarch64-static"), _DEVICES.format("qemu-user-static"))
HASWELL = Requirement("emulated processors", _emulated("haswell"), _DEVICES.format("qemu-user-static"))
ARM = Requirement("emulated processors", _emulated("cortex-a76"), _DEVICES.format("qemu-user-static"))
APT = Requirement("emulated processors", _apt, _DEVICES.format("qemu-user-static"))

ALL = tuple(value for value in globals().values() if isinstance(value, Requirement))


def kinds_skipped(reasons):
    """Return the kinds that reasons of skipped tests name, in the table's order, each with what brings it."""
    named = [one for one in ALL if any(reason.startswith(f"{one.kind}: ") for reason in reasons)]
    return list(dict.fromkeys((one.kind, one.remedy) for one in named))


def in_one_line(reasons):
    """Say which kinds of tests were skipped, each with what brings it; None where none were."""
    skipped = kinds_skipped(reasons)
    if not skipped:
        return None
    count = "1 kind of tests was" if len(skipped) == 1 else f"{len(skipped)} kinds of tests were"
    return f"{count} skipped: {', '.join(f'{kind} ({remedy})' for kind, remedy in skipped)}"
