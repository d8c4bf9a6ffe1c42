"""NVIDIA's own TensorRT-RTX parses and builds each graph here; none is run, which needs a GPU."""

import gc
import json
import re
import sys

import numpy as np
import pytest
from onnx.helper import make_node
from refused import quantized, serialized, single
from requirements import NO_GPU, RTX_PACKAGE

from edgekd.errors import DeviceError, MissingDependency, ModelError, TargetError
from edgekd.runtime.backends.cuda import Gpu
from edgekd.runtime.backends.tensorrt import absent, keep_plan, open_engine, open_plan
from edgekd.runtime.backends.tensorrt_build import BuildOptions, PlanBuilder, build_plan, timing_cache_key
from edgekd.runtime.backends.tensorrt_library import RTX, TENSORRT, deserialize, library, make
from edgekd.runtime.backends.tensorrt_log import Journal

pytestmark = RTX_PACKAGE.mark

SM86 = BuildOptions(compute_capabilities=("SM86",))


@pytest.fixture(scope="module")
def trt():
    return library(RTX)


@pytest.fixture(scope="module")
def plan():
    return build_plan(quantized(), RTX, SM86)


def refused(model, options=SM86, error=ModelError):
    with pytest.raises(error) as caught:
        build_plan(model, RTX, options, name="net.onnx")
    message = str(caught.value)
    assert "\n" not in message
    assert "/_src/" not in message
    assert error is not ModelError or message.startswith("net.onnx: ")
    return message


def parses(trt, model):
    """Whether the library alone, with none of edgekd's rules, takes the graph."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    return trt.OnnxParser(network, logger).parse(model)


def test_a_quantized_graph_builds(plan, trt):
    assert plan.content.startswith(b"vtrt")
    assert (plan.library, plan.version) == ("TensorRT-RTX", trt.__version__)
    assert plan.messages == ()
    assert plan.dla_fallback == ()


def test_a_file_builds_like_its_content(plan, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(quantized())
    assert build_plan(path, RTX, SM86).layers == plan.layers


@NO_GPU.mark
def test_without_a_gpu_layers_are_those_of_the_graph(plan):
    assert plan.layers_from.startswith("graph: ")
    assert "needs a working NVIDIA GPU to open an engine" in plan.layers_from
    assert plan.layers_from.count("cudaError") == 1, "each failure is said once"
    layers = {layer["Name"]: layer for layer in plan.layers}
    assert layers["conv.Conv"] == {
        "Name": "conv.Conv",
        "LayerType": "CONVOLUTION",
        "Outputs": [{"Name": "conv", "Dimensions": [-1, 5, 4, 4], "Datatype": "FLOAT"}],
    }
    assert layers["image.q.QuantizeLinear"]["Outputs"][0]["Datatype"] == "INT8"
    assert {"CONVOLUTION", "MATRIX_MULTIPLY", "CONCATENATION"} <= {layer["LayerType"] for layer in plan.layers}
    assert "CONSTANT" not in {layer["LayerType"] for layer in plan.layers}


def test_an_int32_bias_is_refused(trt):
    model = quantized(bias="int32")
    assert not parses(trt, model)
    message = refused(model)
    assert "refuses node 'conv.bias.dq.DequantizeLinear' (DequantizeLinear)" in message
    assert "has type Int32 but must have type" in message
    assert message.endswith('set bias = "float" in the target\'s scheme')


@pytest.mark.parametrize(("dtype", "zero_point"), [(np.int8, 3), (np.uint8, 128)])
def test_a_zero_point_is_refused(trt, dtype, zero_point):
    model = quantized(zero_point, dtype)
    assert not parses(trt, model)
    message = refused(model)
    assert "refuses node 'image.q.QuantizeLinear' (QuantizeLinear)" in message
    assert message.endswith("set symmetric_activations = true in the target's scheme")


def test_uint8_that_would_be_read_as_int8_is_refused(trt):
    model = quantized(dtype=np.uint8)
    assert parses(trt, model), "the library itself only warns"
    message = refused(model)
    assert "misreads node 'image.q.QuantizeLinear' (QuantizeLinear)" in message
    assert "Defaulting to INT8" in message
    assert message.endswith('set activations = "int8" in the target\'s scheme')


def test_an_unknown_type_is_refused():
    message = refused(quantized(dtype=np.int16))
    assert "Failed to import initializer: image.zero" in message
    assert "knows no tensor of that type" in message


def test_random_numbers_are_refused(trt):
    nodes = [
        make_node("RandomUniformLike", ["x"], ["r"], seed=1.0, name="noise"),
        make_node("Add", ["x", "r"], ["y"], name="add"),
    ]
    model = serialized(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, {})
    assert parses(trt, model), "the library itself only warns"
    assert "misreads node 'noise' (RandomUniformLike)" in refused(model)


def test_a_clamped_weight_is_refused(trt):
    nodes = [make_node("Cast", ["w"], ["f"], to=1, name="cast"), make_node("Mul", ["x", "f"], ["y"], name="mul")]
    model = serialized(nodes, {"x": ["batch", 2]}, {"y": ["batch", 2]}, {"w": np.array([1e300, 1.0])})
    assert parses(trt, model), "the library itself only warns"
    assert "misreads constant 'w'" in refused(model)


def test_an_overflow_warned_of_while_building_is_found(trt):
    """Only TensorRT before 10.12 makes FP16 of weights by itself; the words are its own."""
    journal = Journal(trt)
    journal.logger.log(trt.ILogger.WARNING, " - Subnormal FP16 values detected.")
    assert journal.wrong() is None
    journal.logger.log(trt.ILogger.WARNING, " - Finite FP32 values which would overflow in FP16 detected.")
    assert journal.wrong()[2].startswith("a weight is above 65504")


@pytest.mark.parametrize(
    ("model", "node"),
    [(single("Det", ["batch", 4, 4]), "'only' (Det)"), (single("Own", domain="my.domain"), "'only' (Own)")],
)
def test_an_operator_that_it_lacks_is_named(model, node):
    message = refused(model)
    assert f"refuses node {node}" in message
    assert message.endswith("TensorRT does not have this operator: write the network without it")


def test_a_dynamic_batch_needs_a_profile():
    steps = PlanBuilder(library(RTX), RTX, "net.onnx")
    steps.parse(quantized())
    steps.configure(SM86)
    with pytest.raises(ModelError, match=r"net\.onnx: .* cannot build it: .* no optimization profile has been defined"):
        steps.serialize(None, None)


@pytest.mark.parametrize("max_batch", [1, 7])
def test_the_profile_takes_batches_up_to_max_batch(max_batch):
    steps = PlanBuilder(library(RTX), RTX, "net.onnx")
    steps.parse(quantized())
    profile = steps.profile(max_batch)
    assert [tuple(shape) for shape in profile.get_shape("accel")] == [(1, 4), (1, 4), (max_batch, 4)]
    assert [shape[0] for shape in profile.get_shape("image")] == [1, 1, max_batch]


def test_a_fixed_batch_needs_no_profile():
    steps = PlanBuilder(library(RTX), RTX, "net.onnx")
    steps.parse(single("Relu", [2, 4]))
    assert steps.profile(64) is None
    assert build_plan(single("Relu", [2, 4]), RTX, SM86).content


def test_another_dynamic_dimension_is_named():
    message = refused(single("Relu", ["batch", "time"]))
    assert "dimension 1 of input 'x' is dynamic" in message


def test_no_batch_at_all():
    with pytest.raises(ValueError, match="1 or more, not 0"):
        build_plan(quantized(), RTX, BuildOptions(max_batch=0))


def test_turing_is_refused():
    message = refused(quantized(), BuildOptions(compute_capabilities=("SM75",)))
    assert "Cannot compile operation 'accel.linear.Gemm' for Turing" in message
    assert message.endswith("choose a compute capability from SM80 on")


@pytest.mark.parametrize("capability", ["SM87", "NONE", "8.6"])
def test_an_unknown_compute_capability_is_named(capability):
    message = refused(quantized(), BuildOptions(compute_capabilities=("SM86", capability)), TargetError)
    assert f"no compute capability '{capability}'; " in message
    assert "SM86" in message


@NO_GPU.mark
def test_building_for_this_machine_needs_its_gpu():
    assert "needs a working NVIDIA GPU" in refused(quantized(), BuildOptions(), DeviceError)


def test_a_dla_where_there_is_none():
    options = BuildOptions(max_batch=1, compute_capabilities=("SM86",), dla=True)
    assert "finds no DLA on this machine" in refused(quantized(), options, TargetError)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (b"", "finds no graph in it"),
        (b"not a model", "the file is broken or no ONNX"),
        (quantized()[:900], "the file is broken or no ONNX"),
    ],
    ids=["empty", "text", "cut"],
)
def test_a_broken_model_is_named(model, said):
    assert said in refused(model)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"net\.onnx: cannot be read: No such file"):
        build_plan(tmp_path / "net.onnx", RTX, SM86)


def test_a_broken_model_does_not_open():
    with pytest.raises(ModelError, match=r"net\.onnx: .* the file is broken or no ONNX"):
        open_plan(quantized()[:900], "net.onnx", RTX, SM86, None)


def test_the_collector_is_off_whenever_the_library_logs(monkeypatch):
    """Freeing a builder of before inside the logger waits for ever: the library holds the lock that this takes."""
    seen = []
    take = Journal._take

    def observed(self, severity, message):
        seen.append(gc.isenabled())
        take(self, severity, message)

    monkeypatch.setattr(Journal, "_take", observed)
    build_plan(quantized(), RTX, SM86)
    with pytest.raises(ModelError):
        build_plan(quantized(bias="int32"), RTX, SM86)
    assert len(seen) > 100
    assert not any(seen)
    assert gc.isenabled()


@NO_GPU.mark
def test_where_no_engine_can_run_it_is_said():
    assert absent(RTX, max_batch=1).startswith("this needs an NVIDIA GPU and its driver")


@NO_GPU.mark
def test_opening_needs_the_driver(plan):
    for engine in (plan.content, quantized()):
        with pytest.raises(DeviceError, match=r"needs an NVIDIA GPU and its driver: libcuda\.so\.1"):
            open_plan(engine, None, RTX, SM86, None)
    with pytest.raises(DeviceError, match="NVIDIA"):
        Gpu()


def test_no_threads_are_refused_as_elsewhere(plan):
    with pytest.raises(ValueError, match="1 or more, not 0"):
        open_engine(plan.content, threads=0, flavor=RTX)


@pytest.mark.parametrize("cut", [slice(0), slice(50), slice(None, -9)], ids=["empty", "start", "end"])
def test_a_broken_plan_is_named(trt, plan, cut):
    journal = Journal(trt)
    runtime = make(trt.Runtime, journal, "TensorRT-RTX")
    with pytest.raises(ModelError, match=r"net\.plan: TensorRT-RTX cannot open it: .+; build it on this machine"):
        deserialize(runtime, plan.content[cut], journal, "net.plan", "TensorRT-RTX")


@NO_GPU.mark
def test_timings_are_keyed_by_all_that_they_depend_on(trt):
    key = timing_cache_key(trt)
    assert re.fullmatch(r"[\w.-]+", key)
    version, gpu, _, power = key.split("_")
    assert (version, gpu, power) == (f"trt-{trt.__version__}", "none", "none")


def test_a_missing_library_names_its_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", None)
    with pytest.raises(MissingDependency, match=r'pip install "edgekd\[tensorrt\]"'):
        library(TENSORRT)
    with pytest.raises(MissingDependency, match=r'pip install "edgekd\[build\]"'):
        library(RTX)


def test_what_is_built_can_be_kept_and_is_built_once(tmp_path):
    (tmp_path / "net.onnx").write_bytes(quantized())
    first, again = tmp_path / "first", tmp_path / "again"
    how = (RTX, SM86, tmp_path / "cache")
    for folder in (first, again):
        folder.mkdir()
    built = keep_plan(tmp_path / "net.onnx", first, *how)
    assert built.files == ("net.plan", "net.json")
    assert built.library == f"TensorRT-RTX {library(RTX).__version__}"
    assert built.build_s > 0
    assert (first / "net.plan").read_bytes().startswith(b"vtrt")
    assert json.loads((first / "net.json").read_text())["layers"]
    assert keep_plan(tmp_path / "net.onnx", again, *how) == built, "the time is that of the one build"
    assert (again / "net.plan").read_bytes() == (first / "net.plan").read_bytes()
    assert keep_plan(first / "net.plan", again, *how) is None, "nothing is made of a plan any more"
