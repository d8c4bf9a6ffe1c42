"""Latency, memory and the facts about the machine they were measured on."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Quantile:
    """A quantile of latency in ms, with the 95 % interval of order statistics."""

    value_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Latency:
    """Latency of single inferences at batch 1, in ms; None where n is too small.

    Attributes:
        n: how many were timed.
        p50: with its interval.
        p90: the same.
        p99: the same.
        mean_ms: the throughput of one stream is 1000 / mean.
        max_ms: the slowest; none is left out.
        p90_bound_ms: what the p90 is below with 99 % confidence: MLPerf's early-stopping estimate for a single stream.
    """

    n: int
    p50: Quantile | None
    p90: Quantile | None
    p99: Quantile | None
    mean_ms: float
    max_ms: float
    p90_bound_ms: float | None = None


@dataclass(frozen=True)
class Paced:
    """Inferences that begin when a sensor gives a sample, not when the one before is done.

    Attributes:
        rate_hz: samples a second.
        latency: from a sample's arrival to its result, waiting included.
        late: samples that arrived before the inference of the one before was done.
        raw_file: name of the ``.npy`` with every latency in ns, in order.
    """

    rate_hz: float
    latency: Latency
    late: int
    raw_file: str


@dataclass(frozen=True)
class Window:
    """A second or so of a sustained run.

    Attributes:
        at_s: its begin, from the run's.
        n: inferences in it.
        p50_ms: of these; no interval.
        temperature_c: the hottest readable sensor's, at its end; None where none is readable.
        clock_mhz: of the processor or GPU that runs the engine, at its end; None where it is not readable.
    """

    at_s: float
    n: int
    p50_ms: float
    temperature_c: float | None
    clock_mhz: float | None


@dataclass(frozen=True)
class Sustained:
    """Back-to-back inferences for so long that a device grows hot.

    Attributes:
        seconds: how long.
        windows: in order.
        slowdown: median p50 of the windows of the last tenth over that of the first tenth.
        throttled: whether the system reports throttling during the run; None where it reports nothing of the kind.
        raw_file: name of the ``.npy`` with every latency in ns, in order.
    """

    seconds: float
    windows: tuple[Window, ...]
    slowdown: float
    throttled: bool | None
    raw_file: str


@dataclass(frozen=True)
class Energy:
    """Energy of one inference in a back-to-back run, idle subtracted.

    Attributes:
        millijoules: (busy - idle) power times the run's time, for one inference.
        idle_w: mean power before the run.
        busy_w: mean power in the run.
        rail: the sensors that were added up, as the system names them, e.g. "RAPL package-0" or "INA3221 VDD_IN".
        seconds: how long the run was.
    """

    millijoules: float
    idle_w: float
    busy_w: float
    rail: str
    seconds: float


@dataclass(frozen=True)
class LayerTime:
    """One layer as the engine library runs it, after fusion.

    Attributes:
        name: the library's.
        kind: the library's name of the operation.
        branch: the modality from whose input alone it is computed, "fusion", or None where that is not known.
        mean_ms: mean time of one inference, under the library's profiler, which slows it down.
    """

    name: str
    kind: str
    branch: str | None
    mean_ms: float


@dataclass(frozen=True)
class EngineProfile:
    """One engine on one device.

    Attributes:
        name: "teacher", "student", "engine" for what ships, or the name of another candidate.
        latency: back-to-back inferences, end to end (arrays in, arrays out), interleaved with the other engines'.
        load_ms: for each fresh process, the time to open the engine.
        first_run_ms: for each fresh process, the time of the first inference.
        peak_rss_bytes: peak resident memory of the process that ran it, interpreter included.
        size_bytes: size of the engine file.
        raw_file: name of the ``.npy`` with every timed inference in ns, in order.
        import_ms: for each fresh process, the time to import the engine library.
        compute: the engine library's computing alone, inputs and outputs in place.
        paced: at a sensor's rate.
        sustained: for a long time.
        energy: of one inference.
        layers: as they ran, in order.
        not_measured: for each of "compute", "paced", "sustained", "energy" and "layers" that there is no figure of,
            ``"not measured: ..."``.
    """

    name: str
    latency: Latency
    load_ms: tuple[float, ...]
    first_run_ms: tuple[float, ...]
    peak_rss_bytes: int
    size_bytes: int
    raw_file: str
    import_ms: tuple[float, ...] = ()
    compute: Latency | None = None
    paced: Paced | None = None
    sustained: Sustained | None = None
    energy: Energy | None = None
    layers: tuple[LayerTime, ...] = ()
    not_measured: dict[str, str] = field(default_factory=dict)

    @property
    def branches_ms(self) -> dict[str, float]:
        """The layers' mean times added up by branch; "other" is those whose branch is not known."""
        sums: dict[str, float] = {}
        for layer in self.layers:
            sums[layer.branch or "other"] = sums.get(layer.branch or "other", 0.0) + layer.mean_ms
        return sums


@dataclass(frozen=True)
class Profile:
    """Engines measured side by side on one device.

    Attributes:
        machine: facts: cpu model, cores, governor, power mode, memory, os, architecture, library versions.
        threads: threads of one inference.
        block: inferences of one engine before the next takes its turn.
        engines: as given.
    """

    machine: dict[str, str]
    threads: int
    block: int
    engines: tuple[EngineProfile, ...]


def latency_from(ns: np.ndarray[Any, np.dtype[np.int64]]) -> Latency:
    """Summarise timed inferences.

    Args:
        ns: every timed inference in ns, none left out [n].

    Raises:
        ValueError: ``ns`` is empty.
    """
    if not len(ns):
        raise ValueError("no inference was timed")
    ordered = np.sort(ns) / 1e6
    p50, p90, p99 = (_quantile(ordered, p) for p in (0.5, 0.9, 0.99))
    return Latency(len(ordered), p50, p90, p99, float(ordered.mean()), float(ordered[-1]))


def _quantile(ordered: np.ndarray[Any, np.dtype[np.float64]], p: float) -> Quantile | None:
    ranks = interval_ranks(len(ordered), p)
    if ranks is None:
        return None
    value = np.quantile(ordered, p, method="inverted_cdf")  # one that was measured, not one between two
    return Quantile(float(value), float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1]))


def interval_ranks(n: int, p: float, confidence: float = 0.95) -> tuple[int, int] | None:
    """Return the ranks, from 1, of the order statistics between which the quantile ``p`` lies.

    The number B of samples below the quantile is binomial (n, p) whatever the distribution, so the l-th smallest is
    above it with probability P(B < l) and the u-th smallest below it with P(B >= u). Each is held to half the risk.
    Samples are taken as independent: where a machine's speed drifts, the interval is that of the machine as it was.

    Returns:
        (l, u), or None when n is so small that even the extremes do not reach that confidence (p99 needs 368).
    """
    tail = (1 - confidence) / 2
    cdf = _binomial_cdf(n, p)
    low = int(np.searchsorted(cdf, tail, side="right"))
    high = int(np.searchsorted(cdf, 1 - tail, side="left")) + 1
    return (low, high) if low >= 1 and high <= n else None


def _binomial_cdf(n: int, p: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return P(B <= k) for k = 0..n, from the ratios of neighbouring terms; logarithms keep them from underflow."""
    k = np.arange(1, n + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k) + np.log(p / (1 - p)))])
    sums = np.exp(logs - logs.max()).cumsum()
    cdf: np.ndarray[Any, np.dtype[np.float64]] = sums / sums[-1]
    return cdf


#: Instructions that decide how fast INT8 is, and whether it saturates.
_INT8_FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "asimddp")
_UNREADABLE = "not readable"


def machine_facts(packages: Iterable[str] = ()) -> dict[str, str]:
    """Describe this machine, numpy and the ``packages`` that ran on it, as far as they can be read."""
    facts = {
        "cpu": cpu_model(),
        "logical_cores": str(os.cpu_count() or _UNREADABLE),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or _UNREADABLE,
        "int8_instructions": _int8_instructions(),
        "memory": _memory(),
        "os": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "python": platform.python_version(),
    }
    return {**facts, **package_versions(("numpy", *packages))}


def cpu_model() -> str:
    """Return the processor's name, or that of the board, or at least the architecture; starts no process."""
    board = _read("/proc/device-tree/model").strip("\0\n")  # ARM boards do not name their processor
    return _cpuinfo().get("model name") or board or platform.machine()


def peak_rss_bytes() -> int:
    """Return this process's peak resident memory in bytes."""
    # Linux's ru_maxrss survives exec, so a child would report the peak of the larger process that started it.
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _int8_instructions() -> str:
    cpuinfo = _cpuinfo()
    listed = cpuinfo.get("flags") or cpuinfo.get("Features")  # x86, ARM
    if not listed:
        return _UNREADABLE
    return ", ".join(sorted(set(_INT8_FLAGS) & set(listed.split()))) or "none"


def _memory() -> str:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return f"{int(line.split()[1]) / 2**20:.1f} GiB"
    return _UNREADABLE


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, without importing them."""
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries."""
    first = _read("/proc/cpuinfo").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
