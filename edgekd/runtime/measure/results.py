"""The measurements of an engine: latency and its quantiles, memory, energy, layers. Plain data, and its statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgekd.gram.stats import t_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

Nanoseconds: TypeAlias = "NDArray[np.int64]"


@dataclass(frozen=True)
class Quantile:
    """A quantile of latency in ms, with its 95 % interval; see :func:`latency_from`."""

    value_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Latency:
    """Latency of single inferences at batch 1, in ms; None where n is too small.

    Attributes:
        n: The number of timed inferences.
        p50: The median with its interval.
        p90: The 90th percentile with its interval.
        p99: The 99th percentile with its interval.
        mean_ms: The mean; the throughput of one stream is 1000 / mean a second.
        max_ms: The slowest inference; none is left out.
        p90_bound_ms: The bound that the p90 is below with 99 % confidence: MLPerf's early-stopping estimate for a
            single stream; it needs 64 inferences.
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
        rate_hz: The number of samples a second.
        latency: The time from a sample's arrival to its result, waiting included.
        late: The number of samples that arrived before the previous inference was done.
        raw_file: The name of the ``.npy`` with every latency in ns, in order.
    """

    rate_hz: float
    latency: Latency
    late: int
    raw_file: str


@dataclass(frozen=True)
class Window:
    """About one second of a sustained run.

    Attributes:
        at_s: The time of its beginning in seconds since that of the run.
        n: The number of inferences in it.
        p50_ms: The median latency of these, without an interval.
        temperature_c: The temperature of the hottest readable sensor at its end; None where none is readable.
        clock_mhz: The clock of the processor or GPU that runs the engine, at its end; None where it is not readable.
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
        seconds: The length of the run.
        windows: The windows in order.
        slowdown: The median p50 of the windows of the last tenth over that of the first tenth.
        throttled: Whether the system reports throttling during the run; None where it reports nothing of the kind.
        raw_file: The name of the ``.npy`` with every latency in ns, in order.
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
        millijoules: The energy of one inference: (busy - idle) power times the run's time, over its inferences.
        idle_w: The mean power before the run.
        busy_w: The mean power in the run.
        rail: The system's names of the sensors that were added up, e.g. "RAPL package-0" or "INA3221 VDD_IN".
        seconds: The length of the run.
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
        name: The library's name of the layer.
        kind: The library's name of the operation.
        branch: The modality from whose input alone it is computed, "fusion", or None where that is not known.
        mean_ms: The time of one inference under the library's profiler, which slows it down: the mean over the middle
            half of the inferences, or over all where the library does not time single ones (OpenVINO).
        nodes: The names of the graph's nodes that it was made of, the main one first.
    """

    name: str
    kind: str
    branch: str | None
    mean_ms: float
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineProfile:
    """One engine on one device.

    Attributes:
        name: "teacher", "student", "engine" for what ships, or the name of another candidate.
        latency: The latency of back-to-back inferences, end to end (arrays in, arrays out), interleaved with the other
            engines'.
        load_ms: The time to open the engine, of each fresh process.
        first_run_ms: The time of the first inference, of each fresh process.
        peak_rss_bytes: The peak resident memory of the process that ran it, interpreter included.
        size_bytes: The size of the engine file.
        raw_file: The name of the ``.npy`` with every timed inference in ns, in order; the times of computing alone lie
            beside it as ``<name>.compute.npy``.
        import_ms: The time to import the engine library, of each fresh process.
        compute: The latency of the engine library's computing alone, inputs and outputs in place, measured in turns
            with ``latency``.
        paced: Inferences at a sensor's rate.
        sustained: Inferences over a long time.
        energy: The energy of one inference.
        layers: The layers in the order in which they ran.
        not_measured: The reason, ``"not measured: ..."``, by each of "compute", "paced", "sustained", "energy" and
            "layers" that there is no figure of.
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
        machine: Facts of the machine: cpu model, cores, governor, power mode, memory, os, architecture, versions.
        threads: The number of threads of one inference.
        block: The most inferences of one engine before the next takes its turn.
        engines: The engines in the order in which they were given.
        processes: The number of fresh processes among which the inferences of each engine were shared:
            ``np.array_split`` of the raw times gives the share of each.
    """

    machine: dict[str, str]
    threads: int
    block: int
    engines: tuple[EngineProfile, ...]
    processes: int = 1


_Floats: TypeAlias = "NDArray[np.float64]"

_CONFIDENCE = 0.95
_NANOSECOND_MS = 1e-6
#: MLPerf's: the percentile of a single stream's metric, and the confidence in its early-stopping estimate.
_STREAM_P, _STREAM_CONFIDENCE = 0.9, 0.99


def latency_from(*processes: Nanoseconds) -> Latency:
    """Summarise timed inferences.

    The interval of a quantile is the wider of two, at both ends. That of order statistics takes inferences as
    independent. But a process has its own luck with memory and threads, and the machine's speed drifts, so that one
    process's inferences resemble each other more than another's: the second interval takes the processes as the
    independent units. It is Student's t over the logarithms of their quantiles, around the quantile of all (Georges,
    Buytaert and Eeckhout, "Statistically Rigorous Java Performance Evaluation", OOPSLA 2007, section 3.3); of
    logarithms, since clocks and caches act on a time as factors. With a single process it is that of order statistics
    alone, which two runs will not keep.

    Args:
        processes: Every timed inference in ns [n] of each fresh process, none left out.

    Raises:
        ValueError: there is none.
    """
    ordered = np.sort(np.concatenate([np.empty(0), *processes])) / 1e6
    if not len(ordered):
        raise ValueError("no inference was timed")
    shares = [np.sort(ns) / 1e6 for ns in processes if len(ns)]
    p50, p90, p99 = (_quantile(ordered, shares, p) for p in (0.5, 0.9, 0.99))
    discarded = stream_discards(len(ordered))
    bound = None if discarded is None else float(ordered[len(ordered) - 1 - discarded])
    return Latency(len(ordered), p50, p90, p99, float(ordered.mean()), float(ordered[-1]), bound)


def _quantile(ordered: _Floats, shares: list[_Floats], p: float) -> Quantile | None:
    ranks = interval_ranks(len(ordered), p)
    if ranks is None:
        return None
    value = _at(ordered, p)
    low, high = float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1])
    if len(shares) > 1:
        logs = np.log([max(_at(share, p), _NANOSECOND_MS) for share in shares])  # a page's coarse clock may read 0
        half = t_quantile((1 + _CONFIDENCE) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
        low, high = min(low, value * float(np.exp(-half))), max(high, value * float(np.exp(half)))
    return Quantile(value, low, high)


def _at(ordered: _Floats, p: float) -> float:
    """Return a quantile that is a measured value, not one between two."""
    return float(np.quantile(ordered, p, method="inverted_cdf"))


def interval_ranks(n: int, p: float, confidence: float = _CONFIDENCE) -> tuple[int, int] | None:
    """Return the ranks, from 1, of the order statistics between which the quantile ``p`` lies.

    The number B of samples below the quantile is binomial (n, p) whatever the distribution, so the l-th smallest is
    above it with probability P(B < l) and the u-th smallest below it with P(B >= u). Each is held to half the risk.
    Samples are taken as independent.

    Returns:
        (l, u), or None when n is so small that even the extremes do not reach that confidence (p99 needs 368).
    """
    tail = (1 - confidence) / 2
    cdf = _binomial_cdf(n, p)
    low = int(np.searchsorted(cdf, tail, side="right"))
    high = int(np.searchsorted(cdf, 1 - tail, side="left")) + 1
    return (low, high) if low >= 1 and high <= n else None


def stream_discards(n: int, p: float = _STREAM_P, confidence: float = _STREAM_CONFIDENCE) -> int | None:
    """Return how many of the slowest samples MLPerf's early-stopping estimate of the quantile ``p`` discards.

    With t the largest number for which t or fewer of n samples would be above the quantile with a probability below
    1 - confidence, the estimate is the t-th largest sample, and t - 1 are discarded (MLCommons Inference,
    ``loadgen/early_stopping.cc`` and ``results.cc``, with its tolerance of 0; the rules' section on early stopping).

    Returns:
        t - 1, or None where n is too small for t = 1: p90 at 99 % needs 64, p99 662.
    """
    t = int(np.searchsorted(_binomial_cdf(n, 1 - p), 1 - confidence, side="left")) - 1
    return t - 1 if t >= 1 else None


def _binomial_cdf(n: int, p: float) -> _Floats:
    """Return P(B <= k) for k = 0..n, from the ratios of neighbouring terms; logarithms keep them from underflow."""
    k = np.arange(1, n + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k) + np.log(p / (1 - p)))])
    sums = np.exp(logs - logs.max()).cumsum()
    cdf: _Floats = sums / sums[-1]
    return cdf
