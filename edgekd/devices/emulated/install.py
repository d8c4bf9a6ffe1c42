"""Make the ARM user space: fetch Debian's packages and wheels, check them, and unpack them into the user's cache."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path
from platform import machine
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekd.devices.emulated.processors import Processor, find_processor, processors
from edgekd.devices.emulated.qemu import find_qemu, run_command
from edgekd.devices.emulated.user_space import (
    PACKAGES,
    VERSIONS,
    WHEELS,
    Debian,
    debian_release,
    guest_environment,
    host_versions,
    installed_root,
    python_command,
    user_space_folder,
)
from edgekd.errors import DeviceError
from edgekd.files import make_folder
from edgekd.stages.cache import Cache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MIRROR = "http://deb.debian.org/debian"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def install_processor(processor: str, advance: Callable[[int, int, str], None]) -> Path:
    """Install what a processor needs, once for all processors of its architecture.

    Returns as :func:`~edgekd.devices.emulated.user_space.installed_root` does.

    Args:
        processor: The processor's name.
        advance: Called before each step with the steps done, the steps in all, and the next step.

    Raises:
        DeviceError: the processor is not known, QEMU, apt, the network or a wheel is missing, or the cache folder
            cannot be written.
        MissingDependency: this host has no ONNX Runtime whose version could be matched.
    """
    wanted = find_processor(processor)
    find_qemu(wanted)
    if (root := installed_root(processor)) is not None:
        return root
    if wanted.native:
        raise DeviceError(
            f"{wanted.name} runs this host's own Python, which is built for {machine()}, not {wanted.arch}"
        )
    _check_tools()
    folder = user_space_folder()
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
    return folder / wanted.name


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

    debian, root = debian_release(), work / "root"
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
        run_command(["dpkg-deb", "-x", str(archive), str(root)], f"{archive.name} cannot be unpacked")
    if not (root / "lib").exists():  # from trixie on, what was there lies in usr/lib alone
        (root / "lib").symlink_to("usr/lib")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(root / WHEELS)
    versions = {name: version for name, version, _ in (archive.stem.split("_") for archive in archives)}
    (root / VERSIONS).write_text(json.dumps(versions, indent=1), encoding="utf-8")
    step(4)
    for processor in map(find_processor, processors()):
        if not processor.native:
            _start(processor, _make_view(root, processor))
    advance(len(_STEPS), len(_STEPS), "installed")
    return root


def _make_view(root: Path, processor: Processor) -> Path:
    """Make the folder that QEMU uses as ``/``: the common tree, and the processor's own ``/proc/cpuinfo``."""
    view = root / processor.name
    (view / "proc").mkdir(parents=True)
    (view / "proc" / "cpuinfo").write_text(processor.cpuinfo, encoding="utf-8")
    for name in ("usr", "lib"):
        (view / name).symlink_to(Path("..") / name)
    return view


def _start(processor: Processor, view: Path) -> None:
    """Import everything once, which proves that it works and leaves bytecode, which is slow to compile in emulation."""
    names = ", ".join(PACKAGES)
    environment = {**guest_environment(view), "PYTHONDONTWRITEBYTECODE": ""}
    command = [*python_command(processor, view), "-c", f"import base64, inspect, json, zipfile, {names}"]
    run_command(command, f"{names} cannot be imported on an emulated {processor.name}", environment)


class _Apt:
    """apt, configured for one release for arm64 and without this host's packages; it needs no root for that."""

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
        run_command(["apt-get", "-qq", *options, *arguments], failed, folder=self._folder / "archives")


def _mirror() -> str:
    """Return the mirror of Debian that this host's apt uses, where it uses one."""
    fields = "$(COMPONENT) $(REPO_URI)"
    listed = run_command(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], "apt cannot list its sources"
    )
    pairs = (line.split() for line in listed.splitlines())
    return next((uri for component, uri in pairs if component == "main" and uri.endswith("/debian/")), _MIRROR)


def _download_wheels(debian: Debian, folder: Path) -> list[Path]:
    """Download the wheels with pip as the user would run it, so that its indexes and proxies hold."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, debian.glibc_minor + 1)]
    wanted = [f"{name}=={version}" for name, version in host_versions().items()]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", f"--python-version={debian.python}", f"--dest={folder}"]
    command += [*platforms, "--platform=manylinux2014_aarch64", *wanted]
    run_command(command, f"pip cannot fetch the arm64 wheels of {' and '.join(wanted)} for Python {debian.python}")
    return sorted(folder.glob("*.whl"))
