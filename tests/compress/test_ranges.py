import subprocess
import sys
from dataclasses import dataclass
from itertools import chain

import numpy as np
import onnx
import onnx_graphs
import pytest
from fusion import save_samples
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgekd.compress.activations.extremes import activation_bytes
from edgekd.compress.activations.ranges import CalibrationSamples, find_ranges, least_error_range
from edgekd.compress.quantizers.prepare import open_samples
from edgekd.config.target import Calibration, Scheme
from edgekd.errors import ModelError

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
    return Calibration(description="", ranges=method, samples=changes.pop("samples", 200), **changes)


def ranges(model, path, scheme, work, **how):
    found = find_ranges(model, CalibrationSamples(path, calibration(**how)), scheme)
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


@pytest.mark.parametrize("scheme", [ASYMMETRIC, SYMMETRIC], ids=["asymmetric", "symmetric"])
def test_chunks_do_not_matter_to_the_least_squared_error(prepared, growing, tmp_path, scheme):
    by_chunk = [ranges(prepared, growing, scheme, tmp_path / "m.onnx", method="mse", chunk=n) for n in (7, 200)]
    assert by_chunk[0] == by_chunk[1]
    whole = ranges(prepared, growing, ASYMMETRIC, tmp_path / "m.onnx")
    for name, (low, high) in by_chunk[0].items():
        if scheme is SYMMETRIC:
            assert low == -high
        assert high <= max(map(abs, whole[name])) * (1 + 1e-6)
    assert any(high < 0.95 * max(map(abs, whole[name])) for name, (_, high) in by_chunk[0].items())


@pytest.mark.parametrize("values", ["heavy tails", "one outlier", "uniform", "one sign"])
def test_the_range_of_least_squared_error_is_found(values):
    random = np.random.default_rng(0)
    x = {
        "heavy tails": random.standard_t(3, 20_000),
        "one outlier": np.append(random.normal(size=20_000), 60),
        "uniform": random.uniform(-1, 2, 20_000),
        "one sign": np.maximum(random.normal(size=20_000) ** 3, 0),
    }[values]
    low, high = least_error_range(*np.histogram(x, 2048, (-abs(x).max(), abs(x).max())), x.min(), x.max())

    def error(share):
        bottom, top = share * min(x.min(), 0), share * x.max()
        step = (top - bottom) / 255
        return np.square(np.clip(np.round(x / step) * step, bottom, top) - x).mean()

    shares = np.linspace(0.1, 1, 91)
    found = high / x.max()
    assert low == pytest.approx(found * min(x.min(), 0))
    assert error(found) <= 1.05 * min(map(error, shares))
    assert (found == 1) == (values == "uniform")


def test_values_that_are_all_zero_have_an_empty_range():
    assert least_error_range(*np.histogram(np.zeros(5), 2048, (0, 0)), 0.0, 0.0) == (0, 0)


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
        chunks = list(CalibrationSamples(tmp_path / "s.npz", calibration(**{"samples": 6, "chunk": 4, **changes})))
        assert all(feeds.keys() == {"a", "b"} and (feeds["b"] == feeds["a"] * 10).all() for feeds in chunks)
        return [feeds["a"].tolist() for feeds in chunks]

    assert [len(chunk) for chunk in chosen()] == [4, 2]
    assert chosen() == chosen()
    assert chosen() != chosen(seed=1)
    assert [row for (row,) in chosen(chunk=1)] == [*chain(*chosen())]
    assert [*chain(*chosen(samples=100))] == list(range(10))


def test_large_samples_come_a_few_at_a_time(tmp_path):
    np.savez(tmp_path / "s.npz", **{"input.a": np.arange(10), "input.b": np.zeros((10, 100, 1000), np.float32)})
    chunks = list(CalibrationSamples(tmp_path / "s.npz", calibration(chunk=64)))
    assert [len(feeds["a"]) for feeds in chunks] == [2] * 5
    assert [*chain(*(feeds["a"] for feeds in chunks))] == list(range(10))


def test_types_are_those_of_the_file(tmp_path):
    arrays = {
        "a": np.arange(10),
        "b": np.linspace(0, 1, 10),
        "c": np.zeros((10, 2), np.float32),
        "d": np.ones(10, bool),
    }
    np.savez(tmp_path / "s.npz", **{f"input.{name}": x for name, x in arrays.items()})
    chunks = list(CalibrationSamples(tmp_path / "s.npz", calibration(chunk=3)))
    assert [len(feeds["a"]) for feeds in chunks] == [3, 3, 3, 1]
    for name, x in arrays.items():
        found = np.concatenate([feeds[name] for feeds in chunks])
        assert found.dtype == x.dtype
        assert np.array_equal(found, x)


def test_fewer_samples_are_some_of_these(tmp_path):
    np.savez(tmp_path / "s.npz", **{"input.a": np.arange(100)})
    samples = CalibrationSamples(tmp_path / "s.npz", calibration(samples=50))
    all_of_them, some = ({*chain(*(feeds["a"].tolist() for feeds in s))} for s in (samples, samples.fewer(20)))
    assert len(some) == 20
    assert some < all_of_them
    assert {*chain(*(feeds["a"].tolist() for feeds in samples.fewer(60)))} == all_of_them


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "uneven.npz", **{"input.a": np.zeros(3), "input.b": np.zeros(4)})
    for name, reason in (("text", "cannot be read"), ("other", "no array 'input"), ("uneven", "differ in rows")):
        with pytest.raises(ModelError, match=reason) as error:
            list(CalibrationSamples(tmp_path / f"{name}.npz", calibration()))
        assert f"{name}.npz" in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused(prepared, samples, tmp_path, value):
    """NaN would be lost: ONNX Runtime's smallest and largest pass over it."""
    with np.load(samples) as arrays:
        broken = dict(arrays)
    broken["input.image"][3] = value
    np.savez(tmp_path / "broken.npz", **broken)
    found = CalibrationSamples(tmp_path / "broken.npz", calibration(method="minmax"))
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
import sys
from pathlib import Path
from edgekd.compress.activations.extremes import activation_bytes
from edgekd.compress.quantizers.prepare import open_samples
from edgekd.compress.activations.ranges import CalibrationSamples, find_ranges
from edgekd.runtime.measure.machine import peak_rss_bytes
from edgekd.config.target import Calibration, Scheme
model, samples, work = map(Path, sys.argv[1:4])
method, count, chunk = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
calibration = Calibration(description="", ranges=method, samples=count, chunk=chunk)
scheme = Scheme(activations="uint8", symmetric_activations=False)
find_ranges(model, CalibrationSamples(samples, calibration), scheme)
print(peak_rss_bytes())
"""

MANY = 8192


@pytest.fixture(scope="module")
def peak(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    path = save_samples(folder / "many.npz", MANY)

    def peak(method, count, chunk=32):
        given = [str(prepared), str(path), str(folder / "work.onnx"), method, str(count), str(chunk)]
        return int(
            subprocess.run([sys.executable, "-c", PEAK, *given], check=True, capture_output=True, text=True).stdout
        )

    return peak


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_memory_does_not_grow_with_the_samples(peak, method):
    assert peak(method, MANY) <= 1.1 * peak(method, 128)


def test_memory_grows_with_the_chunks(peak):
    """Guards the test above: it must be able to fail."""
    assert peak("minmax", MANY, chunk=MANY) > 1.1 * peak("minmax", 128)


def test_a_chunk_holds_no_more_samples_than_memory_holds_activations_of(tmp_path):
    wide = 1_000_000
    nodes = [
        onnx_graphs.node("Unsqueeze", ["x", "last"], ["u"], name="u"),
        onnx_graphs.node("Expand", ["u", "shape"], ["wide"], name="wide"),
        onnx_graphs.node("ReduceMax", ["wide"], ["narrow"], axes=[2], keepdims=0, name="narrow"),
        onnx_graphs.node("MatMul", ["narrow", "w"], ["y"], name="head"),
    ]
    tensors = onnx_graphs.stored(last=np.array([2]), shape=np.array([1, 4, wide]), w=onnx_graphs.random(4, 3))
    model = onnx_graphs.graph(nodes, {"x": [4]}, tensors)
    onnx.save(model, tmp_path / "model.onnx")
    onnx_graphs.samples(model, tmp_path)
    usual = Calibration(description="", ranges="minmax", samples=48, chunk=64)
    row = activation_bytes(tmp_path / "model.onnx", {"x": np.zeros((1, 4), np.float32)})
    assert row == 4 * (4 + 4 + 4 * wide + 4 + 3)
    samples = open_samples(tmp_path / "model.onnx", tmp_path / "samples.npz", usual)
    assert [len(feeds["x"]) for feeds in samples] == [7] * 6 + [6], "of 16 MB each, of which 128 MB hold seven"
