import json

import numpy as np
import pytest
from engines import samples, save_engine, save_graph
from onnx import TensorProto, helper, numpy_helper

from edgekd.runtime.backends import onnxruntime
from edgekd.runtime.backends.openvino import layer_times
from edgekd.runtime.backends.registry import ORT, Runtime
from edgekd.runtime.measure.layers import assign_branches, from_ort_trace, from_tensorrt
from edgekd.runtime.measure.results import EngineProfile, LayerTime, Profile, latency_from


def rows(count):
    return [{name: x[row : row + 1] for name, x in samples(count).items()} for row in range(count)]


# --- real engines


def test_onnx_runtime_times_each_node(tmp_path):
    layers = onnxruntime.layer_times(save_engine(tmp_path / "e.onnx"), 1, rows(30))
    assert {layer.kind for layer in layers} == {"MatMul", "Flatten", "Concat", "Gemm"}
    assert len(layers) == 5
    assert all(0 < layer.mean_ms < 100 and layer.branch is None for layer in layers)


def test_one_row_is_enough(tmp_path):
    assert len(onnxruntime.layer_times(save_engine(tmp_path / "e.onnx"), 1, rows(1))) == 5


def test_a_trace_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnxruntime.layer_times(save_engine(tmp_path / "e.onnx"), 1, rows(1))
    assert [path.name for path in tmp_path.iterdir()] == ["e.onnx"]


def test_openvino_times_layers_that_are_longer_than_its_clocks_step(tmp_path):
    engine = save_large_engine(tmp_path / "large.onnx")
    row = {"x": np.ones((1, 3, 64, 64), np.float32)}
    layers = layer_times(engine, 1, [row])
    heavy = [layer for layer in layers if "conv" in layer.nodes]
    assert heavy
    assert sum(layer.mean_ms for layer in heavy) > 0.5 * sum(layer.mean_ms for layer in layers)


def save_large_engine(path):
    weight = numpy_helper.from_array(np.full((64, 3, 7, 7), 0.01, np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
        helper.make_node("ReduceMean", ["y"], ["logits"], "mean", keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 64, 64])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)]
    return save_graph(path, helper.make_graph(nodes, "large", inputs, outputs, [weight]))


def test_openvino_says_nothing_of_an_engine_of_tiny_layers(tmp_path):
    assert Runtime("openvino").layer_times(save_engine(tmp_path / "e.onnx"), 1, rows(5)) == ()


def test_a_users_own_runtime_has_no_profiler_that_is_known(tmp_path):
    (tmp_path / "mine.py").write_text("def open_engine(engine, threads, name):\n    raise AssertionError\n")
    assert Runtime(f"{tmp_path / 'mine.py'}:open_engine").layer_times(tmp_path / "e.onnx", 1, rows(1)) is None


def test_the_registry_passes_an_engines_options(tmp_path):
    assert len(ORT.layer_times(save_engine(tmp_path / "e.onnx"), 1, rows(3))) == 5


# --- what the libraries say


def test_a_trace_is_read_without_its_first_runs(tmp_path):
    def event(name, us, kind="Gemm", category="Node"):
        return {"cat": category, "name": name, "dur": us, "args": {"op_name": kind}}

    runs = [900, 30, 20, 40]
    events = [
        event("model_run", 999, category="Session"),
        *(event("fused a_kernel_time", us, "FusedGemm") for us in runs),
    ]
    looped = [event("b_kernel_time", us) for us in (90, 90, 1, 2, 1, 2, 1, 2)]  # twice a run
    path = tmp_path / "trace.json"
    path.write_text(json.dumps([event("model_run", 999, category="Session"), *events, *looped]))
    first, second = from_ort_trace(path, runs=4, skipped=1)
    assert first == LayerTime("fused a", "FusedGemm", None, 0.03, ("a",))
    assert second == LayerTime("b", "Gemm", None, 0.003, ("b",))


def test_tensorrts_names_are_taken_apart():
    assert from_tensorrt({"conv": [1.0, 1.25, 1.0, 500.0, 1.25, 1.0, 1.0, 1.0]})[0].mean_ms == 1.0625
    assert from_tensorrt({"conv + relu": [1.0, 3.0]}) == (LayerTime("conv + relu", "", None, 2.0, ("conv", "relu")),)


BRANCHES = {"a.0": "image", "a.1": "image", "b.0": "audio", "cat": "fusion", "cat_q": "fusion"}


@pytest.mark.parametrize(
    ("nodes", "branch"),
    [
        (["a.0"], "image"),
        (["a.0/WithoutBiases/Scale"], "image"),
        (["cat_q_2"], "fusion"),
        (["Convert_1", "b.0"], "audio"),
        (["a.1", "cat_q"], "image"),
        (["cat", "a.1"], "fusion"),
        (["a.0", "b.0"], "fusion"),
        (["Reformat"], None),
        (["unknown_7"], None),
        ([], None),
    ],
    ids=str,
)
def test_a_layer_belongs_to_the_branch_of_its_main_node(nodes, branch):
    layer = LayerTime("layer", "", None, 1.0, tuple(nodes))
    engine = EngineProfile("engine", latency_from(np.ones(1)), (), (), 1, 1, "engine.npy", layers=(layer,))
    folded = assign_branches(Profile({}, 1, 50, (engine,)), {"engine": BRANCHES})
    assert folded.engines[0].layers[0].branch == branch
