import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.compress.graph import drop_embeddings, drop_unread, reads, rename, save, sort_nodes, unquantize_outputs


def tensor(name, shape=("batch", 2)):
    return make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(nodes, outputs, initializers=()):
    stored = [numpy_helper.from_array(value, name) for name, value in dict(initializers).items()]
    graph = helper.make_graph(nodes, "g", [tensor("x")], [tensor(name) for name in outputs], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(path_or_model):
    source = path_or_model.SerializeToString() if hasattr(path_or_model, "SerializeToString") else str(path_or_model)
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    x = np.array([[0.3, -1.7], [1.11, 0.26]], np.float32)
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, {"x": x}), strict=True))


TWO = {"w": np.eye(2, dtype=np.float32) * 2, "v": np.eye(2, dtype=np.float32) * 3}


@pytest.fixture
def branches(tmp_path):
    """x -> MatMul -> a (output), a -> Relu -> logits (output), x -> MatMul -> b (output)."""
    nodes = [
        make_node("MatMul", ["x", "w"], ["embedding.a"]),
        make_node("Relu", ["embedding.a"], ["logits"]),
        make_node("MatMul", ["x", "v"], ["embedding.b"]),
    ]
    path = tmp_path / "branches.onnx"
    save(model(nodes, ["logits", "embedding.a", "embedding.b"], TWO), path)
    return path


def test_drop_embeddings_drops_what_nothing_needs(branches, tmp_path):
    drop_embeddings(branches, tmp_path / "kept.onnx")
    kept = onnx.load(tmp_path / "kept.onnx")
    assert [node.op_type for node in kept.graph.node] == ["MatMul", "Relu"]
    assert [tensor.name for tensor in kept.graph.initializer] == ["w"]
    assert [output.name for output in kept.graph.output] == ["logits"]
    assert (run(tmp_path / "kept.onnx")["logits"] == run(branches)["logits"]).all()


def test_drop_embeddings_keeps_order_and_the_source(branches, tmp_path):
    model = onnx.load(branches)
    model.graph.output[2].name = "scores"
    model.graph.node[2].output[0] = "scores"
    save(model, branches)
    before = branches.read_bytes()
    drop_embeddings(branches, tmp_path / "kept.onnx")
    assert list(run(tmp_path / "kept.onnx")) == ["logits", "scores"]
    assert branches.read_bytes() == before


def quantized(readers, outputs):
    """x -> Relu -> h -> Q -> DQ -> y; further nodes read y."""
    nodes = [
        make_node("Relu", ["x"], ["h"]),
        make_node("QuantizeLinear", ["h", "s", "z"], ["hq"]),
        make_node("DequantizeLinear", ["hq", "s", "z"], ["y"]),
        *readers,
    ]
    return model(nodes, outputs, {"s": np.float32(0.1), "z": np.uint8(0)})


def test_an_output_is_not_rounded():
    graph = quantized([], ["y"])
    unquantize_outputs(graph, model([make_node("Relu", ["x"], ["y"])], ["y"]))
    onnx.checker.check_model(graph)
    assert [node.op_type for node in graph.graph.node] == ["Relu"]
    assert run(graph)["y"].tolist() == np.float32([[0.3, 0], [1.11, 0.26]]).tolist()


def test_other_readers_go_on_reading_it_quantized():
    graph = quantized([make_node("Neg", ["y"], ["n"])], ["y", "n"])
    unquantize_outputs(graph, model([make_node("Relu", ["x"], ["y"])], ["y"]))
    onnx.checker.check_model(graph)
    found = run(graph)
    assert found["y"].tolist() == np.float32([[0.3, 0], [1.11, 0.26]]).tolist()
    assert np.allclose(found["n"], [[-0.3, 0], [-1.1, -0.3]], atol=1e-6)


def test_two_outputs_of_one_tensor():
    """The quantizer gives each of its readers a Q/DQ pair of its own."""
    pair = [
        make_node("QuantizeLinear", ["h", "s", "z"], ["hq2"]),
        make_node("DequantizeLinear", ["hq2", "s", "z"], ["y2"]),
    ]
    graph = quantized(pair, ["y", "y2"])
    unquantize_outputs(graph, model([make_node("Relu", ["x"], ["y"])], ["y"]))
    onnx.checker.check_model(graph)
    found = run(graph)
    assert found["y"].tolist() == found["y2"].tolist() == np.float32([[0.3, 0], [1.11, 0.26]]).tolist()


def test_an_output_that_is_the_dequantized_input():
    nodes = [
        make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        make_node("DequantizeLinear", ["xq", "s", "z"], ["y"]),
    ]
    graph = model(nodes, ["y"], {"s": np.float32(0.1), "z": np.uint8(128)})
    unquantize_outputs(graph, model([make_node("Relu", ["x"], ["y"])], ["y"]))
    onnx.checker.check_model(graph)
    assert run(graph)["y"].shape == (2, 2)


def test_a_float_graph_stays_as_it_is(branches):
    graph = onnx.load(branches)
    before = graph.SerializeToString(deterministic=True)
    unquantize_outputs(graph, model([make_node("Relu", ["x"], ["y"])], ["y"]))
    assert graph.SerializeToString(deterministic=True) == before


def test_a_limit_that_the_rounding_stood_in_for_comes_back():
    """ONNX Runtime's quantizer removes a Relu whose output it rounds to uint8, which has no negative numbers."""
    floats = model(
        [make_node("MatMul", ["x", "w"], ["s"], "matmul"), make_node("Clip", ["s", "low"], ["y"], "clip")],
        ["y"],
        {"w": TWO["w"], "low": np.float32(0)},
    )
    nodes = [
        make_node("MatMul", ["x", "w"], ["h"], "matmul"),
        make_node("QuantizeLinear", ["h", "scale", "z"], ["hq"]),
        make_node("DequantizeLinear", ["hq", "scale", "z"], ["y"]),
        make_node("Neg", ["y"], ["n"]),
    ]
    graph = model(nodes, ["y", "n"], {"w": TWO["w"], "scale": np.float32(0.1), "z": np.uint8(0)})
    unquantize_outputs(graph, floats)
    onnx.checker.check_model(graph)
    found = run(graph)
    assert np.allclose(found["y"], [[0.6, 0], [2.22, 0.52]], atol=1e-6)
    assert np.allclose(found["n"], [[-0.6, 0], [-2.2, -0.5]], atol=1e-6)


def branch(nodes, output, stored=()):
    tensors = [numpy_helper.from_array(np.float32(value), name) for name, value in dict(stored).items()]
    return helper.make_graph(
        nodes, output, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], tensors
    )


@pytest.fixture
def captures():
    """An If, and one inside it, whose branches capture ``k`` and ``x``; one of them has an ``s`` of its own."""
    inner = make_node(
        "If",
        ["yes"],
        ["deep"],
        then_branch=branch([make_node("Mul", ["x", "k"], ["a"])], "a"),
        else_branch=branch([make_node("Mul", ["x", "s"], ["b"])], "b", {"s": 5}),
    )
    nodes = [
        make_node(
            "If",
            ["yes"],
            ["y"],
            then_branch=branch([inner], "deep"),
            else_branch=branch([make_node("Neg", ["x"], ["c"])], "c"),
        ),
        make_node("Mul", ["s", "s"], ["k"]),
    ]
    stored = {"s": np.float32(3), "yes": np.array(False)}
    return model(nodes, ["y"], stored)


def test_what_branches_capture_is_read_and_no_more(captures):
    assert set(reads(captures.graph.node[0])) == {"yes", "k", "x"}
    sort_nodes(captures.graph)
    assert [node.op_type for node in captures.graph.node] == ["Mul", "If"]
    before = run(captures)["y"]
    drop_unread(captures.graph)
    np.testing.assert_array_equal(run(captures)["y"], before)


@pytest.mark.parametrize("decided", [False, True])
def test_a_name_that_a_branch_hides_is_renamed_in_both(captures, decided):
    branches = {attribute.name: attribute.g for attribute in captures.graph.node[0].attribute}
    inner = branches["then_branch"].node[0]
    inner.input[0] = "no"
    captures.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array(True), "yes"))
    captures.graph.initializer.append(numpy_helper.from_array(np.array(decided), "no"))
    before = run(captures)["y"]
    rename(captures.graph, "s", "t")
    captures.graph.initializer[0].name = "t"
    np.testing.assert_array_equal(run(captures)["y"], before)
    assert before[0, 0] == pytest.approx(0.3 * (9 if decided else 5))


def test_nodes_in_a_circle_keep_their_order():
    nodes = [make_node("Add", ["x", "b"], ["y"]), make_node("Relu", ["y"], ["a"]), make_node("Relu", ["a"], ["b"])]
    circle = model(nodes, ["y"]).graph
    sort_nodes(circle)
    assert [node.output[0] for node in circle.node] == ["y", "a", "b"]
