import json
import os
import subprocess
import sys

import numpy as np
import pytest
from engines import EMBEDDINGS, samples, save_engine, save_graph
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info
from onnxruntime import quantization
from requirements import X86

from edgekd.errors import DeviceError, ModelError, TargetError
from edgekd.runtime.backends import onnxruntime
from edgekd.runtime.backends.openvino import absent, devices, library, open_engine
from edgekd.runtime.backends.registry import Runtime
from edgekd.runtime.session import TensorSpec

#: OpenVINO and ONNX Runtime add up in different orders.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def path(tmp_path):
    return save_engine(tmp_path / "e.onnx")


@pytest.fixture(scope="module")
def qdq(tmp_path_factory):
    """Return the engine as INT8 in ONNX Runtime's QDQ form."""
    folder = tmp_path_factory.mktemp("qdq")
    feeds = [samples(64, seed=1)]

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return feeds.pop() if feeds else None

    quantization.quantize_static(
        str(save_engine(folder / "float.onnx")),
        str(folder / "qdq.onnx"),
        Reader(),
        weight_type=quantization.QuantType.QInt8,
        reduce_range=True,  # ONNX Runtime's sums saturate on processors without VNNI
    )
    return folder / "qdq.onnx"


def assert_same(found, expected, **tolerance):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, err_msg=name, **tolerance)


def test_inputs_and_outputs_are_those_of_onnx_runtime(path):
    with open_engine(path) as session, onnxruntime.open_engine(path) as reference:
        assert (session.inputs, session.outputs) == (reference.inputs, reference.outputs)


def test_results_are_those_of_onnx_runtime_at_any_batch_size(path):
    with open_engine(path) as session, onnxruntime.open_engine(path) as reference:
        for run, rows in enumerate((1, 7, 1, 2, 7)):
            feeds = samples(rows, seed=run)
            assert_same(session.run(feeds), reference.run(feeds), **CLOSE)


def test_int8_results_are_those_of_onnx_runtime(qdq):
    exact = qdq.with_name("float.onnx")
    with (
        open_engine(qdq) as session,
        onnxruntime.open_engine(qdq) as reference,
        onnxruntime.open_engine(exact) as unrounded,
    ):
        for rows in (1, 7, 1):
            found, expected, original = (s.run(samples(rows)) for s in (session, reference, unrounded))
            for name, array in expected.items():
                step = np.abs(array - original[name]).max()
                assert step > 0, "rounded to INT8"
                assert np.abs(found[name] - array).max() < 2 * step


def test_a_graph_without_a_batch_runs(tmp_path):
    path = save_engine(tmp_path / "fixed.onnx", batch=3)
    with open_engine(path) as session, onnxruntime.open_engine(path) as reference:
        assert session.inputs == reference.inputs
        assert_same(session.run(samples(3)), reference.run(samples(3)), **CLOSE)


def test_bytes_open_like_the_file(path):
    with open_engine(path) as from_file, open_engine(path.read_bytes()) as from_bytes:
        assert_same(from_bytes.run(samples(2)), from_file.run(samples(2)))


def test_outputs_keep_their_names_and_order(tmp_path):
    names = ("logits", *EMBEDDINGS)
    for outputs in (names, names[::-1], names[:1]):
        with open_engine(save_engine(tmp_path / "e.onnx", outputs)) as session:
            assert tuple(spec.name for spec in session.outputs) == outputs
            assert tuple(session.run(samples(1))) == outputs


def test_row_by_row_where_the_device_has_no_dynamic_batch(path):
    with open_engine(path) as session:
        expected = session.run(samples(7))
    with open_engine(path) as session:
        session._dynamic_batch = False  # as on an NPU
        assert_same(session.run(samples(7)), expected, **CLOSE)
        assert session._any is None


@pytest.mark.parametrize("rows", [1, 3])
def test_arrays_of_any_layout_are_read_right(path, rows):
    feeds = samples(rows)
    wide = np.zeros((2 * rows, 1, 2, 3), np.float32)
    wide[::2] = feeds["image"]
    strange = {"accel": np.asfortranarray(feeds["accel"]), "image": wide[::2]}
    reversed_rows = {name: array[::-1].copy()[::-1] for name, array in feeds.items()}
    frozen = {name: array.copy() for name, array in feeds.items()}
    for array in frozen.values():
        array.setflags(write=False)
    with open_engine(path) as session:
        expected = session.run(feeds)
        for variant in (strange, reversed_rows, frozen):
            assert_same(session.run(variant), expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_results_belong_to_the_caller(path, rows):
    with open_engine(path) as session:
        first = session.run(samples(rows, seed=1))
        kept = {name: array.copy() for name, array in first.items()}
        second = session.run(samples(rows, seed=2))
        assert not np.array_equal(second["logits"], kept["logits"])
        assert_same(first, kept)
        first["logits"][:] = 0
        assert second["logits"].any()
    assert_same({**first, "logits": kept["logits"]}, kept)


def test_an_output_that_is_an_input_is_a_copy(tmp_path):
    graph = helper.make_graph(
        [make_node("Identity", ["x"], ["y"])], "identity", [_tensor("x", ["n", 2])], [_tensor("y", ["n", 2])]
    )
    with open_engine(save_graph(tmp_path / "identity.onnx", graph)) as session:
        for rows in (1, 2):
            x = np.ones((rows, 2), np.float32)
            y = session.run({"x": x})["y"]
            x[:] = 5
            session.run({"x": x})
            assert (y == 1).all()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(TensorProto.INT64, "int64"), (TensorProto.UINT8, "uint8"), (TensorProto.FLOAT16, "float16")],
)
def test_other_types_than_float_keep_theirs(tmp_path, kind, dtype):
    graph = helper.make_graph(
        [make_node("Concat", ["x", "x"], ["y"], axis=1)],
        "other",
        [_tensor("x", ["n", 2], kind)],
        [_tensor("y", ["n", 4], kind)],
    )
    with open_engine(save_graph(tmp_path / "other.onnx", graph)) as session:
        assert session.inputs == (TensorSpec("x", dtype, ("batch", 2)),)
        for rows in (1, 2):
            x = np.arange(2 * rows).reshape(rows, 2).astype(dtype)
            assert_same(session.run({"x": x}), {"y": np.concatenate([x, x], axis=1)})
        with pytest.raises(ModelError, match=rf"input 'x' must be {dtype}"):
            session.run({"x": np.zeros((1, 2), np.float32)})


def test_booleans(tmp_path):
    graph = helper.make_graph(
        [make_node("Not", ["x"], ["y"])],
        "not",
        [_tensor("x", ["n", 2], TensorProto.BOOL)],
        [_tensor("y", ["n", 2], TensorProto.BOOL)],
    )
    with open_engine(save_graph(tmp_path / "not.onnx", graph)) as session:
        assert_same(session.run({"x": np.array([[True, False]])}), {"y": np.array([[False, True]])})


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_precision_and_latency_are_what_was_asked(path, threads):
    with open_engine(path, threads) as session:
        session.run(samples(2))
        for request in (session._single, session._any):
            compiled = request.get_compiled_model()
            assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
            assert compiled.get_property("NUM_STREAMS") == 1
            assert compiled.get_property("PERFORMANCE_HINT") == "LATENCY"
            assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
            assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


LACKING = """
import sys
from pathlib import Path
from edgekd.errors import ModelError
from edgekd.runtime.backends.openvino import absent, open_engine
print(absent("CPU", "f16"))
try:
    open_engine(Path(sys.argv[1]), precision="f16")
except ModelError as error:
    print(error)
"""


@X86.mark
def test_a_precision_that_the_device_lacks_is_refused(path):
    """In a process whose processor lacks f16, as most do, whatever this one has."""
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    said = subprocess.run([sys.executable, "-c", LACKING, path], env=env, check=True, capture_output=True, text=True)
    chosen = "f32" if absent("CPU", "bf16") else "bf16"
    assert said.stdout.splitlines() == [
        "CPU does not compute in f16",
        f"{path}: CPU would compute in {chosen}, not in f16",
    ]


def test_no_threads_would_mean_all_of_them(path):
    with pytest.raises(ValueError, match="1 or more, not 0"):
        open_engine(path, threads=0)


def test_an_unknown_precision_is_refused(path):
    with pytest.raises(TargetError, match="f32, f16, bf16, not 'int8'"):
        open_engine(path, precision="int8")


def test_a_device_that_is_not_there_is_named(path):
    assert "CPU" in devices()
    assert absent() is None
    assert absent("GPU.7").startswith("OpenVINO finds no device 'GPU.7' here")
    with pytest.raises(DeviceError, match=r"no device 'GPU\.7' here; available: .*CPU"):
        open_engine(path, device="GPU.7")


def test_the_cache_keeps_the_compiled_model(path, tmp_path):
    cache = tmp_path / "cache"
    with open_engine(path, cache=cache) as session:
        expected = session.run(samples(1)), session.run(samples(2))
    blobs = {blob: blob.stat().st_mtime_ns for blob in cache.glob("*.blob")}
    assert len(blobs) == 2, "of batch 1, and of any batch"
    with open_engine(path, cache=cache) as session:
        for rows in (1, 2):
            assert_same(session.run(samples(rows)), expected[rows - 1])
    assert {blob: blob.stat().st_mtime_ns for blob in cache.glob("*.blob")} == blobs


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"cut"], ids=["absent", "empty", "text", "cut"])
def test_a_broken_file_is_named(path, content):
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:200] if content == b"cut" else content)
    with pytest.raises(ModelError, match=r"e\.onnx: OpenVINO cannot open it: \w"):
        open_engine(path)


def test_broken_bytes_are_named_as_told():
    with pytest.raises(ModelError, match=r"bundle/deploy\.onnx: OpenVINO cannot open it"):
        open_engine(b"not a model", name="bundle/deploy.onnx")


def test_a_run_checks_its_feeds(path):
    with open_engine(path) as session:
        with pytest.raises(ModelError, match="'image'"):
            session.run({"accel": samples(1)["accel"]})
        with pytest.raises(ModelError, match="inputs must agree on the size of 'batch'"):
            session.run({"accel": samples(1)["accel"], "image": samples(3)["image"]})
        with pytest.raises(ModelError, match="a batch of no rows"):
            session.run(samples(0))


def test_a_closed_engine_does_not_run(path):
    with open_engine(path) as session:
        pass
    with pytest.raises(ModelError, match=r"e\.onnx: the engine is closed"):
        session.run(samples(1))


def test_a_failure_while_running_is_named_and_leaves_the_session_usable(tmp_path):
    graph = helper.make_graph(
        [make_node("Reshape", ["x", "shape"], ["y"])],
        "reshape",
        [_tensor("x", [4]), _tensor("shape", [2], TensorProto.INT64)],
        [_tensor("y", ["n", "m"])],
    )
    x = np.arange(4, dtype=np.float32)
    with open_engine(save_graph(tmp_path / "reshape.onnx", graph)) as session:
        for _ in range(2):
            assert session.run({"x": x, "shape": np.array([2, 2])})["y"].tolist() == [[0, 1], [2, 3]]
            with pytest.raises(ModelError, match=r"reshape\.onnx: OpenVINO failed to run it: .*conflicts"):
                session.run({"x": x, "shape": np.array([3, 3])})


def test_only_the_batch_may_be_dynamic(tmp_path):
    graph = helper.make_graph(
        [make_node("Relu", ["x"], ["y"])], "wide", [_tensor("x", ["n", "k"])], [_tensor("y", ["n", "k"])]
    )
    with pytest.raises(
        ModelError, match=r"wide\.onnx: only the batch may be dynamic, but input 'x' is float32 \[batch"
    ):
        open_engine(save_graph(tmp_path / "wide.onnx", graph))


def test_a_graph_that_cannot_have_a_batch_of_one_is_named(tmp_path):
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2, 6])
    graph = helper.make_graph(
        [make_node("Reshape", ["x", "shape"], ["y"])],
        "pairs",
        [_tensor("x", ["n", 6])],
        [_tensor("y", [2, 6])],
        [shape],
    )
    with pytest.raises(ModelError, match=r"pairs\.onnx: it cannot have a batch of 1: \w"):
        open_engine(save_graph(tmp_path / "pairs.onnx", graph))


def test_a_type_that_numpy_lacks_is_named(tmp_path):
    strings = [_tensor(name, [1], TensorProto.STRING) for name in ("x", "y")]
    graph = helper.make_graph([make_node("Identity", ["x"], ["y"])], "strings", strings[:1], strings[1:])
    with pytest.raises(ModelError, match=r"s\.onnx: 'x' is of type string"):
        open_engine(save_graph(tmp_path / "s.onnx", graph))


def test_importing_it_reports_to_nobody(tmp_path):
    """In a process of its own: what was imported before would keep its ways."""
    code = (
        "import os, edgekd; before = dict(os.environ); from edgekd.runtime.backends.openvino import library; library();"
        "import openvino_telemetry; assert openvino_telemetry.Telemetry().consent is False; assert os.environ == before"
    )
    env = {"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert not list(tmp_path.iterdir()), "no client ID"


def _tensor(name, shape, kind=TensorProto.FLOAT):
    return make_tensor_value_info(name, kind, shape)


def test_what_is_compiled_here_can_be_kept(path, tmp_path):
    (tmp_path / "kept").mkdir()
    runtime = Runtime("openvino")
    built = runtime.build(path, tmp_path / "kept")
    assert built.library == f"OpenVINO {library().__version__}"
    assert built.build_s > 0
    assert [file.name for file in (tmp_path / "kept").iterdir()] == list(built.files)
    assert json.loads(json.dumps(built.open_with)) == built.open_with
    blob = (tmp_path / "kept" / built.files[0]).read_bytes()
    compiled = library().Core().import_model(blob, **built.open_with)
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    with runtime.open(path) as session:
        feeds = samples(1)
        for name, expected in session.run(feeds).items():
            np.testing.assert_allclose(compiled(feeds)[name], expected, rtol=1e-5, atol=1e-6)


# --- computing alone


def test_computing_alone_is_timed_on_the_given_feeds(path):
    with open_engine(path) as session:
        session.run(samples(1, seed=1))
        assert session.bind_inputs(samples(1, seed=2))() > 0
        placed = dict(session._results)["logits"].copy()
        np.testing.assert_array_equal(placed, session.run(samples(1, seed=2))["logits"])


def test_computing_alone_checks_its_feeds(path):
    with open_engine(path) as session, pytest.raises(ModelError, match="not given all of its inputs"):
        session.bind_inputs({"accel": samples(1)["accel"]})


def test_a_closed_engine_computes_nothing(path):
    session = open_engine(path)
    session.close()
    with pytest.raises(ModelError, match="the engine is closed"):
        session.bind_inputs(samples(1))


def test_a_graph_of_dynamic_sizes_is_not_timed_alone(tmp_path):
    nodes = [make_node("NonZero", ["x"], ["i"]), make_node("Cast", ["i"], ["logits"], to=TensorProto.FLOAT)]
    graph = helper.make_graph(
        nodes,
        "dynamic",
        [make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [make_tensor_value_info("logits", TensorProto.FLOAT, [2, None])],
    )
    with open_engine(save_graph(tmp_path / "d.onnx", graph)) as session:
        assert session.bind_inputs({"x": np.ones((1, 4), np.float32)}) is None


@pytest.mark.parametrize("axes", [[1], [-1], [1, 2]], ids=str)
@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_int8_means_over_three_dimensions_are_right_for_every_sample(tmp_path, kind, axes, keepdims):
    """OpenVINO by itself computes the first sample of a batch and leaves the others as the memory was."""
    constants = {"scale": np.float32(0.02), "zero": np.uint8(120), "axes": np.array(axes), "two": np.float32(2)}
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "two"], ["m"]),
            helper.make_node("QuantizeLinear", ["m", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            helper.make_node(kind, ["d", "axes"], ["y"], keepdims=keepdims),
        ],
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 10, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"] + [None] * (2 if keepdims else 2 - len(axes)))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = save_graph(tmp_path / "means.onnx", graph)
    with open_engine(path) as session, onnxruntime.open_engine(path, fused=False) as reference:
        for rows in (1, 2, 64):
            x = np.random.default_rng(rows).normal(size=(rows, 10, 16)).astype(np.float32)
            assert_same(session.run({"x": x}), reference.run({"x": x}), **CLOSE)
