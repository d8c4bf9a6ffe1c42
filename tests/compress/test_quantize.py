import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from fusion import MODALITIES, make_inputs, snr_db, split_samples
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.compress import quantize
from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.quantizers.registry import find_quantizer
from edgekd.compress.variants import CandidateSpec, write_variants
from edgekd.config.target import DEFAULT_OPERATORS, Calibration, Scheme
from edgekd.errors import ModelError, TargetError
from edgekd.stages.artifacts import DEPLOY, PREPARED, PROBE_GRAPH, QDQ

MINMAX = Calibration(description="", ranges="minmax", samples=200)
USUAL = Scheme(activations="uint8", symmetric_activations=False)
TENSORRT = Scheme(activations="int8", symmetric_activations=True, bias="float", reduce_range=False)
BY_EDGEKD = CandidateSpec("int8", "qdq")
OUTPUTS = ["logits", "embedding.image", "embedding.motion"]


@pytest.fixture(scope="module")
def build(model, samples, tmp_path_factory):
    """Quantize by a scheme and a calibration; the same ones only once."""
    built = {}

    def build(scheme=USUAL, calibration=MINMAX):
        key = repr((scheme, calibration))
        if key not in built:
            folder = tmp_path_factory.mktemp("quantized")
            quantize.run(BY_EDGEKD, model, samples, scheme, calibration, folder)
            built[key] = folder / "int8"
        return built[key]

    return build


def run(path, inputs):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True))


@pytest.fixture(scope="module")
def exact(model):
    return run(model, make_inputs(500, seed=1))


class Graph:
    """A quantized graph, to ask about."""

    def __init__(self, path):
        graph = onnx.load(path).graph
        self.nodes = list(graph.node)
        self.outputs = list(graph.output)
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output}

    def of(self, *kinds):
        return [node for node in self.nodes if node.op_type in kinds]

    def readers(self, *names):
        return [node for node in self.nodes if set(names) & set(node.input)]

    def stored(self, name):
        """Return the initializer that a tensor dequantizes, else None."""
        node = self.producer.get(name)
        return self.values.get(node.input[0]) if node is not None and node.op_type == "DequantizeLinear" else None

    def weights(self):
        return [self.stored(node.input[1]) for node in self.of("Conv", "Gemm", "MatMul")]

    def biases(self):
        return [node.input[2] for node in self.of("Conv", "Gemm") if len(node.input) > 2]


def test_counts_what_is_quantized(model, samples, tmp_path):
    result = quantize.run(BY_EDGEKD, model, samples, USUAL, MINMAX, tmp_path)
    folder = tmp_path / "int8"
    assert (result.name, result.precision) == ("int8", "int8")
    assert (result.quantized_nodes, result.weight_nodes) == (7, 7)
    assert result.sizes == {name: (folder / name).stat().st_size for name in (PROBE_GRAPH, DEPLOY)}
    assert {path.name for path in folder.iterdir()} == {DEPLOY, PROBE_GRAPH, PREPARED, QDQ}


def test_batch_normalization_is_folded_into_the_convolution_before_it(network, model, build):
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    graph = onnx.load(build() / PREPARED).graph
    producer = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "BatchNormalization":  # what standardizes raw inputs stays
            assert node.input[0] not in producer
    assert [node.op_type for node in graph.node].count("Conv") == 3


def test_the_kept_graphs_make_the_same_engine_again(build, tmp_path):
    again = write_variants(onnx.load(build() / QDQ), BY_EDGEKD, USUAL, tmp_path / "again")
    assert (again.quantized_nodes, again.weight_nodes) == (7, 7)
    for name in (PROBE_GRAPH, DEPLOY):
        assert (tmp_path / "again" / name).read_bytes() == (build() / name).read_bytes()
    inputs = make_inputs(64, seed=2)
    assert snr_db(run(build() / PREPARED, inputs)["logits"], run(build() / QDQ, inputs)["logits"]) > 25


def test_what_is_kept_has_nothing_in_half_precision(build):
    scheme = Scheme(activations="int8", symmetric_activations=True, bias="float", rest="float16")
    kept, engine = (onnx.load(build(scheme) / name).graph for name in (QDQ, PROBE_GRAPH))
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in kept.initializer}
    assert TensorProto.FLOAT16 in {tensor.data_type for tensor in engine.initializer}


@pytest.mark.parametrize("quantizer", ["qdq", "nncf"])
def test_reconstructed_weights_keep_the_network_better_than_nearest(model, tmp_path, quantizer):
    others = split_samples(tmp_path / "samples.npz", 200, 500)
    found = {}
    for rounding in ("nearest", "reconstruct"):
        (tmp_path / rounding).mkdir()
        how = Calibration(description="", ranges="minmax", samples=200, rounding=rounding)
        way = CandidateSpec("int8", quantizer)
        quantize.run(way, model, tmp_path / "samples.npz", USUAL, how, tmp_path / rounding)
        found[rounding] = run(tmp_path / rounding / way.name / PROBE_GRAPH, others)
    exact = run(model, others)
    for name in OUTPUTS:
        assert snr_db(exact[name], found["reconstruct"][name]) > snr_db(exact[name], found["nearest"][name]), name


def test_a_graph_that_takes_one_row_is_calibrated_row_by_row(tmp_path):
    random = np.random.default_rng(0)
    inputs = [
        make_tensor_value_info("x", TensorProto.FLOAT, [1, 8]),
        make_tensor_value_info("scale", TensorProto.DOUBLE, [1]),
        make_tensor_value_info("token", TensorProto.INT64, [1, 2]),
    ]
    nodes = [
        make_node("Cast", ["scale"], ["single"], to=TensorProto.FLOAT),
        make_node("Mul", ["x", "single"], ["scaled"]),
        make_node("Gather", ["table", "token"], ["rows"]),
        make_node("Flatten", ["rows"], ["flat"]),
        make_node("Concat", ["scaled", "flat"], ["all"], axis=1),
        make_node("Gemm", ["all", "w", "b"], ["logits"], name="head"),
        make_node("Identity", ["all"], ["embedding.x"]),
    ]
    stored = {"table": (6, 4), "w": (16, 5), "b": (5,)}
    tensors = [numpy_helper.from_array(random.normal(size=s).astype(np.float32), n) for n, s in stored.items()]
    outputs = [make_tensor_value_info(n, TensorProto.FLOAT, [1, s]) for n, s in (("logits", 5), ("embedding.x", 16))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    arrays = {
        "x": random.normal(size=(40, 8)).astype(np.float32),
        "scale": random.uniform(1, 2, 40),
        "token": random.integers(0, 6, (40, 2)),
    }
    np.savez(tmp_path / "s.npz", **{f"input.{name}": x for name, x in arrays.items()})
    for method in ("minmax", "percentile", "gram"):
        (tmp_path / method).mkdir()
        how = Calibration(description="", ranges=method, samples=40)
        quantize.run(BY_EDGEKD, tmp_path / "m.onnx", tmp_path / "s.npz", USUAL, how, tmp_path / method)
        rows = [{name: x[i : i + 1] for name, x in arrays.items()} for i in range(40)]
        exact, found = (
            np.concatenate([run(path, row)["logits"] for row in rows])
            for path in (tmp_path / "m.onnx", tmp_path / method / "int8" / PROBE_GRAPH)
        )
        assert snr_db(exact, found) > 30, method


def test_the_same_input_gives_the_same_bytes(build, model, samples, tmp_path):
    quantize.run(BY_EDGEKD, model, samples, USUAL, MINMAX, tmp_path)
    for name in (PROBE_GRAPH, DEPLOY):
        assert (build() / name).read_bytes() == (tmp_path / "int8" / name).read_bytes()


@pytest.mark.parametrize("scheme", [USUAL, TENSORRT], ids=["usual", "tensorrt"])
@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse", "gram"])
def test_int8_is_near_float(build, exact, scheme, method):
    folder = build(scheme, Calibration(description="", ranges=method, samples=200))
    found = run(folder / PROBE_GRAPH, make_inputs(500, seed=1))
    assert list(found) == OUTPUTS
    for name in OUTPUTS:
        assert snr_db(exact[name], found[name]) > 25, name


def test_outputs_are_float_and_not_rounded(build):
    graph = Graph(build() / PROBE_GRAPH)
    for output in graph.outputs:
        assert output.type.tensor_type.elem_type == TensorProto.FLOAT
        assert graph.producer[output.name].op_type not in ("DequantizeLinear", "QuantizeLinear")
    assert graph.of("QuantizeLinear")


def test_deploy_has_no_embeddings_and_the_same_logits(build):
    inputs = make_inputs(64, seed=2)
    engine, deploy = (run(build() / name, inputs) for name in (PROBE_GRAPH, DEPLOY))
    assert list(engine) == OUTPUTS
    assert list(deploy) == ["logits"]
    assert np.abs(engine["logits"] - deploy["logits"]).max() <= 0.02 * np.abs(deploy["logits"]).max()


def test_deploy_has_no_dead_nodes(build):
    graph = Graph(build() / DEPLOY)
    read = {name for node in graph.nodes for name in node.input} | {output.name for output in graph.outputs}
    assert all(any(name in read for name in node.output) for node in graph.nodes)
    assert graph.values.keys() <= read


def test_a_batch_of_any_size_runs(build):
    for batch in (1, 3, 64):
        assert run(build() / DEPLOY, make_inputs(batch))["logits"].shape == (batch, 4)


def test_raw_channels_of_unlike_scale_are_not_rounded_together(build, exact):
    """One scale for 1e4 and 1e-2 would leave nothing of the smaller: what standardizes them stays float."""
    graph = Graph(build() / PROBE_GRAPH)
    assert {node.op_type for node in graph.readers(*MODALITIES)}.isdisjoint({"QuantizeLinear", "Conv", "Gemm"})
    inputs = make_inputs(500, seed=1)
    found = run(build() / PROBE_GRAPH, inputs)
    assert snr_db(exact["embedding.motion"], found["embedding.motion"]) > 30


def test_raw_inputs_stay_float_whatever_operators_the_scheme_names(build, exact, samples, tmp_path):
    first = {node.op_type for node in Graph(build() / PROBE_GRAPH).readers(*MODALITIES)}
    scheme = Scheme(activations="uint8", symmetric_activations=False, operators=[*DEFAULT_OPERATORS, *first])
    assert {node.op_type for node in Graph(build(scheme) / PROBE_GRAPH).readers(*MODALITIES)} == first
    # Guards the test above: a quantizer that is told of no node that stays float rounds them, and is worse.
    rounding = find_quantizer("qdq").write(
        build() / PREPARED, CalibrationSamples(samples, MINMAX), scheme, tmp_path, ()
    )
    assert "QuantizeLinear" in {node.op_type for node in Graph(rounding).readers(*MODALITIES)}
    found = run(rounding, make_inputs(500, seed=1))
    assert snr_db(exact["embedding.motion"], found["embedding.motion"]) < 15


def test_the_usual_scheme(build):
    graph = Graph(build() / PROBE_GRAPH)
    assert {graph.values[node.input[2]].dtype for node in graph.of("QuantizeLinear")} == {np.dtype(np.uint8)}
    assert any(graph.values[node.input[2]].any() for node in graph.of("QuantizeLinear")), "zero points are free"
    assert {weight.dtype for weight in graph.weights()} == {np.dtype(np.int8)}
    assert {graph.stored(name).dtype for name in graph.biases()} == {np.dtype(np.int32)}
    assert max(np.abs(weight.astype(int)).max() for weight in graph.weights()) <= 64


def test_the_tensorrt_scheme(build):
    graph = Graph(build(TENSORRT) / PROBE_GRAPH)
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        zero = graph.values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    assert all(graph.stored(name) is None and graph.values[name].dtype == np.float32 for name in graph.biases())
    assert not any(value.dtype == np.int32 for value in graph.values.values())
    assert max(np.abs(weight.astype(int)).max() for weight in graph.weights()) > 64, "the range is not reduced"


@pytest.mark.parametrize("per_channel", [True, False])
def test_per_channel(build, per_channel):
    graph = Graph(
        build(Scheme(activations="uint8", symmetric_activations=False, per_channel=per_channel)) / PROBE_GRAPH
    )
    for node in graph.of("Conv"):
        scales = graph.values[graph.producer[node.input[1]].input[1]]
        assert scales.size == (len(graph.stored(node.input[1])) if per_channel else 1)


def test_only_the_schemes_operators_are_quantized(build):
    graph = Graph(build(Scheme(activations="uint8", symmetric_activations=False, operators=["Conv"])) / PROBE_GRAPH)
    assert all(graph.stored(node.input[1]) is not None for node in graph.of("Conv"))
    assert all(graph.stored(node.input[1]) is None for node in graph.of("Gemm", "MatMul"))


def refused(model, samples, folder, scheme=USUAL):
    with pytest.raises(ModelError) as error:
        quantize.run(BY_EDGEKD, model, samples, scheme, MINMAX, folder)
    assert str(error.value).startswith(str(model))
    assert "\n" not in str(error.value)
    assert list(folder.iterdir()) == []
    return str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a\x12"], ids=["empty", "text", "cut short"])
def test_a_broken_file_is_one_line(samples, tmp_path, content):
    (tmp_path / "broken.onnx").write_bytes(content)
    (tmp_path / "out").mkdir()
    refused(tmp_path / "broken.onnx", samples, tmp_path / "out")


def test_a_graph_with_a_wrong_shape_is_one_line(samples, tmp_path):
    weight = numpy_helper.from_array(np.zeros((3, 4), np.float32), "w")
    inputs = [make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in MODALITIES.items()]
    logits = make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    nodes = [make_node("Flatten", ["image"], ["flat"]), make_node("MatMul", ["flat", "w"], ["logits"])]
    graph = helper.make_graph(nodes, "g", inputs, [logits], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "wrong.onnx")
    (tmp_path / "out").mkdir()
    refused(tmp_path / "wrong.onnx", samples, tmp_path / "out")


def test_a_graph_with_nothing_to_quantize(model, samples, tmp_path):
    scheme = Scheme(activations="uint8", symmetric_activations=False, operators=["ConvTranspose"])
    said = refused(model, samples, tmp_path, scheme)
    assert "nothing in it could be quantized; the scheme quantizes ConvTranspose" in said


PLUGIN = """
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static


class Reader(CalibrationDataReader):
    def __init__(self, samples):
        self.chunks = iter(samples)

    def get_next(self):
        return next(self.chunks, None)


def mine(prepared, samples, scheme, folder, floats):
    written = folder / "mine.onnx"
    quantize_static(str(prepared), str(written), Reader(samples), quant_format=QuantFormat.QDQ, per_channel=True,
                    nodes_to_exclude=list(floats))
    return written


def raises(prepared, samples, scheme, folder, floats):
    raise KeyError("scale")


def absent(prepared, samples, scheme, folder, floats):
    return folder / "absent.onnx"


number = 3
"""


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    return lambda name: f"{tmp_path / 'mine.py'}:{name}"


def test_a_users_own_quantizer(plugin, model, samples, exact, tmp_path):
    """It needs its file and its name in a target, and nothing else."""
    (tmp_path / "out").mkdir()
    spec = CandidateSpec("int8", plugin("mine"))
    assert spec.name == "int8-mine"
    candidate = quantize.run(spec, model, samples, USUAL, MINMAX, tmp_path / "out")
    assert 0 < candidate.quantized_nodes <= candidate.weight_nodes
    found = run(tmp_path / "out" / "int8-mine" / PROBE_GRAPH, make_inputs(500, seed=1))
    assert snr_db(exact["logits"], found["logits"]) > 15
    assert quantize.quantizer_digests([spec]).keys() == {spec.quantizer}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", r"quantizer .*mine\.py:raises: KeyError: 'scale'"),
        ("absent", r"quantizer .*mine\.py:absent: returned .*absent\.onnx, which is no file"),
    ],
)
def test_a_users_quantizer_that_fails_is_named(plugin, model, samples, tmp_path, name, said):
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=said):
        quantize.run(CandidateSpec("int8", plugin(name)), model, samples, USUAL, MINMAX, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ncnf", "there is no 'ncnf'; did you mean 'nncf'?"),
        ("lost.py:mine", "lost.py: no such file"),
        ("{file}:mime", "has no 'mime'; did you mean 'mine'?"),
        ("{file}:number", "is a int, must be a Quantizer or a function"),
        ("{file}:", "write it as path/to/file.py:name"),
    ],
)
def test_a_quantizer_that_there_is_not_is_refused_before_anything_is_written(plugin, name, said):
    file = plugin("").removesuffix(":")
    with pytest.raises(TargetError) as error:
        find_quantizer(name.format(file=file))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
