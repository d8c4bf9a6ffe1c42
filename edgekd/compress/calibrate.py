"""Activation ranges from calibration samples, streamed: memory does not grow with their number."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.runtime.session import INPUT_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgekd.target import Calibration, Scheme

Feeds = dict[str, np.ndarray[Any, Any]]

#: Of ONNX Runtime's calibrators, by the names of calibration files; of histograms, the bins that it takes by default.
_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
_BINS = {"percentile": 2048, "entropy": 128}
_LEVELS = 128
_PERCENTILE = 99.999


@dataclass(frozen=True)
class Samples:
    """Calibration samples, read in chunks as often as need be; a sample's modalities stay together.

    Attributes:
        path: ``.npz`` with ``input.<modality>`` [N, ...].
        calibration: how many samples, which seed, how many at a time.
    """

    path: Path
    calibration: Calibration

    def __iter__(self) -> Iterator[Feeds]:
        with np.load(self.path, allow_pickle=False) as arrays:
            keys = [key for key in arrays.files if key.startswith(INPUT_PREFIX)]
            inputs = {key.removeprefix(INPUT_PREFIX): arrays[key] for key in keys}
        count = len(next(iter(inputs.values())))
        order = np.random.default_rng(self.calibration.seed).permutation(count)
        chosen = np.sort(order[: self.calibration.samples])
        for start in range(0, len(chosen), self.calibration.chunk):
            rows = chosen[start : start + self.calibration.chunk]
            feeds = {name: x[rows] for name, x in inputs.items()}
            for name, x in feeds.items():
                if not np.isfinite(x).all():  # which ONNX Runtime's extremes do not show
                    raise ModelError(f"{self.path}: input '{name}' of a calibration sample is not finite")
            yield feeds


class _Reader:
    """ONNX Runtime's reader over one chunk."""

    def __init__(self, feeds: Feeds) -> None:
        self._pending: Feeds | None = feeds

    def get_next(self) -> Feeds | None:
        feeds, self._pending = self._pending, None
        return feeds


def tensor_ranges(model: Path, samples: Samples, scheme: Scheme, work: Path) -> Any:
    """Return ONNX Runtime's ``TensorsData`` for every activation of a float graph.

    ONNX Runtime's own loop keeps every activation of every sample; one ``collect_data`` a chunk keeps ranges or
    histograms alone. The result does not depend on the chunks: a first pass finds the extremes, and with them the bins
    of each histogram are the same from its first chunk on. (Left to itself, a histogram takes its bins from the first
    chunk and adds more of that width: as many as memory holds, if the first chunk was nearly constant.)

    Args:
        model: the float graph.
        samples: to calibrate with, and how.
        scheme: whether ranges must be symmetric.
        work: a path for the graph with extra outputs; the caller removes it.

    Raises:
        ModelError: an activation is not finite.
    """
    method, symmetric = samples.calibration.method, scheme.symmetric_activations
    if method == "minmax":
        ranges = _collect(_calibrator(model, method, symmetric, work), samples)
        _require_finite(ranges)
        return ranges
    extremes = _collect(_calibrator(model, "minmax", False, work), samples)
    _require_finite(extremes)
    calibrator = _calibrator(model, method, symmetric, work)
    calibrator.collector = _collector(extremes, method, symmetric)
    return _collect(calibrator, samples)


def _calibrator(model: Path, method: str, symmetric: bool, work: Path) -> Any:
    ort = need("onnxruntime.quantization.calibrate", "build")
    return ort.create_calibrator(
        model,
        augmented_model_path=str(work),
        calibrate_method=getattr(ort.CalibrationMethod, _METHODS[method]),
        extra_options={"symmetric": symmetric, "percentile": _PERCENTILE},
    )


def _collect(calibrator: Any, samples: Samples) -> Any:
    with redirect_stdout(io.StringIO()):  # it prints, and stdout may be a program's
        for feeds in samples:
            calibrator.collect_data(_Reader(feeds))
        return calibrator.compute_data()


def _collector(extremes: Any, method: str, symmetric: bool) -> Any:
    """Return a collector whose histograms are empty and span each tensor's whole range."""
    ort = need("onnxruntime.quantization.calibrate", "build")
    bins = _BINS[method]
    collector = ort.HistogramCollector(
        method=method, symmetric=symmetric, num_bins=bins, num_quantized_bins=_LEVELS, percentile=_PERCENTILE,
        scenario="same",
    )  # fmt: skip
    of_magnitudes = method == "percentile" and symmetric
    for name, data in extremes.items():
        low, high = (np.float32(value.item()) for value in data.range_value)
        limit = max(abs(low), abs(high))
        span = (0.0 if of_magnitudes else -float(limit), float(limit))
        empty = np.histogram(np.empty(0, np.float32), bins, span)
        collector.histogram_dict[name] = (*empty, low, high) if of_magnitudes else (*empty, low, high, limit)
    return collector


def _require_finite(ranges: Any) -> None:
    for name, data in ranges.items():
        if not np.isfinite(data.range_value).all():
            raise ModelError(f"activation '{name}' is not finite on the calibration samples; look for NaN and overflow")
