"""What an emulated processor runs: this host's own Python, or for ARM a user space of its own.

The user space consists of a few of Debian's packages (C library, Python) and the wheels of numpy and ONNX Runtime, in
the very versions that this host has, so that only the processor differs. They are unpacked, never installed: no root,
no chroot, nothing registered with the system.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import machine

from edgekd.devices.emulated.processors import Processor, find_processor
from edgekd.devices.emulated.qemu import find_qemu, which_qemu
from edgekd.errors import DeviceError
from edgekd.files import missing, user_cache
from edgekd.runtime.measure.machine import package_versions
from edgekd.stages.cache import digest

#: Python packages of the user space. ONNX Runtime needs no other to run an engine.
PACKAGES = ("numpy", "onnxruntime")

#: In an installed folder: the Python packages, and the versions of everything that it was made of.
WHEELS, VERSIONS = "wheels", "versions.json"

#: Part of the folder's name: another layout is another folder.
_LAYOUT = 1


@dataclass(frozen=True)
class Debian:
    """A release of Debian, its Python, and the libraries that this Python and the wheels link."""

    suite: str
    python: str
    glibc_minor: int
    libraries: tuple[str, ...]

    @property
    def packages(self) -> tuple[str, ...]:
        """The names of the Debian packages that are unpacked."""
        python = f"python{self.python}"
        return (f"{python}-minimal", f"lib{python}-minimal", f"lib{python}-stdlib", *self.libraries)


_COMMON = ("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5")
_BOOKWORM = Debian("bookworm", "3.11", 36, (*_COMMON, "libssl3"))
_TRIXIE = Debian("trixie", "3.13", 41, (*_COMMON, "libssl3t64"))


def installed_root(processor: str) -> Path | None:
    """Return the folder that the processor's paths begin in (``/`` where it runs this host's own), or None.

    Raises:
        DeviceError: the processor is not known.
    """
    wanted = find_processor(processor)
    if which_qemu(wanted) is None:
        return None
    if wanted.native:
        return Path("/") if wanted.arch == machine() else None
    folder = user_space_folder()
    return folder / wanted.name if folder.is_dir() else None


def python_command(processor: Processor, root: Path) -> list[str]:
    """Return the command that runs Python as on ``processor``, from the folder of :func:`installed_root`.

    Raises:
        DeviceError: QEMU is missing or too old.
    """
    emulator = [find_qemu(processor).path, "-cpu", processor.model]
    if processor.native:
        return [*emulator, sys.executable]
    python = next((root / "usr" / "bin").glob("python3.*"))
    return [*emulator, "-L", str(root), str(python), "-S"]  # -S: the host's dist-packages are not this processor's


def guest_environment(root: Path, *sources: Path) -> dict[str, str]:
    """Return the whole environment of an ARM user space's Python: its wheels, and sources after them."""
    path = os.pathsep.join(map(str, (root.parent / WHEELS, *sources)))
    settings = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
    return {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1", **settings}


def guest_versions(root: Path) -> dict[str, str]:
    """Return the versions of the packages of an ARM user space, without starting it."""
    archives = json.loads((root.parent / VERSIONS).read_text(encoding="utf-8"))
    python = next(version for name, version in archives.items() if name.startswith("python"))
    wheels = {item.name: item.version for item in metadata.distributions(path=[str(root.parent / WHEELS)])}
    return {"python": python, "libc6": archives["libc6"], **wheels}


def user_space_folder() -> Path:
    """Return the folder of the ARM user space for this host's versions, which may not exist yet."""
    pinned = {"layout": _LAYOUT, "debian": debian_release().suite, **host_versions()}
    return user_cache(DeviceError, "the emulator") / "emulators" / f"aarch64-{digest(pinned)}"


def debian_release() -> Debian:
    """Return the release whose Python has wheels of the versions that this host's Python has."""
    return _BOOKWORM if sys.version_info < (3, 12) else _TRIXIE


def host_versions() -> dict[str, str]:
    """Return this host's versions of :data:`PACKAGES`, without the names of builds ("+cpu")."""
    versions = package_versions(PACKAGES)
    for name in PACKAGES:
        if name not in versions:
            raise missing(name, "build")
    return {name: version.partition("+")[0] for name, version in versions.items()}
