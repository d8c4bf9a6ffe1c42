import graphs
import numpy as np
import onnx
import pytest
from graphs import node, tensor
from onnx import helper
from user import run_user

from edgekd.pipeline.onnx_import.file.read import read_model
from edgekd.pipeline.onnx_import.graph import Extension
from edgekd.pipeline.onnx_import.taps import channels_first, meeting_taps, pool


def graph(tmp_path, nodes, inputs, output, **shapes):
    shaped = [tensor(name, ["n", 4]) for name in inputs]
    path = graphs.write(tmp_path / "m.onnx", nodes, shaped, [tensor(output, ["n", 4])], graphs.weights(**shapes))
    return read_model(path).graph


def test_the_inputs_of_the_fusion_node_are_found(tmp_path):
    found = meeting_taps(read_model(graphs.two_towers(tmp_path / "m.onnx")).graph, ["image", "motion"])
    assert found == {"image": "image_features", "motion": "motion_features"}


def test_three_inputs_that_meet_one_after_the_other(tmp_path):
    nodes = [
        *(node("MatMul", [name, "w"], [f"{name}1"]) for name in "abc"),
        node("Add", ["a1", "b1"], ["ab"]),
        node("MatMul", ["ab", "w"], ["ab2"]),
        node("Add", ["ab2", "c1"], ["y"]),
    ]
    found = meeting_taps(graph(tmp_path, nodes, "abc", "y", w=(4, 4)), list("abc"))
    assert found == {"a": "a1", "b": "b1", "c": "c1"}


def test_inputs_that_meet_before_any_weights_have_no_taps(tmp_path):
    nodes = [node("Add", ["a", "b"], ["ab"]), node("MatMul", ["ab", "w"], ["y"])]
    assert meeting_taps(graph(tmp_path, nodes, "ab", "y", w=(4, 4)), list("ab")) == {}


def test_a_shape_is_no_data(tmp_path):
    """One branch reshapes itself like the other input: that is not where they meet."""
    nodes = [
        node("Shape", ["b"], ["shape"]),
        node("Reshape", ["a", "shape"], ["a1"]),
        node("MatMul", ["a1", "w"], ["a2"]),
        node("MatMul", ["b", "w"], ["b2"]),
        node("Add", ["a2", "b2"], ["y"]),
    ]
    found = meeting_taps(graph(tmp_path, nodes, "ab", "y", w=(4, 4)), list("ab"))
    assert found == {"a": "a2", "b": "b2"}


def test_data_may_meet_inside_a_branch(tmp_path):
    inner = helper.make_graph([node("Add", ["a1", "b1"], ["sum"])], "then", [], [tensor("sum", ["n", 4])])
    other = helper.make_graph([node("Sub", ["a1", "b1"], ["minus"])], "else", [], [tensor("minus", ["n", 4])])
    nodes = [
        *(node("MatMul", [name, "w"], [f"{name}1"]) for name in "ab"),
        node("ReduceMax", ["a"], ["most"], keepdims=0),
        node("Cast", ["most"], ["yes"], to=onnx.TensorProto.BOOL),
        node("If", ["yes"], ["y"], then_branch=inner, else_branch=other),
    ]
    found = meeting_taps(graph(tmp_path, nodes, "ab", "y", w=(4, 4)), list("ab"))
    assert found["b"] == "b1"


def test_channels_come_first_behind_convolutions_alone(tmp_path):
    loaded = read_model(graphs.two_towers(tmp_path / "m.onnx")).graph
    assert channels_first(loaded, "map_relu")
    assert not channels_first(loaded, "motion_tokens")


MAP = np.arange(2 * 19 * 7, dtype=np.float32).reshape(2, 1, 19, 7)


def cells_by_hand(x):
    """Cells of 3 by 1: six of them down, the 19th row left out."""
    return np.stack([x[:, 0, 3 * row : 3 * row + 3].mean(1) for row in range(6)], 1).reshape(len(x), -1)


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize(
    ("x", "first", "expected", "words"),
    [
        (graphs.normal(), False, lambda x: x[:, None], "one number"),
        (graphs.normal(5), False, lambda x: x, "as it is"),
        (graphs.normal(5, 6), False, lambda x: x.mean(1), "mean over tokens"),
        (graphs.normal(5, 6), True, lambda x: x.mean(2), "mean over positions"),
        (graphs.normal(3, 4, 5), False, lambda x: x.mean((2, 3)), "mean over positions"),
        (graphs.normal(3, 2, 4, 5), False, lambda x: x.mean((2, 3, 4)), "mean over positions"),
        (MAP, False, cells_by_hand, "mean over 6x7 cells"),
        (graphs.normal(16, 1), False, lambda x: x.reshape(12, 8, 2).mean(2), "mean over 8 cells"),
    ],
    ids=["number", "vector", "tokens", "signal", "image", "volume", "map", "map-of-tokens"],
)
def test_pooling(tmp_path, opset, x, first, expected, words):
    shape = ["n", *x.shape[1:]]
    path = graphs.write(
        tmp_path / "m.onnx", [node("Neg", ["x"], ["minus"])], [tensor("x", shape)], [tensor("minus", shape)], (), opset
    )
    model = onnx.load(path)
    assert pool(Extension(model), "minus", (1, *x.shape[1:]), first, "z") == words
    del model.graph.output[:]
    model.graph.output.append(tensor("z", ["n", "width"]))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    np.testing.assert_allclose(run_user(path, "z", {"x": x}), expected(-x), rtol=1e-5, atol=1e-6)
