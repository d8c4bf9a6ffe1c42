"""The host computes what a graph says, and a build names an engine that does not."""

import numpy as np
import onnx
import pytest
from commands import edgekd
from onnx import TensorProto, helper, numpy_helper

from edgekd.pipeline.target.outputs import run_on_host
from edgekd.runtime.backends.registry import AS_WRITTEN, ORT, Runtime

#: What a Jetson's target has, for ONNX Runtime itself.
TARGET = """
description = "ONNX Runtime, INT8 with the rest in float16"
runtime = "onnxruntime"
precisions = ["int8", "float16"]
{options}
[scheme]
activations = "int8"
symmetric_activations = true
reduce_range = false
bias = "float"
rest = "float16"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model whose biases are large beside its weights, its samples, and two targets."""
    folder, random = tmp_path_factory.mktemp("agreement"), np.random.default_rng(0)
    stored = {
        "w": random.normal(size=(16, 3, 3, 3)) * np.where(np.arange(16) % 4, 0.25, 0.0125).reshape(-1, 1, 1, 1),
        "b": np.where(np.arange(16) % 4, 0.3 * random.normal(size=16), 0.9),
        "w2": random.normal(size=(16, 16, 3, 3)) / 12,
        "b2": np.zeros(16),
        "head": random.normal(size=(16, 5)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], name="first", pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Conv", ["r", "w2", "b2"], ["c2"], name="second", pads=[1] * 4),
            helper.make_node("Relu", ["c2"], ["r2"]),
            helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "head"], ["y"], name="head"),
        ],
        "slim",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "slim.onnx")
    scale = random.uniform(0.3, 2, size=(128, 1, 1, 1))
    np.savez(folder / "slim.npz", x=(random.normal(size=(128, 3, 8, 8)) * scale).astype(np.float32))
    (folder / "fused.toml").write_text(TARGET.format(options=""))
    (folder / "written.toml").write_text(TARGET.format(options="[options]\nfused = false"))
    return folder


def check(folder, target):
    """Check a target, and return what the command said."""
    given = ("--model", "slim.onnx", "--calibration", "slim.npz", "--target", f"./{target}.toml", "--cache", "cache")
    return edgekd("check", *given, "--json", "--set", "quantize.repair=off", cwd=folder).stdout


@pytest.fixture(scope="module")
def checked(folder):
    return check(folder, "fused")


def test_the_optimizer_that_changes_the_logits_is_named(checked):
    said = checked
    assert "int8: onnxruntime computes other outputs than the graph says" in said
    assert "in ONNX Runtime its optimizer WeightBiasQuantization changes the outputs" in said
    assert "fused = false" in said
    assert "float16: onnxruntime computes" not in said


def test_as_it_is_written_the_graph_does_what_it_says(folder, checked):
    said = check(folder, "written")
    assert "int8" in said
    assert "computes other outputs" not in said


def test_a_graph_is_judged_on_the_host_as_it_is_written(folder, checked):
    (engine,) = (folder / "cache").glob("quantize-*/int8/deploy.onnx")
    (samples,) = (folder / "cache").glob("import-*/test.npz")
    judged = run_on_host(engine, samples)["y"]
    with np.load(samples) as arrays:
        feeds = {"x": arrays["input.x"]}
    with AS_WRITTEN.open(engine) as written, ORT.open(engine) as fused:
        assert np.array_equal(judged, written.run(feeds)["y"])
        assert np.abs(judged - fused.run(feeds)["y"]).max() > 0.1 * np.abs(judged).max()


def test_a_profile_shows_the_nodes_as_they_are_written(folder):
    rows = [{"x": np.zeros((1, 3, 8, 8), np.float32)}] * 3
    times = Runtime("onnxruntime", {"fused": False}).layer_times(folder / "slim.onnx", 1, rows)
    assert [time.kind for time in times] == [node.op_type for node in onnx.load(folder / "slim.onnx").graph.node]
