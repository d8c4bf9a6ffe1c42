import numpy as np
import onnx
import pytest
from fusion import make_inputs
from int8 import SYMMETRIC, USUAL, int8, run, same
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.compress.graph import save
from edgekd.compress.switchboard import Switchboard, restore_float
from edgekd.errors import ModelError

FEEDS = make_inputs(100, seed=1)


@pytest.fixture(
    scope="module",
    params=[("qdq", USUAL), ("qdq", SYMMETRIC), ("nncf", USUAL)],
    ids=["uint8", "int8 symmetric", "nncf"],
)
def graphs(request, model, samples, tmp_path_factory):
    """Return QDQ and float graph."""
    quantizer, scheme = request.param
    return int8(model, samples, tmp_path_factory.mktemp("int8"), scheme, quantizer)


@pytest.fixture(scope="module")
def board(graphs):
    return Switchboard(*graphs)


def names(board, **wanted):
    return [item.tensor for item in board.tensors if all(getattr(item, key) == x for key, x in wanted.items())]


def test_all_on_is_the_qdq_graph_to_the_bit(graphs, board):
    assert same(board.run(FEEDS), run(graphs[0], FEEDS))


def test_all_off_is_the_float_graph_to_the_bit(graphs, board):
    assert same(board.run(FEEDS, names(board)), run(graphs[1], FEEDS))
    assert not same(board.run(FEEDS), run(graphs[1], FEEDS))


def test_each_switch_does_what_undoing_does(graphs, board):
    for name in names(board):
        assert same(board.run(FEEDS, [name]), run(restore_float(*graphs, [name]), FEEDS)), name


def test_the_switch_of_each_weight_counts(board):
    all_on = board.run(FEEDS)
    assert len(names(board, kind="weight")) == 7
    for name in names(board, kind="weight"):
        assert not same(board.run(FEEDS, [name]), all_on), name


def test_a_run_leaves_no_trace(board):
    before = board.run(FEEDS)
    board.run(FEEDS, names(board))
    assert same(board.run(FEEDS), before)


def test_undoing_everything_leaves_the_float_graph(graphs, board):
    qdq, floats = graphs
    undone = restore_float(qdq, floats, names(board))
    onnx.checker.check_model(undone, full_check=True)
    kinds = [sorted(node.op_type for node in graph.graph.node) for graph in (undone, floats)]
    stored = [sorted(tensor.name for tensor in graph.graph.initializer) for graph in (undone, floats)]
    assert kinds[0] == kinds[1]
    assert stored[0] == stored[1]


def test_undoing_step_by_step_is_undoing_at_once(graphs, board):
    qdq, floats = graphs
    first, *rest = names(board, branch="image")
    step_by_step = restore_float(restore_float(qdq, floats, [first]), floats, rest)
    onnx.checker.check_model(step_by_step, full_check=True)
    assert same(run(step_by_step, FEEDS), run(restore_float(qdq, floats, [first, *rest]), FEEDS))


def test_undoing_leaves_its_arguments(graphs, board):
    before = [graph.SerializeToString(deterministic=True) for graph in graphs]
    restore_float(*graphs, names(board))
    assert [graph.SerializeToString(deterministic=True) for graph in graphs] == before


def test_other_scales_are_those_of_a_graph_that_has_them(graphs, board):
    qdq, _ = graphs
    name = names(board, kind="activation", branch="motion")[0]
    scale, zero_point = board.scales[name]
    wider = np.asarray(scale * 3, np.float32)
    changed = onnx.ModelProto()
    changed.CopyFrom(qdq)
    quantize = next(node for node in changed.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == name)
    tensor = next(tensor for tensor in changed.graph.initializer if tensor.name == quantize.input[1])
    tensor.CopyFrom(numpy_helper.from_array(wider, tensor.name))
    found = board.run(FEEDS, scales={name: (wider, zero_point)})
    assert same(found, run(changed, FEEDS))
    assert not same(found, board.run(FEEDS))


def test_a_float_bias_that_quantizing_changed_is_switched_and_undone_too(model, samples, tmp_path):
    qdq, floats = int8(model, samples, tmp_path / "work", SYMMETRIC)
    bias = next(tensor for tensor in qdq.graph.initializer if tensor.name.endswith("head.1.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), bias.name))
    board = Switchboard(qdq, floats)
    (item,) = [item for item in board.tensors if item.kind == "bias"]
    assert (item.tensor, item.branch, len(item.layers)) == (bias.name, "fusion", 1)
    assert same(board.run(FEEDS), run(qdq, FEEDS))
    assert same(board.run(FEEDS, [bias.name]), run(restore_float(qdq, floats, [bias.name]), FEEDS))
    assert not same(board.run(FEEDS, [bias.name]), run(qdq, FEEDS))
    assert same(board.run(FEEDS, names(board)), run(floats, FEEDS))


def test_it_is_near_the_fused_engine(graphs, board):
    exact, engine, found = run(graphs[1], FEEDS), run(graphs[0], FEEDS, fused=True), board.run(FEEDS)
    for name in exact:
        assert np.linalg.norm(engine[name] - found[name]) < 0.5 * np.linalg.norm(exact[name] - found[name])


def test_each_tensor_has_its_layers_and_its_branch(graphs, board):
    nodes = [node for node in graphs[1].graph.node if node.op_type in ("Conv", "Gemm")]
    for node in nodes:
        weight = next(item for item in board.tensors if item.tensor == node.input[1])
        assert (weight.kind, weight.layers) == ("weight", (node.name,))
        assert weight.branch == ("fusion" if "head" in weight.tensor else weight.tensor.split(".")[2])
    layers = {item.layers for item in board.tensors if item.kind == "activation"}
    assert {(node.name,) for node in nodes} <= layers
    assert {item.branch for item in board.tensors if item.kind == "activation"} == {"image", "motion", "fusion"}


def test_biases_are_told_from_weights(graphs, board):
    int32 = {tensor.name for tensor in graphs[0].graph.initializer if tensor.data_type == TensorProto.INT32}
    expected = [node for node in graphs[0].graph.node if node.op_type == "DequantizeLinear" and node.input[0] in int32]
    assert len(names(board, kind="bias")) == len(expected)


def test_what_is_not_quantized_cannot_be_switched(graphs, board):
    for wrong in ({"off": ["logits"]}, {"scales": {"logits": board.scales[next(iter(board.scales))]}}):
        with pytest.raises(ValueError, match="'logits' is not quantized"):
            board.run(FEEDS, **wrong)
    with pytest.raises(ValueError, match="'logits' is not quantized"):
        restore_float(*graphs, ["logits"])


@pytest.fixture
def handmade(tmp_path):
    """Build, save and quantize a graph of one input with 8 channels."""

    def handmade(*nodes, **constants):
        stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        ends = [make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in ("x", "logits")]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        save(model, tmp_path / "model.onnx")
        np.savez(tmp_path / "samples.npz", **{"input.x": inputs()["x"]})
        return int8(tmp_path / "model.onnx", tmp_path / "samples.npz", tmp_path / "work")

    return handmade


def inputs():
    return {"x": np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)}


def weight(seed):
    return np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32)


def test_a_tensor_that_two_layers_read_belongs_to_both(handmade):
    nodes = [
        make_node("MatMul", ["x", "a"], ["h"], "first"),
        make_node("Relu", ["h"], ["r"]),
        make_node("MatMul", ["r", "b"], ["s"], "second"),
        make_node("MatMul", ["r", "c"], ["t"], "third"),
        make_node("Mul", ["s", "t"], ["logits"]),
    ]
    board = Switchboard(*handmade(*nodes, a=weight(1), b=weight(2), c=weight(3)))
    layers = {item.tensor: item.layers for item in board.tensors}
    assert layers["r"] == ("second", "third")
    assert (layers["a"], layers["b"], layers["c"]) == (("first",), ("second",), ("third",))
    assert {item.branch for item in board.tensors} == {"x"}


def test_limits_that_the_quantizer_took_out_come_back_with_their_bounds(handmade):
    nodes = [
        make_node("MatMul", ["x", "a"], ["h"], "first"),
        make_node("Clip", ["h", "low", "high"], ["c"]),
        make_node("MatMul", ["c", "b"], ["logits"], "second"),
    ]
    bounds = {"low": np.float32(0), "high": np.float32(2)}
    qdq, floats = handmade(*nodes, a=weight(1), b=weight(2), **bounds)
    assert "Clip" not in {node.op_type for node in qdq.graph.node}
    undone = restore_float(qdq, floats, ["c"])
    onnx.checker.check_model(undone, full_check=True)
    assert [node.op_type for node in undone.graph.node].count("Clip") == 1
    board = Switchboard(qdq, floats)
    assert same(board.run(inputs(), ["c"]), run(undone, inputs()))
    assert same(board.run(inputs(), names(board)), run(floats, inputs()))


def test_a_layer_without_a_name_is_called_by_what_it_computes(handmade):
    nodes = [make_node("MatMul", ["x", "a"], ["h"]), make_node("MatMul", ["h", "b"], ["logits"])]
    board = Switchboard(*handmade(*nodes, a=weight(1), b=weight(2)))
    assert {item.tensor: item.layers for item in board.tensors}["b"] == ("logits",)
    assert same(board.run(inputs(), names(board)), run(handmade(*nodes, a=weight(1), b=weight(2))[1], inputs()))


def test_a_float_graph_of_another_model_is_refused(graphs, handmade):
    other = handmade(make_node("MatMul", ["x", "a"], ["logits"]), a=weight(1))[1]
    with pytest.raises(ModelError, match="of another model"):
        Switchboard(graphs[0], other)
