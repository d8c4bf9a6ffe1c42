import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fusion import MODALITIES, make_inputs, save_samples, snr_db
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.quantizers.nncf import QUANTIZER
from edgekd.compress.quantizers.write import write_quantized
from edgekd.config.target import DEFAULT_OPERATORS, Calibration, Scheme
from edgekd.errors import ModelError
from edgekd.stages.artifacts import PREPARED

USUAL = Scheme(activations="uint8", symmetric_activations=False)
OUTPUTS = ["logits", "embedding.image", "embedding.motion"]


def calibration(**options):
    return Calibration(description="", ranges="minmax", **{"samples": 200, "chunk": 64, **options})


@pytest.fixture(scope="module")
def build(model, samples, tmp_path_factory):
    """Quantize by a scheme; the same one only once."""
    built = {}

    def build(scheme=USUAL):
        if repr(scheme) not in built:
            work = tmp_path_factory.mktemp("nncf")
            built[repr(scheme)] = write_quantized(
                QUANTIZER, model, CalibrationSamples(samples, calibration()), scheme, work
            ).path
        return built[repr(scheme)]

    return build


class Graph:
    """A quantized file, and what stands where in it."""

    def __init__(self, path):
        self.model = onnx.load(path)
        self.nodes = self.model.graph.node
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output}

    def of(self, *kinds):
        return [node for node in self.nodes if node.op_type in kinds]

    def weights(self):
        """Return the stored weight of each node that has one."""
        dequantizers = [self.producer[node.input[1]] for node in self.of("Conv", "Gemm", "MatMul")]
        assert {node.op_type for node in dequantizers} == {"DequantizeLinear"}
        return [self.values[node.input[0]] for node in dequantizers]


def run(path, inputs):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True))


def worst_snr_db(model, quantized):
    inputs = make_inputs(500, seed=1)
    exact, found = run(model, inputs), run(quantized, inputs)
    assert list(exact) == list(found) == OUTPUTS
    return min(snr_db(exact[name], found[name]) for name in OUTPUTS)


def test_the_result_is_plain_onnx_of_the_same_opset(build, model):
    graph = Graph(build()).model
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""}
    versions = [{opset.domain: opset.version for opset in m.opset_import}[""] for m in (graph, onnx.load(model))]
    assert versions[0] == versions[1]


def test_every_weight_is_int8_of_reduced_range_and_a_scale_for_each_channel(build):
    graph = Graph(build())
    weights = graph.weights()
    assert len(weights) == 7
    assert {weight.dtype for weight in weights} == {np.dtype(np.int8)}
    assert max(np.abs(weight.astype(int)).max() for weight in weights) == 64
    for node in graph.of("Conv"):
        dequantize = graph.producer[node.input[1]]
        assert graph.values[dequantize.input[1]].shape == (len(graph.values[dequantize.input[0]]),)
        assert not graph.values[dequantize.input[2]].any()


def test_the_whole_range_and_one_scale_where_the_scheme_says_so(build):
    graph = Graph(
        build(Scheme(activations="uint8", symmetric_activations=False, reduce_range=False, per_channel=False))
    )
    assert max(np.abs(weight.astype(int)).max() for weight in graph.weights()) > 120
    for node in graph.of("Conv"):
        assert graph.values[graph.producer[node.input[1]].input[1]].size == 1


def test_zero_points_are_free_or_zero_as_the_scheme_says(build):
    def zero_points(scheme):
        graph = Graph(build(scheme))
        return [graph.values[node.input[2]] for node in graph.of("QuantizeLinear")]

    for point in zero_points(USUAL):
        assert point.dtype in (np.uint8, np.int8)
    assert any(zero_points(USUAL))
    assert not any(zero_points(Scheme(activations="int8", symmetric_activations=True)))


def test_int8_is_near_float(build, model):
    assert worst_snr_db(model, build()) > 30


def test_outputs_are_not_rounded(build):
    graph = Graph(build())
    for output in graph.model.graph.output:
        assert output.type.tensor_type.elem_type == TensorProto.FLOAT
        assert graph.producer[output.name].op_type not in ("QuantizeLinear", "DequantizeLinear")
    assert graph.of("QuantizeLinear")


def test_arithmetic_on_raw_inputs_stays_float(build, model, samples, tmp_path):
    def readers(path):
        return {node.op_type for node in Graph(path).nodes if set(node.input) & set(MODALITIES)}

    first = readers(build())
    assert first == readers(model)
    assert "QuantizeLinear" not in first
    # What the scheme names is quantized where nothing says that it stays float.
    scheme = Scheme(activations="uint8", symmetric_activations=False, operators=[*DEFAULT_OPERATORS, *first])
    assert readers(build(scheme)) == first
    prepared = build().parent / PREPARED
    rounding = QUANTIZER.write(prepared, CalibrationSamples(samples, calibration()), scheme, tmp_path, ())
    assert "QuantizeLinear" in readers(rounding)
    assert worst_snr_db(model, rounding) < 15


def test_operators_that_the_scheme_leaves_out_stay_float(build):
    graph = Graph(build(Scheme(activations="uint8", symmetric_activations=False, operators=["Conv"])))
    assert {graph.producer[node.input[1]].op_type for node in graph.of("Conv")} == {"DequantizeLinear"}
    assert all(node.input[1] in graph.values for node in graph.of("Gemm"))


def test_chunks_do_not_change_the_result(build, model, samples, tmp_path):
    for chunk in (1, 200):
        (tmp_path / str(chunk)).mkdir()
        again = write_quantized(
            QUANTIZER, model, CalibrationSamples(samples, calibration(chunk=chunk)), USUAL, tmp_path / str(chunk)
        ).path
        assert again.read_bytes() == build().read_bytes()


def test_every_sample_counts_and_no_more_than_asked_for(build, model, samples, tmp_path):
    """A hundredfold outlier widens the ranges, unless the calibration does not draw it."""
    with np.load(samples) as arrays:
        content = dict(arrays)
    drawn = np.sort(np.random.default_rng(0).permutation(200)[:20])
    left_out = np.setdiff1d(np.arange(200), drawn)[-1]
    for name, row in (("drawn", drawn[-1]), ("left_out", left_out)):
        changed = {key: x.copy() for key, x in content.items()}
        changed["input.image"][row] *= 100
        np.savez(tmp_path / f"{name}.npz", **changed)

    def result(path):
        work = tmp_path / path.stem
        work.mkdir()
        return write_quantized(
            QUANTIZER, model, CalibrationSamples(path, calibration(samples=20, chunk=8)), USUAL, work
        ).path

    before, drawn, left_out = (result(p) for p in (samples, tmp_path / "drawn.npz", tmp_path / "left_out.npz"))
    assert left_out.read_bytes() == before.read_bytes()
    assert worst_snr_db(model, drawn) < worst_snr_db(model, before) - 10


def test_it_prints_nothing(build, model, samples, tmp_path, capfd):
    write_quantized(QUANTIZER, model, CalibrationSamples(samples, calibration()), USUAL, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_first_import_reports_to_nobody_and_prints_nothing(model, samples, tmp_path):
    """In a process of its own: under pytest, NNCF is silent anyway."""
    code = f"""
import os
from pathlib import Path
from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.quantizers.nncf import QUANTIZER
from edgekd.compress.quantizers.write import write_quantized
from edgekd.config.target import Calibration, Scheme
before = dict(os.environ)
samples = CalibrationSamples(Path({str(samples)!r}), Calibration(description="", ranges="minmax", samples=20))
scheme = Scheme(activations="uint8", symmetric_activations=False)
write_quantized(QUANTIZER, Path({str(model)!r}), samples, scheme, Path("work"))
assert {{"CI", "NNCF_CI"}}.isdisjoint(os.environ)
from nncf.telemetry.wrapper import NNCFTelemetry, telemetry
assert not isinstance(telemetry, NNCFTelemetry)
import openvino_telemetry
assert openvino_telemetry.Telemetry().consent is False
"""
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    env = {"HOME": str(tmp_path / "home"), "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert not (tmp_path / "home" / "intel").exists(), "no client ID"


@pytest.mark.parametrize("content", [b"", b"not a model"], ids=["empty", "text"])
def test_a_broken_graph_is_named(content, samples, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx: NNCF cannot quantize it: \w"):
        write_quantized(QUANTIZER, path, CalibrationSamples(samples, calibration()), USUAL, tmp_path)


def test_a_graph_of_unknown_operators_is_named(samples, tmp_path):
    graph = helper.make_graph(
        [make_node("Magic", ["image"], ["logits"], domain="nobody.knows")],
        "magic",
        [make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2, 8, 8])],
        [make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
    )
    path, opsets = tmp_path / "magic.onnx", [helper.make_opsetid("", 20), helper.make_opsetid("nobody.knows", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    with pytest.raises(ModelError, match=r"magic\.onnx: NNCF cannot quantize it: .*Magic"):
        write_quantized(QUANTIZER, path, CalibrationSamples(samples, calibration()), USUAL, tmp_path)


def test_samples_of_another_graph_are_named(model, tmp_path):
    with np.load(save_samples(tmp_path / "all.npz", 20)) as arrays:
        np.savez(tmp_path / "image.npz", **{"input.image": arrays["input.image"]})
    with pytest.raises(ModelError, match=r"model\.onnx: NNCF cannot quantize it: .*motion"):
        write_quantized(QUANTIZER, model, CalibrationSamples(tmp_path / "image.npz", calibration()), USUAL, tmp_path)


def test_an_activation_that_is_not_finite_is_named(model, tmp_path):
    path = save_samples(tmp_path / "bad.npz", 20)
    with np.load(path) as arrays:
        content = dict(arrays)
    content["input.image"][3] = 3e38  # finite, but sums of it are not
    np.savez(path, **content)
    with pytest.raises(ModelError, match=r"not finite.* node 'node_mean' \(ReduceMean\) makes infinity"):
        write_quantized(QUANTIZER, model, CalibrationSamples(path, calibration()), USUAL, tmp_path)
