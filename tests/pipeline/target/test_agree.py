"""The float network is compared in each target's engine library first, and a target whose library errs ends there."""

import json

import numpy as np
import onnx
import pytest
from commands import edgekd
from onnx import TensorProto, helper, numpy_helper

#: A user's own library, which takes the slope of a LeakyRelu for another.
MISREADING = """
import onnx

from edgekd.runtime.backends import onnxruntime


def open_engine(engine, threads=1, name=None):
    model = onnx.load(str(engine))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "alpha":
                attribute.f = 0.3
    return onnxruntime.open_engine(model.SerializeToString(), threads, name)
"""

TARGET = """
description = "a library of one's own"
runtime = "misreading.py:open_engine"
precisions = ["float32"]
[scheme]
activations = "uint8"
symmetric_activations = false
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a network of any height and width, its samples, and a target whose library misreads it."""
    folder, random = tmp_path_factory.mktemp("agree"), np.random.default_rng(0)
    stored = {"w": random.normal(size=(8, 3, 3, 3)) / 5, "w2": random.normal(size=(8, 8, 3, 3)) / 8}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="first", pads=[1] * 4),
            helper.make_node("LeakyRelu", ["c"], ["r"], name="slope", alpha=0.1),
            helper.make_node("Conv", ["r", "w2"], ["y"], name="second", pads=[1] * 4, strides=[2, 2]),
        ],
        "any size",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w_"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, "h2", "w2_"])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "m.onnx")
    np.savez(folder / "m.npz", x=random.normal(size=(48, 3, 10, 12)).astype(np.float32))
    (folder / "misreading.py").write_text(MISREADING)
    (folder / "own.toml").write_text(TARGET)
    return folder


def check(folder, *targets):
    """Check some targets in float32, and return what the command said."""
    given = ("--model", "m.onnx", "--calibration", "m.npz", "--cache", "cache", "--set", "quantize.precision=float32")
    on = (part for target in targets for part in ("--target", target))
    process = edgekd("check", *given, *on, "--json", cwd=folder)
    return process.returncode, process.stdout + process.stderr


def test_what_a_library_gets_wrong_is_refused_with_its_node_and_other_targets_go_on(folder):
    code, said = check(folder, "./own.toml", "cpu")
    assert code == 22, said
    assert "Traceback" not in said
    assert "float32 in misreading.py:open_engine on local: output 'y' is off by" in said
    assert "it begins at node 'slope' (LeakyRelu) of 'c' float32 [4, 8, 10, 12]: 'r' is off by" in said
    assert "float32 in onnxruntime on local: agrees (largest difference" in said


def test_a_library_that_takes_fixed_sizes_alone_is_given_those_of_the_samples(folder):
    out = folder / "out"
    given = ("--model", "m.onnx", "--calibration", "m.npz", "--cache", "cache", "--set", "quantize.precision=float32")
    fast = ("--set", "profile.iterations=60", "--set", "profile.warmup=5", "--set", "profile.cold_starts=1")
    built = edgekd("build", *given, *fast, "--target", "openvino-cpu", "--output", str(out), cwd=folder)
    assert built.returncode == 0, built.stderr
    assert "since it takes inputs of the samples' size alone" in " ".join(built.stdout.split())
    report = json.loads((out / "report.json").read_text())
    facts = " ".join(report["targets"][0]["facts"])
    assert "float32 in openvino on local: agrees (largest difference" in facts
    assert "only the batch may be dynamic, but input 'x'" in facts
    bundle = out / "openvino-cpu" / "bundle"
    (stated,) = json.loads((bundle / "manifest.json").read_text())["inputs"]
    assert stated["shape"][1:] == [3, 10, 12]
    (shipped,) = onnx.load(bundle / "deploy.onnx").graph.input
    assert [size.dim_value for size in shipped.type.tensor_type.shape.dim][1:] == [3, 10, 12]


def test_an_up_to_date_check_runs_no_engine_again(folder):
    check(folder, "openvino-cpu")
    _, said = check(folder, "openvino-cpu")
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    agreed = [event for event in events if event.get("stage") == "agree openvino-cpu"]
    assert any(event.get("cached") for event in agreed), agreed
