import subprocess
import sys
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pytest
from fusion import MODALITIES, save_samples
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgekd.compress.calibrate import Samples, tensor_ranges
from edgekd.errors import ModelError
from edgekd.target import Calibration, Scheme

ASYMMETRIC = Scheme(activations="uint8", symmetric_activations=False)
SYMMETRIC = Scheme(activations="int8", symmetric_activations=True)
METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


@pytest.fixture(scope="module")
def prepared(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared") / "prepared.onnx"
    quant_pre_process(str(model), str(path))
    return path


@pytest.fixture(scope="module")
def growing(samples, tmp_path_factory):
    """Samples whose first chunk is nearly constant and whose last is the widest: the worst order for histograms."""
    with np.load(samples) as arrays:
        factors = np.geomspace(1e-3, 4, len(arrays["input.image"])).astype(np.float32)
        grown = {name: x * factors.reshape(-1, *[1] * (x.ndim - 1)) for name, x in arrays.items()}
    path = tmp_path_factory.mktemp("growing") / "growing.npz"
    np.savez(path, **grown)
    return path


def calibration(method="minmax", **changes):
    return Calibration(description="", method=method, samples=changes.pop("samples", 200), **changes)


def ranges(model, path, scheme, work, **how):
    found = tensor_ranges(model, Samples(path, calibration(**how)), scheme, work)
    return {name: tuple(float(np.ravel(value)[0]) for value in data.range_value) for name, data in found.items()}


@dataclass
class OneBatch:
    feeds: dict | None

    def get_next(self):
        feeds, self.feeds = self.feeds, None
        return feeds


def all_at_once(model, path, method, symmetric, work):
    """Return what ONNX Runtime itself finds with every sample in memory."""
    options = {"symmetric": symmetric, "percentile": 99.999}
    calibrator = create_calibrator(
        model, None, str(work), getattr(CalibrationMethod, METHODS[method]), extra_options=options
    )
    with np.load(path) as arrays:
        calibrator.collect_data(OneBatch({name.removeprefix("input."): x for name, x in arrays.items()}))
    found = calibrator.compute_data()
    return {name: tuple(float(np.ravel(value)[0]) for value in data.range_value) for name, data in found.items()}


@pytest.mark.parametrize("scheme", [ASYMMETRIC, SYMMETRIC], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [7, 64])
def test_chunks_find_what_onnx_runtime_finds_all_at_once(prepared, growing, tmp_path, method, scheme, chunk):
    expected = all_at_once(prepared, growing, method, scheme.symmetric_activations, tmp_path / "all.onnx")
    found = ranges(prepared, growing, scheme, tmp_path / "chunks.onnx", method=method, chunk=chunk)
    assert found.keys() == expected.keys()
    # A symmetric percentile's bins start at 0 here, and at the smallest magnitude there: less than one bin apart.
    bin_width = 1 / 2048 if method == "percentile" and scheme.symmetric_activations else 1e-6
    for name, (low, high) in expected.items():
        assert found[name] == pytest.approx((low, high), rel=1e-6, abs=bin_width * max(abs(low), abs(high))), name


def test_a_percentile_leaves_out_what_is_rare(prepared, samples, tmp_path):
    with np.load(samples) as arrays:
        spiked = dict(arrays)
    spiked["input.image"] = np.tile(spiked["input.image"], (20, 1, 1, 1))
    spiked["input.motion"] = np.tile(spiked["input.motion"], (20, 1, 1))
    widest = np.abs(spiked["input.image"]).max()
    spiked["input.image"][0, 0, 0, 0] = 1000 * widest
    np.savez(tmp_path / "spiked.npz", **spiked)
    how = {"samples": 4000, "chunk": 256}
    whole = ranges(prepared, tmp_path / "spiked.npz", SYMMETRIC, tmp_path / "a.onnx", method="minmax", **how)
    most = ranges(prepared, tmp_path / "spiked.npz", SYMMETRIC, tmp_path / "b.onnx", method="percentile", **how)
    assert whole["image"][1] == pytest.approx(1000 * widest)
    assert most["image"][1] < 10 * widest


def test_symmetric_ranges_are_symmetric(prepared, samples, tmp_path):
    for method in METHODS:
        for low, high in ranges(prepared, samples, SYMMETRIC, tmp_path / "work.onnx", method=method).values():
            if method == "minmax":
                assert low == -high


def test_chooses_samples_by_seed_and_keeps_modalities_together(tmp_path):
    np.savez(tmp_path / "s.npz", **{"input.a": np.arange(10), "input.b": np.arange(10) * 10, "labels": np.zeros(10)})

    def chosen(**changes):
        chunks = list(Samples(tmp_path / "s.npz", calibration(**{"samples": 6, "chunk": 4, **changes})))
        assert all(feeds.keys() == {"a", "b"} and (feeds["b"] == feeds["a"] * 10).all() for feeds in chunks)
        return [feeds["a"].tolist() for feeds in chunks]

    assert [len(chunk) for chunk in chosen()] == [4, 2]
    assert chosen() == chosen()
    assert chosen() != chosen(seed=1)
    assert [row for (row,) in chosen(chunk=1)] == [*chain(*chosen())]
    assert [*chain(*chosen(samples=100))] == list(range(10))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused(prepared, samples, tmp_path, value):
    """NaN would be lost: ONNX Runtime's smallest and largest pass over it."""
    with np.load(samples) as arrays:
        broken = dict(arrays)
    broken["input.image"][3] = value
    np.savez(tmp_path / "broken.npz", **broken)
    found = Samples(tmp_path / "broken.npz", calibration(method="minmax"))
    with pytest.raises(ModelError, match=r"broken\.npz: input 'image' of a calibration sample is not finite"):
        list(found)


def test_activations_that_are_not_finite_are_refused(prepared, samples, tmp_path):
    with np.load(samples) as arrays:
        broken = dict(arrays)
    broken["input.image"][3] = 3e38  # finite, but sums of it are not
    np.savez(tmp_path / "broken.npz", **broken)
    for method in METHODS:
        with pytest.raises(ModelError, match="not finite on the calibration samples"):
            ranges(prepared, tmp_path / "broken.npz", ASYMMETRIC, tmp_path / "work.onnx", method=method)


def test_nothing_is_printed(prepared, samples, tmp_path, capfd):
    for method in METHODS:
        ranges(prepared, samples, ASYMMETRIC, tmp_path / "work.onnx", method=method)
    assert capfd.readouterr() == ("", "")


PEAK = """
import resource, sys
from pathlib import Path
from edgekd.compress.calibrate import Samples, tensor_ranges
from edgekd.target import Calibration, Scheme
model, samples, work = map(Path, sys.argv[1:4])
calibration = Calibration(description="", method="percentile", samples=int(sys.argv[4]), chunk=32)
tensor_ranges(model, Samples(samples, calibration), Scheme(activations="uint8", symmetric_activations=False), work)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_samples(prepared, tmp_path):
    path = save_samples(tmp_path / "many.npz", 1024)
    elements = 1024 * sum(np.prod(shape) for shape in MODALITIES.values())
    assert path.stat().st_size > 4 * elements

    def peak(count):
        command = [sys.executable, "-c", PEAK, str(prepared), str(path), str(tmp_path / "work.onnx"), str(count)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak(1024) <= 1.1 * peak(64)
