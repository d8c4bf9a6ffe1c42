"""Models of strangers that are broken or made to break what reads them: each is refused in one line."""

import os

import numpy as np
import onnx
import pytest
from graphs import FLOAT, integers, mlp, node, normal, tensor, weights, write
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import ModelError
from edgekd.pipeline.onnx_import.file.read import read_model, weight_files
from edgekd.pipeline.onnx_import.file.trial import require_end


def refused(path, match):
    weight_files(path)
    with pytest.raises(ModelError, match=match) as error:
        read_model(path)
    assert "\n" not in str(error.value)


def external(folder, **entries):
    """A layer whose weight lies in another file, and how that is found there."""
    model = onnx.load(mlp(folder / "model.onnx"))
    stored = model.graph.initializer[0]
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        entry = stored.external_data.add()
        entry.key, entry.value = key, str(value)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("entries", [
    {"location": "w.bin", "offset": "many"}, {"location": "w.bin", "offset": -5}, {"location": "w.bin", "length": -1},
    {"location": "w.bin", "offset": 10**12}, {"location": "w.bin", "length": 10**15}, {"location": "../secret.bin"},
    {"location": "/etc/passwd"}, {"location": "none.bin"}, {"location": ""}, {"offset": 0}, {"location": "."},
    {"location": "link.bin"}, {"location": "pipe.bin"}, {"location": "w\0.bin"},
], ids=str)  # fmt: skip
def test_weights_outside_of_the_model_that_are_not_there(tmp_path, entries):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    (folder / "w.bin").write_bytes(bytes(48))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    os.mkfifo(folder / "pipe.bin")
    path = external(folder, **entries)
    refused(path, "keeps its weights in files of their own")
    assert tmp_path / "secret.bin" not in [file.resolve() for file in weight_files(path)]


def test_weights_that_are_too_short(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(8))
    refused(external(tmp_path, location="w.bin"), "is not valid ONNX")


def test_names_that_are_not_utf8(tmp_path):
    path = mlp(tmp_path / "m.onnx")
    for old in (b"\x01y", b"\x01x", b"\x01w", b"\x01n", b"\x05graph", b"\x04Gemm"):
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(path.read_bytes().replace(old, old[:-1] + b"\xff"))
        refused(broken, r"has a name that is not UTF-8, b'.*\\xff'")


@pytest.mark.parametrize("content", [b"", b"no model\n" * 50, b"\x08\x09" * 9, b"\x7fELF" + bytes(99)], ids=range(4))
def test_files_that_are_no_onnx(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(path, "is not an ONNX model")


def test_a_model_that_ends_too_early(tmp_path):
    path = mlp(tmp_path / "m.onnx")
    content = path.read_bytes()
    for length in range(0, len(content) - 1, 7):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError):
            read_model(path)


@pytest.mark.parametrize("dims", [[2**40, 2**22], [-4, 3], [2**31, 2**31, 2**31]])
def test_weights_that_claim_shapes_they_do_not_have(tmp_path, dims):
    model = onnx.load(mlp(tmp_path / "m.onnx"))
    model.graph.initializer[0].dims[:] = dims
    onnx.save(model, tmp_path / "m.onnx")
    refused(tmp_path / "m.onnx", "is not valid ONNX")


@pytest.mark.parametrize("kind", [-(2**31), 0, 99])
def test_constants_of_unknown_types(tmp_path, kind):
    value = numpy_helper.from_array(np.float32(2), "k")
    nodes = [node("Constant", [], ["k"], value=value), node("Mul", ["x", "k"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4])], [tensor("y", ["n", 4])])
    model = onnx.load(path)
    model.graph.node[0].attribute[0].t.data_type = kind
    onnx.save(model, path)
    refused(path, "tensor 'k' is of the unknown type")


def test_a_constant_of_another_size_than_its_shape(tmp_path):
    value = numpy_helper.from_array(np.float32(2), "k")
    nodes = [node("Constant", [], ["k"], value=value), node("Mul", ["x", "k"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4])], [tensor("y", ["n", 4])])
    model = onnx.load(path)
    model.graph.node[0].attribute[0].t.raw_data = bytes(8)
    onnx.save(model, path)
    refused(path, "the constant 'k' of the model does not have the shape")


def test_shapes_that_contradict_each_other(tmp_path):
    model = onnx.load(mlp(tmp_path / "m.onnx", opset=11))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(model, tmp_path / "m.onnx")
    refused(tmp_path / "m.onnx", "m.onnx: ")


def test_functions_that_grow_beyond_all_bounds(tmp_path):
    def function(name, *called):
        nodes = [node(inner, [f"t{i}"], [f"t{i + 1}"], domain="own") for i, inner in enumerate(called)]
        nodes = nodes or [node("Relu", ["t0"], ["t1"])]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        return helper.make_function("own", name, ["t0"], [nodes[-1].output[0]], nodes, imports)

    functions = [function(f"f{i}", f"f{i + 1}", f"f{i + 1}") for i in range(40)] + [function("f40")]
    nodes = [node("f0", ["x"], ["h"], domain="own"), node("MatMul", ["h", "w"], ["y"])]
    ends = [tensor("x", ["n", 4])], [tensor("y", ["n", 3])]
    path = write(tmp_path / "m.onnx", nodes, *ends, weights(w=(4, 3)), domains=("own",), functions=functions)
    refused(path, "its functions add up to more than 1,000,000 nodes")
    functions = [function("f0", "f1"), function("f1", "f0")]
    path = write(tmp_path / "m.onnx", nodes, *ends, weights(w=(4, 3)), domains=("own",), functions=functions)
    refused(path, "is not valid ONNX: Cycle")


def test_a_model_without_inputs(tmp_path):
    path = write(tmp_path / "m.onnx", [node("MatMul", ["v", "w"], ["y"])], [], [tensor("y", [2, 3])],
                 weights(v=(2, 4), w=(4, 3)))  # fmt: skip
    refused(path, "has no inputs")


def loop(path, rounds, of_constants=False, keep_on="c"):
    """A layer behind a loop over it; it goes on while the loop's condition ``keep_on`` holds."""
    start = "v" if of_constants else "h"
    body = helper.make_graph(
        [
            node("Identity", ["c"], ["always"]),
            node("ReduceMax", ["z"], ["most"], keepdims=0),
            node("Greater", ["most", "zero"], ["positive"]),
            node("Identity", [{"c": "always"}.get(keep_on, keep_on)], ["on"]),
            node("Identity", ["z"], ["z_next"]),
        ],
        "body",
        [tensor("i", [], TensorProto.INT64), tensor("c", [], TensorProto.BOOL), tensor("z", None)],
        [tensor("on", [], TensorProto.BOOL), tensor("z_next", None)],
    )
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Loop", ["rounds", "true", start], ["looped"], name="round", body=body),
        node("Add", ["h", "looped"], ["y"]),
    ]
    stored = [*weights(w=(4, 3), v=(3,)), *integers(rounds=rounds), numpy_helper.from_array(np.array(True), "true"),
              numpy_helper.from_array(np.float32(0), "zero")]  # fmt: skip
    return write(path, nodes, [tensor("x", ["n", 4], FLOAT)], [tensor("y", ["n", 3], FLOAT)], stored)


SAMPLES = {"x": np.abs(normal(4)) * np.array([[-1.0, 0, 0, 0]] * 12, np.float32)}


@pytest.mark.parametrize("of_constants", [False, True])
def test_a_loop_that_never_ends_has_a_time_limit(tmp_path, of_constants):
    model = onnx.load(loop(tmp_path / "m.onnx", 2**62, of_constants))
    with pytest.raises(ModelError, match=r"m.onnx: has not ended after 3 s; one of its loops may run for ever: round;"):
        require_end(model, tmp_path / "m.onnx", SAMPLES, limit_seconds=3)


def test_a_loop_that_never_ends_for_one_sample(tmp_path):
    model = onnx.load(loop(tmp_path / "m.onnx", 2**62, keep_on="positive"))
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    require_end(model, tmp_path / "m.onnx", SAMPLES, limit_seconds=60)
    bad = {"x": np.concatenate([SAMPLES["x"], np.ones((1, 4), np.float32)])}
    with pytest.raises(ModelError, match="has not ended after 3 s"):
        require_end(model, tmp_path / "m.onnx", bad, limit_seconds=3)


def test_a_loop_that_ends_is_imported(tmp_path, import_):
    imported = import_(loop(tmp_path / "m.onnx", 3), SAMPLES)
    assert imported.exported.facts.outputs["y"].name == "regression"


@pytest.mark.parametrize(("bias", "match"), [(np.nan, "is not finite"), (np.inf, "is not finite")])
def test_outputs_that_are_no_numbers(tmp_path, import_, bias, match):
    path = mlp(tmp_path / "m.onnx")
    model = onnx.load(path)
    (stored,) = [item for item in model.graph.initializer if item.name == "b"]
    stored.CopyFrom(numpy_helper.from_array(np.full(3, bias, np.float32), "b"))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=f"its output 'y' {match} for the sample '"):
        import_(path, {"x": normal(4)})


def test_an_output_without_numbers(tmp_path, import_):
    path = write(tmp_path / "m.onnx", [node("MatMul", ["x", "w"], ["y"])], [tensor("x", ["n", 4])],
                 [tensor("y", ["n", 0])], weights(w=(4, 0)))  # fmt: skip
    with pytest.raises(ModelError, match="its output 'y' is empty for the sample '"):
        import_(path, {"x": normal(4)})
