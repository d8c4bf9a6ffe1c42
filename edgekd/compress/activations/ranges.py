"""Activation ranges from calibration samples, streamed: memory does not grow with their number."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekd.compress.activations.extremes import find_extremes, float_tensors
from edgekd.compress.activations.masks import find_masked
from edgekd.compress.graph import open_at
from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.gram.npz import INPUT_PREFIX, read_headers, stream_rows
from edgekd.runtime.session import rows_at_once

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from onnx import ModelProto

    from edgekd.compress.activations.extremes import Number
    from edgekd.config.target import Calibration, Scheme
    from edgekd.gram.npz import Header
    from edgekd.runtime.session import Array

Feeds = dict[str, NDArray[np.generic]]

#: ONNX Runtime's calibrator behind each method of calibration files, and the number of bins of its histograms, which is
#: its default.
_CALIBRATORS = {
    "minmax": "MinMax", "gram": "MinMax", "percentile": "Percentile", "entropy": "Entropy", "mse": "Percentile"
}  # fmt: skip
_BINS = {"percentile": 2048, "entropy": 128, "mse": 2048}
#: Numbers of levels that ranges are chosen for: by entropy, and by the squared error, for which 8 bits have as many.
_ENTROPY_LEVELS, _LEVELS = 128, 255
_PERCENTILE = 99.999
#: Shares of the whole range, among which the squared error decides.
_SHARES = np.linspace(0.1, 1, 91)


@dataclass(frozen=True)
class CalibrationSamples:
    """Calibration samples, read in chunks as often as need be; a sample's modalities stay together.

    Attributes:
        path: File ``.npz`` with ``input.<modality>`` [N, ...], in the types that the graph takes.
        calibration: The number of samples, the seed that draws them, and the number read at a time.
    """

    path: Path
    calibration: Calibration

    def __iter__(self) -> Iterator[Feeds]:
        """Yield the feeds of ``calibration.chunk`` samples at a time; fewer of large samples, and in the last chunk.

        Raises:
            ModelError: The file is not such an ``.npz``, or a sample is not finite.
        """
        try:
            yield from self._chunks()
        except (OSError, ValueError) as error:
            raise ModelError(f"the calibration samples cannot be read: {error}") from error

    def fewer(self, count: int) -> CalibrationSamples:
        """Return at most ``count`` of these samples."""
        return replace(
            self, calibration=msgspec.structs.replace(self.calibration, samples=min(count, self.calibration.samples))
        )

    def one_by_one(self) -> CalibrationSamples:
        """Return these samples in chunks of one."""
        return replace(self, calibration=msgspec.structs.replace(self.calibration, chunk=1))

    @property
    def rows(self) -> NDArray[np.intp]:
        """The rows of the file that are taken, in ascending order [samples]."""
        return np.flatnonzero(self._chosen(read_headers(self.path)["ids"].shape[0]))

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample, over all its modalities."""
        return _row_bytes(self._headers())

    def _headers(self) -> dict[str, Header]:
        headers = {key: header for key, header in read_headers(self.path).items() if key.startswith(INPUT_PREFIX)}
        if not headers:
            raise ModelError(f"{self.path}: has no array '{INPUT_PREFIX}<modality>' to calibrate with")
        return headers

    def _chunks(self) -> Iterator[Feeds]:
        headers = self._headers()
        keys, size = list(headers), rows_at_once(self.calibration.chunk, _row_bytes(headers))
        chosen = self._chosen(headers[keys[0]].shape[0])
        pending: Feeds = {}
        start = 0
        for rows in stream_rows(self.path, keys, size):
            wanted = chosen[start : start + size]
            start += size
            kept = {key.removeprefix(INPUT_PREFIX): x[wanted] for key, x in rows.items()}
            pending = {name: np.concatenate([pending[name], x]) for name, x in kept.items()} if pending else kept
            if _count(pending) >= size:
                yield self._finite({name: x[:size] for name, x in pending.items()})
                pending = {name: x[size:] for name, x in pending.items()}
        if _count(pending):
            yield self._finite(pending)

    def _chosen(self, count: int) -> NDArray[np.bool_]:
        """Return for each of ``count`` samples whether it is taken [count]."""
        order = np.random.default_rng(self.calibration.seed).permutation(count)
        chosen = np.zeros(count, bool)
        chosen[order[: self.calibration.samples]] = True
        return chosen

    def _finite(self, feeds: Feeds) -> Feeds:
        for name, x in feeds.items():
            if not np.isfinite(x).all():  # ONNX Runtime's extremes do not show it
                raise ModelError(f"{self.path}: input '{name}' of a calibration sample is not finite")
        return feeds


def _row_bytes(headers: dict[str, Header]) -> int:
    return sum(header.row_bytes for header in headers.values())


def _count(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


def find_ranges(model: Path, samples: CalibrationSamples, scheme: Scheme) -> Any:
    """Return ONNX Runtime's ``TensorsData`` for every activation of a float graph.

    ONNX Runtime's own loop keeps every activation of every sample; here one chunk is computed after another, and only
    ranges or histograms are kept. The result does not depend on the chunks: a first pass finds the extremes, and they
    fix the bins of each histogram. (By default a histogram takes its bins from the first chunk and adds more of that
    width: as many as memory holds, if the first chunk was nearly constant.) The range of a tensor with a mask among its
    values is that of the values that are not masked.

    Args:
        model: The float graph.
        samples: The calibration samples, and how ranges are found. With "gram" they are the extremes, where its search
            begins.
        scheme: Whether ranges must be symmetric.

    Raises:
        ModelError: NaN or an overflow reaches an output of the graph.
    """
    ort = need("onnxruntime.quantization.calibrate", "build")
    kind, symmetric = samples.calibration.ranges, scheme.symmetric_activations
    graph, tensors = float_tensors(model)
    extremes = find_extremes(graph, tensors, samples)
    masked = find_masked(graph, extremes, samples)
    spans = {name: (found.low, found.high) for name, found in extremes.items() if name not in masked}
    ranges = {name: _pair(masked[name].low, masked[name].high, symmetric) for name in masked.keys() & extremes.keys()}
    if _CALIBRATORS[kind] == "MinMax":
        ranges |= {name: _pair(*span, symmetric) for name, span in spans.items()}
    else:
        ranges |= _from_histograms(graph, spans, samples, kind, symmetric)
    data = {name: ort.TensorData(lowest=low, highest=high) for name, (low, high) in ranges.items()}
    return ort.TensorsData(getattr(ort.CalibrationMethod, _CALIBRATORS[kind]), data)


def _pair(low: Number, high: Number, symmetric: bool) -> tuple[Array, Array]:
    if symmetric:
        high = max(abs(low), abs(high))
        low = -high
    return np.array([low]), np.array([high])


def least_error_range(
    counts: NDArray[np.int64], edges: NDArray[np.float64], low: float, high: float
) -> tuple[float, float]:
    """Return the share of the whole range whose rounding to 8 bits has the least squared error.

    A value inside the range costs step^2 / 12, the mean square of a rounding error, or its own square where it becomes
    0; a value outside costs the square of its distance to the range (Banner et al., "Post training 4-bit
    quantization of convolutional networks for rapid-deployment", arXiv 1810.05723).

    Args:
        counts: Counts of a histogram [bins]; it is one of magnitudes where its first edge is 0 and ``low`` is not.
        edges: Edges of its bins [bins + 1].
        low: The smallest value.
        high: The largest value.
    """
    if edges[0] == 0:  # a histogram of magnitudes: the range is symmetric
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    low, high = min(low, 0.0), max(high, 0.0)  # a range must hold 0
    values = (edges[:-1] + edges[1:]) / 2
    lows, highs = _SHARES[:, None] * low, _SHARES[:, None] * high
    outside = np.maximum(values - highs, 0) + np.maximum(lows - values, 0)
    steps = (highs - lows) / _LEVELS
    inside = np.where(np.abs(values) < steps / 2, values**2, steps**2 / 12)
    errors = (np.where(outside > 0, outside**2, inside) * counts).sum(1)
    share = _SHARES[errors.argmin()] if high > low else 1.0
    return float(share * low), float(share * high)


def _from_histograms(
    graph: ModelProto,
    spans: Mapping[str, tuple[Number, Number]],
    samples: CalibrationSamples,
    kind: str,
    symmetric: bool,
) -> dict[str, tuple[Array, Array]]:
    """Return the range of each tensor that a histogram of its values suggests.

    Args:
        graph: The float graph.
        spans: Smallest and largest value of each tensor.
        samples: The calibration samples.
        kind: The method of calibration.
        symmetric: Whether ranges must be symmetric.
    """
    collector = _collector(spans, kind, symmetric)
    session = open_at(graph, spans, threads=0)
    with redirect_stdout(io.StringIO()):  # it prints, and stdout may be a program's
        for feeds in samples:
            values = session.run(list(spans), feeds)
            collector.collect({name: [x] for name, x in zip(spans, values, strict=True)})
        if kind != "mse":
            return {name: (found[0], found[1]) for name, found in collector.compute_collection_result().items()}
    ranges = {
        name: least_error_range(counts, edges, *map(float, spans[name]))
        for name, (counts, edges, *_) in collector.histogram_dict.items()
    }
    return {name: (np.array([low], np.float32), np.array([high], np.float32)) for name, (low, high) in ranges.items()}


def _collector(spans: Mapping[str, tuple[Number, Number]], kind: str, symmetric: bool) -> Any:
    """Return a collector whose histograms are empty and span each tensor's whole range."""
    ort = need("onnxruntime.quantization.calibrate", "build")
    bins = _BINS[kind]
    collector = ort.HistogramCollector(
        method=_CALIBRATORS[kind].lower(), symmetric=symmetric, num_bins=bins, num_quantized_bins=_ENTROPY_LEVELS,
        percentile=_PERCENTILE, scenario="same",
    )  # fmt: skip
    of_magnitudes = kind != "entropy" and symmetric
    for name, (low, high) in spans.items():
        limit = max(abs(low), abs(high))
        span = (0.0 if of_magnitudes else -float(limit), float(limit))
        empty = np.histogram(np.empty(0, np.float32), bins, span)
        collector.histogram_dict[name] = (*empty, low, high) if of_magnitudes else (*empty, low, high, limit)
    return collector
