"""Activation ranges from calibration samples, streamed: memory does not grow with their number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgekd.target import Calibration, Scheme

Feeds = dict[str, np.ndarray[Any, Any]]


def calibration_feeds(samples: Path, calibration: Calibration) -> Iterator[Feeds]:
    """Yield chunks of calibration samples; a sample's modalities stay together.

    Args:
        samples: ``.npz`` with ``input.<modality>`` [N, ...].
        calibration: how many samples, which seed, how many at a time.
    """
    with np.load(samples, allow_pickle=False) as arrays:
        inputs = {key.removeprefix("input."): arrays[key] for key in arrays.files if key.startswith("input.")}
    count = len(next(iter(inputs.values())))
    chosen = np.sort(np.random.default_rng(calibration.seed).permutation(count)[: calibration.samples])
    for start in range(0, len(chosen), calibration.chunk):
        rows = chosen[start : start + calibration.chunk]
        yield {name: x[rows] for name, x in inputs.items()}


class _Reader:
    """ONNX Runtime's reader over one chunk."""

    def __init__(self, feeds: Feeds) -> None:
        self._pending: Feeds | None = feeds

    def get_next(self) -> Feeds | None:
        feeds, self._pending = self._pending, None
        return feeds


def tensor_ranges(model: Path, chunks: Iterator[Feeds], calibration: Calibration, scheme: Scheme, work: Path) -> Any:
    """Return ONNX Runtime's ``TensorsData`` for every activation of a float graph.

    ONNX Runtime's own loop keeps every activation of every sample; one ``collect_data`` a chunk keeps ranges or
    histograms alone.

    Args:
        model: the float graph.
        chunks: calibration feeds.
        calibration: the method.
        scheme: whether ranges must be symmetric.
        work: a path for the graph with extra outputs; the caller removes it.
    """
    ort = need("onnxruntime.quantization.calibrate", "build")
    method = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}[calibration.method]
    options = {"symmetric": scheme.symmetric_activations, "percentile": 99.999}
    calibrator = ort.create_calibrator(
        model, augmented_model_path=str(work), calibrate_method=getattr(ort.CalibrationMethod, method), extra_options=options
    )
    for feeds in chunks:
        calibrator.collect_data(_Reader(feeds))
    return calibrator.compute_data()
