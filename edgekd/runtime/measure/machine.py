"""Facts about the machine that engines are measured on, read from Linux's files.

``root`` is the folder where these files lie: "/" except for tests, which have recorded trees of other machines. The
facts that only Jetson boards have are *not verified on hardware*: their files are read as NVIDIA's Jetson Linux
Developer Guide describes them.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path("/")

#: Instructions that decide how fast INT8 is, and whether it saturates.
_INT8_FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "asimddp")
_UNREADABLE = "not readable"
_CPU = "sys/devices/system/cpu"


def usable_cores() -> int:
    """Return how many logical cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_facts(packages: Iterable[str] = (), root: Path = ROOT) -> dict[str, str]:
    """Return facts of this machine, with the versions of numpy and of ``packages``.

    A fact that every machine has but that cannot be read is "not readable"; facts of Jetsons are left out elsewhere.
    """
    facts = {
        "cpu": cpu_model(root),
        "logical_cores": str(os.cpu_count() or _UNREADABLE),
        "governor": read(root / _CPU / "cpu0/cpufreq/scaling_governor") or _UNREADABLE,
        "clock_limits": _clock_limits(root) or _UNREADABLE,
        "turbo": _turbo(root) or _UNREADABLE,
        "int8_instructions": _int8_instructions(root),
        "memory": _memory(root),
        "os": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "python": platform.python_version(),
        **jetson_facts(root),
    }
    return {**facts, **package_versions(("numpy", *packages))}


def jetson_facts(root: Path = ROOT) -> dict[str, str]:
    """Return the release, the power mode and the GPU's clock limits of a Jetson; nothing elsewhere.

    Clocks whose limits are one are those that ``jetson_clocks`` has fixed. *Not verified on hardware.*
    """
    facts = {
        "l4t": _l4t_release(root),
        "jetpack": _jetpack(root),
        "power_mode": power_mode(root),
        "gpu_clock_limits": _gpu_clock_limits(root),
    }
    return {name: value for name, value in facts.items() if value}


def power_mode(root: Path = ROOT) -> str:
    """Return the name of a Jetson's power mode, e.g. "MAXN"; "" elsewhere.

    nvpmodel keeps its number in one file, its name in another. *Not verified on hardware.*
    """
    mode = re.search(r"pmode:(\d+)", read(root / "var/lib/nvpmodel/status"))
    if mode is None:
        return ""
    number = int(mode[1])
    name = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)\s*>", read(root / "etc/nvpmodel.conf"))
    return name[1] if name else f"mode {number}"


def cpu_model(root: Path = ROOT) -> str:
    """Return the name of the processor or the board, or else the architecture; no process is started."""
    board = read(root / "proc/device-tree/model")  # ARM boards do not name their processor
    return _cpuinfo(root).get("model name") or board or platform.machine()


def identity(root: Path = ROOT) -> str:
    """Return what tells this machine from another of its kind: a digest of its serial number or its system's number.

    The serial number of an ARM board comes first, since copied disk images share the system's. The number itself must
    not leave the machine (machine-id(5)).
    """
    number = read(root / "proc/device-tree/serial-number") or read(root / "etc/machine-id") or platform.node()
    return hashlib.sha256(f"edgekd {number}".encode()).hexdigest()[:12]


def peak_rss_bytes() -> int:
    """Return this process's peak resident memory in bytes."""
    # Linux's ru_maxrss survives exec, so a child would report the peak of the larger process that started it.
    for line in read(ROOT / "proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, without importing them."""
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def gpu_clock(root: Path = ROOT) -> Path | None:
    """Return the folder with the clock of a Jetson's GPU and its limits; None where there is none.

    It is named after the GPU's address and kind: ``17000000.gpu`` with JetPack 6, ``17000000.ga10b`` with JetPack 5.
    """
    folders = sorted((root / "sys/class/devfreq").glob("*"))
    return next((path for path in folders if re.search(r"\.(gpu|g[avp]\w+)$", path.name)), None)


def read(path: Path) -> str:
    """Return a file's text without blanks and zeros around it; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \t\n")
    except OSError:
        return ""


def read_number(path: Path) -> int | None:
    """Return the whole number that a file holds; None where it cannot be read or holds something else."""
    text = read(path)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _clock_limits(root: Path) -> str:
    folder = root / _CPU / "cpu0/cpufreq"
    return _megahertz(read_number(folder / "scaling_min_freq"), read_number(folder / "scaling_max_freq"), 1000)


def _gpu_clock_limits(root: Path) -> str:
    folder = gpu_clock(root)
    return _megahertz(read_number(folder / "min_freq"), read_number(folder / "max_freq"), 10**6) if folder else ""


def _megahertz(low: int | None, high: int | None, units: int) -> str:
    """Return the limits of a clock as text; ``units`` of them are one MHz."""
    if low is None or high is None:
        return ""
    return f"{low / units:.0f} MHz, fixed" if low == high else f"{low / units:.0f}-{high / units:.0f} MHz"


def _turbo(root: Path) -> str:
    """Return whether the processor may run above its base clock: "on", "off", or "" where it cannot be read."""
    without, boost = read(root / _CPU / "intel_pstate/no_turbo"), read(root / _CPU / "cpufreq/boost")
    return {"0": "on", "1": "off"}.get(without) or {"0": "off", "1": "on"}.get(boost, "")


def _int8_instructions(root: Path) -> str:
    cpuinfo = _cpuinfo(root)
    listed = cpuinfo.get("flags") or cpuinfo.get("Features")  # x86, ARM
    if not listed:
        return _UNREADABLE
    return ", ".join(sorted(set(_INT8_FLAGS) & set(listed.split()))) or "none"


def _memory(root: Path) -> str:
    for line in read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return f"{int(line.split()[1]) / 2**20:.1f} GiB"
    return _UNREADABLE


def _cpuinfo(root: Path) -> dict[str, str]:
    """Return the first processor's entries."""
    first = read(root / "proc/cpuinfo").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _l4t_release(root: Path) -> str:
    """Return e.g. "36.4.3" of a line like ``# R36 (release), REVISION: 4.3, GCID: ...``."""
    match = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", read(root / "etc/nv_tegra_release"))
    return f"{match[1]}.{match[2]}" if match else ""


def _jetpack(root: Path) -> str:
    """Return the version of the package ``nvidia-jetpack``, as dpkg keeps it, e.g. "6.2+b77"."""
    packages = read(root / "var/lib/dpkg/status") if _l4t_release(root) else ""
    match = re.search(r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: (.+)$", packages, re.MULTILINE)
    return match[1] if match else ""
