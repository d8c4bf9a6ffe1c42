"""Other processors on this host, by QEMU's user-mode emulation: which there are, and what they need installed.

An ARM processor needs a user space of its own: a few of Debian's packages (C library, Python) and the wheels of numpy
and ONNX Runtime, of the very versions that this host has, so that what differs is the processor's doing. They are
unpacked, never installed: no root, no chroot, nothing registered with the system. An x86-64 processor runs this host's
own Python.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import machine
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekd.errors import DeviceError, nearest
from edgekd.files import make_folder, missing, user_cache
from edgekd.runtime.measure.machine import package_versions
from edgekd.stages.cache import Cache, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Python packages of the user space. ONNX Runtime needs no other to run an engine.
PACKAGES = ("numpy", "onnxruntime")

#: In an installed folder: the Python packages, and the versions of all that it was made of.
WHEELS, VERSIONS = "wheels", "versions.json"

_MIRROR = "http://deb.debian.org/debian"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: QEMU emulates AVX2 from here on, and knows the Cortex-A76.
_OLDEST = (7, 2)
#: Part of the folder's name: another layout is another folder.
_LAYOUT = 1


@dataclass(frozen=True)
class Processor:
    """A processor that can be emulated.

    Attributes:
        name: what a user calls it.
        arch: its architecture, as :func:`platform.machine` has it.
        model: QEMU's ``-cpu``.
        cpuinfo: for ARM, one core of ``/proc/cpuinfo``. ONNX Runtime chooses its kernels by it and crashes at the
            host's; the features must be those that QEMU emulates for the model.
    """

    name: str
    arch: str
    model: str
    cpuinfo: str = ""

    @property
    def native(self) -> bool:
        """Whether it runs this host's own Python and packages, and needs no user space of its own."""
        return not self.cpuinfo


def _arm(name: str, part: str, variant: str, revision: str, features: str) -> Processor:
    lines = {
        "processor": "0",
        "Features": features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": variant,
        "CPU part": part,
        "CPU revision": revision,
    }
    return Processor(name, "aarch64", name, "".join(f"{key}\t: {value}\n" for key, value in lines.items()) + "\n")


_PROCESSORS = {
    processor.name: processor
    for processor in (
        _arm("cortex-a72", "0xd08", "0x0", "3", "fp asimd aes pmull sha1 sha2 crc32 cpuid"),
        _arm(
            "cortex-a76", "0xd0b", "0x4", "1",
            "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
        ),
        # Without what QEMU only warns that it lacks; none of it is arithmetic.
        Processor("haswell", "x86_64", "Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class _Debian:
    """A release of Debian, its Python, and what that Python and the wheels link."""

    suite: str
    python: str
    glibc_minor: int
    libraries: tuple[str, ...]

    @property
    def packages(self) -> tuple[str, ...]:
        python = f"python{self.python}"
        return (f"{python}-minimal", f"lib{python}-minimal", f"lib{python}-stdlib", *self.libraries)


_COMMON = ("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5")
_BOOKWORM = _Debian("bookworm", "3.11", 36, (*_COMMON, "libssl3"))
_TRIXIE = _Debian("trixie", "3.13", 41, (*_COMMON, "libssl3t64"))


def processors() -> tuple[str, ...]:
    """Return the names of all processors that can be emulated."""
    return tuple(_PROCESSORS)


def find_processor(name: str) -> Processor:
    """Return a processor by its name, or by what is left of it without "cortex-".

    Raises:
        DeviceError: it is not known.
    """
    found = _PROCESSORS.get(name) or _PROCESSORS.get(f"cortex-{name}")
    if found is None:
        raise DeviceError(f"no processor '{name}' can be emulated{nearest(name, _PROCESSORS)}")
    return found


def installed_root(processor: str) -> Path | None:
    """Return the folder that the processor's paths begin in (``/`` where it runs this host's own), or None.

    Raises:
        DeviceError: the processor is not known.
    """
    found = find_processor(processor)
    if _which(found) is None:
        return None
    if found.native:
        return Path("/") if found.arch == machine() else None
    folder = _folder()
    return folder / found.name if folder.is_dir() else None


def install_processor(processor: str, advance: Callable[[int, int, str], None]) -> Path:
    """Make what a processor needs, once for all processors of its architecture; return as :func:`installed_root` does.

    Args:
        processor: its name.
        advance: called before each step with steps done, steps in all, and what is done next.

    Raises:
        DeviceError: the processor is not known, QEMU, apt, the network or a wheel is missing, or the cache folder
            cannot be written.
        MissingDependency: this host has no ONNX Runtime whose version could be matched.
    """
    found = find_processor(processor)
    find_qemu(found)
    if (there := installed_root(processor)) is not None:
        return there
    if found.native:
        raise DeviceError(f"{found.name} runs this host's own Python, which is built for {machine()}, not {found.arch}")
    _check_tools()
    folder = _folder()
    make_folder(folder.parent, DeviceError, "XDG_CACHE_HOME")
    with Cache(folder.parent).hold(folder.name, lambda: advance(0, len(_STEPS), "another installation, to wait for")):
        try:
            for abandoned in folder.parent.glob(f".{folder.name}-*"):
                shutil.rmtree(abandoned)
            if not folder.is_dir():
                with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
                    _build(Path(work), advance).rename(folder)
        except OSError as error:
            where = f"{folder}: cannot be made: {error.strerror or error}"
            raise DeviceError(f"{where}; choose another folder with XDG_CACHE_HOME") from error
    return folder / found.name


def python_command(processor: Processor, root: Path) -> list[str]:
    """Return the command that runs Python as on ``processor``, from where :func:`installed_root` has it.

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
    """Return the versions of what an ARM user space was made of, without starting it."""
    archives = json.loads((root.parent / VERSIONS).read_text(encoding="utf-8"))
    python = next(version for name, version in archives.items() if name.startswith("python"))
    wheels = {item.name: item.version for item in metadata.distributions(path=[str(root.parent / WHEELS)])}
    return {"python": python, "libc6": archives["libc6"], **wheels}


@dataclass(frozen=True)
class Qemu:
    """The emulator: its path, and its version such as "7.2.22"."""

    path: str
    version: str


def find_qemu(processor: Processor) -> Qemu:
    """Return the emulator of a processor's architecture.

    Raises:
        DeviceError: it is missing or too old.
    """
    path = _which(processor)
    if path is None:
        raise DeviceError(
            f"emulating {processor.name} needs qemu-{processor.arch}-static, which is not installed: "
            "apt-get install qemu-user-static"
        )
    found = re.search(r"version (\d+)\.(\d+)[.\d]*", _ask_version(path))
    if found is None or (int(found[1]), int(found[2])) < _OLDEST:
        raise DeviceError(f"{path}: emulating {processor.name} needs QEMU {_OLDEST[0]}.{_OLDEST[1]} or newer")
    return Qemu(path, found[0].removeprefix("version "))


@functools.cache
def _ask_version(path: str) -> str:
    return _run([path, "--version"], "QEMU does not tell its version")


def _which(processor: Processor) -> str | None:
    return shutil.which(f"qemu-{processor.arch}-static") or shutil.which(f"qemu-{processor.arch}")


def _folder() -> Path:
    """Return where the ARM user space for this host's versions is or will be."""
    pinned = {"layout": _LAYOUT, "debian": _debian().suite, **_host_versions()}
    return user_cache(DeviceError, "the emulator") / "emulators" / f"aarch64-{digest(pinned)}"


def _debian() -> _Debian:
    """Choose a Python for which there are wheels of the versions that this host's Python got."""
    return _BOOKWORM if sys.version_info < (3, 12) else _TRIXIE


def _host_versions() -> dict[str, str]:
    """Return this host's versions of :data:`PACKAGES`, without what only tells builds apart ("+cpu")."""
    found = package_versions(PACKAGES)
    for name in PACKAGES:
        if name not in found:
            raise missing(name, "build")
    return {name: version.partition("+")[0] for name, version in found.items()}


def _check_tools() -> None:
    lacking = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if lacking:
        raise DeviceError(
            f"an ARM user space is unpacked from Debian's packages, which needs {' and '.join(lacking)}: "
            "install it on Debian or Ubuntu"
        )
    if not _KEYRING.is_file():
        raise DeviceError(
            f"Debian's packages are checked with {_KEYRING}, which is not installed: "
            "apt-get install debian-archive-keyring"
        )


_STEPS = ("Debian's package lists", "Debian's packages", "wheels", "unpacking", "first starts under emulation")


def _build(work: Path, advance: Callable[[int, int, str], None]) -> Path:
    """Make the whole user space below ``work`` and return its folder."""

    def step(done: int) -> None:
        advance(done, len(_STEPS), _STEPS[done])

    debian, root = _debian(), work / "root"
    root.mkdir()
    step(0)
    apt = _Apt(work / "apt", debian.suite)
    apt.update()
    step(1)
    archives = apt.download(debian.packages)
    step(2)
    wheels = _download_wheels(debian, work / "downloaded")
    step(3)
    for archive in archives:
        _run(["dpkg-deb", "-x", str(archive), str(root)], f"{archive.name} cannot be unpacked")
    if not (root / "lib").exists():  # from trixie on, what was there lies in usr/lib alone
        (root / "lib").symlink_to("usr/lib")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(root / WHEELS)
    versions = {name: version for name, version, _ in (archive.stem.split("_") for archive in archives)}
    (root / VERSIONS).write_text(json.dumps(versions, indent=1), encoding="utf-8")
    step(4)
    for processor in _PROCESSORS.values():
        if not processor.native:
            _start(processor, _make_view(root, processor))
    advance(len(_STEPS), len(_STEPS), "installed")
    return root


def _make_view(root: Path, processor: Processor) -> Path:
    """Make the folder that QEMU takes for ``/``: the common tree, and the processor's own ``/proc/cpuinfo``."""
    view = root / processor.name
    (view / "proc").mkdir(parents=True)
    (view / "proc" / "cpuinfo").write_text(processor.cpuinfo, encoding="utf-8")
    for name in ("usr", "lib"):
        (view / name).symlink_to(Path("..") / name)
    return view


def _start(processor: Processor, view: Path) -> None:
    """Import everything once: it must work, and leaves its bytecode, which emulation is slow to compile."""
    names = ", ".join(PACKAGES)
    environment = {**guest_environment(view), "PYTHONDONTWRITEBYTECODE": ""}
    command = [*python_command(processor, view), "-c", f"import base64, inspect, json, zipfile, {names}"]
    _run(command, f"{names} cannot be imported on an emulated {processor.name}", environment)


class _Apt:
    """apt, told of one release for arm64 and of nothing that this host has installed; it needs no root for that."""

    def __init__(self, folder: Path, suite: str) -> None:
        self._folder = folder
        for name in ("state/lists/partial", "cache/archives/partial", "archives"):
            (folder / name).mkdir(parents=True)
        self._mirror = _mirror()
        source = f"deb [signed-by={_KEYRING}] {self._mirror} {suite} main\n"
        (folder / "sources.list").write_text(source, encoding="utf-8")
        self._options = {
            "APT::Architecture": "arm64",
            "APT::Architectures::": "arm64",
            "APT::Sandbox::User": "",  # it may not enter this folder
            "Acquire::Languages": "none",
            "Dir::Cache": folder / "cache",
            "Dir::State": folder / "state",
            "Dir::State::status": "/dev/null",
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
        }

    def update(self) -> None:
        self._get("update", "--error-on=any")

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Download these packages, without those that they depend on; apt checks their signatures."""
        self._get("download", *packages)
        return sorted((self._folder / "archives").glob("*.deb"))

    def _get(self, *arguments: str) -> None:
        options = [f"-o{name}={value}" for name, value in self._options.items()]
        failed = f"Debian's packages cannot be had from {self._mirror}; check the network and apt's proxy"
        _run(["apt-get", "-qq", *options, *arguments], failed, folder=self._folder / "archives")


def _mirror() -> str:
    """Return the mirror of Debian that this host's apt uses, where it uses one."""
    fields = "$(COMPONENT) $(REPO_URI)"
    listed = _run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], "apt cannot list its sources"
    )
    pairs = (line.split() for line in listed.splitlines())
    return next((uri for component, uri in pairs if component == "main" and uri.endswith("/debian/")), _MIRROR)


def _download_wheels(debian: _Debian, folder: Path) -> list[Path]:
    """Download the wheels with pip as the user would run it, so that its indexes and proxies hold."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, debian.glibc_minor + 1)]
    wanted = [f"{name}=={version}" for name, version in _host_versions().items()]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", f"--python-version={debian.python}", f"--dest={folder}"]
    command += [*platforms, "--platform=manylinux2014_aarch64", *wanted]
    _run(command, f"pip cannot fetch the arm64 wheels of {' and '.join(wanted)} for Python {debian.python}")
    return sorted(folder.glob("*.whl"))


def _run(command: list[str], failed: str, environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """Run a command to its end and return its stdout, or raise ``failed`` with the last that it said."""
    try:
        process = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise DeviceError(f"{failed}: {command[0]}: {error.strerror}") from error
    if process.returncode != 0:
        said = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise DeviceError(f"{failed}: {said[-1]}")
    return process.stdout
