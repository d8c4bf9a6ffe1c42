"""Models whose weights, or all of whose arithmetic, are of few bits, and which are taken as float networks."""

import forms
import graphs
import msgspec
import numpy as np
import onnx
import pytest
from graphs import node, tensor
from user import run_user

from edgekd.compress import quantize
from edgekd.compress.precision import count_quantized, precision_of
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import load_calibration
from edgekd.devices.targets import load_target
from edgekd.pipeline.onnx_import.file.read import read_model
from edgekd.runtime.backends.onnxruntime import open_engine

HALF = ("half", "half_inside", "half_stored")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("floats")
    source = forms.network(folder / "float.onnx")
    for name, write in forms.FLOATS.items():
        write(source, folder / f"{name}.onnx")
    return folder


def samples_of(name):
    return forms.samples(dtype=np.float16 if name == "half" else np.float32)


def as_written(path, image):
    """Run a model node by node: ONNX Runtime's optimizers make INT8 arithmetic of dequantized weights."""
    with open_engine(path, fused=False) as session:
        return session.run({"image": image})["scores"]


@pytest.mark.parametrize("name", forms.FLOATS)
def test_its_weights_are_floats_and_it_computes_the_same(folder, tmp_path, import_, name):
    model = folder / f"{name}.onnx"
    done = import_(model, samples_of(name))
    written = onnx.load(tmp_path / "out" / "float.onnx")
    stored = {item.name: item for item in written.graph.initializer}
    layers = [item for item in written.graph.node if item.op_type in ("Conv", "MatMul")]
    assert len(layers) == 4
    assert all(stored[item.input[1]].data_type == graphs.FLOAT for item in layers)
    assert precision_of(written) == "float32"
    said = "in float16" if name in HALF else "taken as the floats that they stand for"
    assert any(said in note and "--as-is keeps the file as it is" in note for note in done.notes)
    image = samples_of(name)["image"][:8]
    expected, found = (as_written(path, image) for path in (model, tmp_path / "out" / "float.onnx"))
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=2e-3 if name.startswith("half") else 1e-6)


@pytest.mark.parametrize("name", ["half", "half_stored", "cast_and_mul"])
def test_its_int8_is_stored_in_int8_and_smaller(folder, tmp_path, import_, name):
    import_(folder / f"{name}.onnx", samples_of(name))
    out, calibration = tmp_path / "out", load_calibration("minmax")
    candidate = quantize.run(
        CandidateSpec("int8", "qdq"), out / "float.onnx", out / "calibration.npz", load_target("cpu").scheme,
        msgspec.structs.replace(calibration, samples=32), out,
    )  # fmt: skip
    assert candidate.weight_nodes == 4
    assert candidate.quantized_nodes >= 3  # the first may read raw inputs of unlike units
    weights = sum(np.prod(item.dims) for item in onnx.load(out / "float.onnx").graph.initializer)
    assert candidate.sizes["deploy.onnx"] < 1.3 * weights + 10_000
    assert count_quantized(onnx.load(out / "int8" / "deploy.onnx"))[0] == candidate.quantized_nodes


def test_a_taps_name_and_graphs_inside_nodes_are_float_too(tmp_path):
    """An ``If`` that data decide, whose branches hold float16, cast to float16 and read what is outside."""
    half = onnx.TensorProto.FLOAT16
    branches = [
        onnx.helper.make_graph(
            [
                node("Constant", [], [f"{name}_c"], value=onnx.numpy_helper.from_array(np.float16(factor))),
                node("Cast", ["x"], [f"{name}_h"], to=half),
                node("Mul", [f"{name}_h", f"{name}_c"], [f"{name}_out"]),
            ],
            name, [], [tensor(f"{name}_out", ["n", 4], half)],
        )
        for name, factor in (("then", 2), ("else", -3))
    ]  # fmt: skip
    nodes = [
        node("ReduceMax", ["x"], ["largest"], keepdims=0),
        node("Greater", ["largest", "zero"], ["yes"]),
        node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    stored = [onnx.numpy_helper.from_array(np.float32(0), "zero")]
    path = graphs.write(tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4])], [tensor("y", ["n", 4], half)], stored)
    notes = []
    model = read_model(path, notes=notes)
    assert len(notes) == 1
    onnx.save(model, tmp_path / "single.onnx")
    for sign in (1, -1):
        x = sign * np.abs(graphs.normal(4))
        expected = run_user(path, "y", {"x": x})
        found = run_user(tmp_path / "single.onnx", "y", {"x": x})
        assert found.dtype == expected.dtype == np.float16
        np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=2e-3)


def test_integers_that_are_no_weights_stay(tmp_path):
    """A table of bytes that data look up, and a shape that is cast from bytes, are not dequantized."""
    nodes = [
        node("Gather", ["table", "ids"], ["rows"]),
        node("Cast", ["rows"], ["y"], to=graphs.FLOAT),
    ]
    table = onnx.numpy_helper.from_array(np.arange(12, dtype=np.uint8).reshape(4, 3), "table")
    path = graphs.write(
        tmp_path / "m.onnx", nodes, [tensor("ids", ["n"], graphs.INT64)], [tensor("y", ["n", 3])], [table]
    )
    notes = []
    model = read_model(path, notes=notes)
    assert notes == []
    assert [item.op_type for item in model.graph.node] == ["Gather", "Cast"]


def test_float32_is_left_alone(tmp_path):
    notes = []
    read_model(forms.network(tmp_path / "m.onnx"), notes=notes)
    assert notes == []
