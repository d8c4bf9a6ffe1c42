import onnx
from int8 import int8
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.compress.qdq_map import branches


def test_every_node_of_a_branch_and_of_fusion_is_named(model):
    found = branches(model)
    graph = onnx.load(model).graph
    assert {node.name for node in graph.node} <= found.keys()
    assert set(found.values()) == {"image", "motion", "fusion"}
    assert found["embedding.image"] == "image"
    assert found["embedding.motion"] == "motion"
    assert found["logits"] == "fusion"


def test_dequantized_weights_belong_where_they_are_read(model, samples, tmp_path):
    qdq, _ = int8(model, samples, tmp_path)
    onnx.save(qdq, tmp_path / "qdq.onnx")
    found = branches(tmp_path / "qdq.onnx")
    weights = [node for node in qdq.graph.node if "weight" in node.name and node.op_type == "DequantizeLinear"]
    assert weights
    for node in weights:
        (reader,) = [other for other in qdq.graph.node if node.output[0] in other.input]
        assert found[node.name] == found[reader.name]


def test_a_node_without_a_name_has_that_of_onnx_runtime(tmp_path):
    nodes = [make_node("Relu", ["x"], ["a"]), make_node("Add", ["a", "y"], ["logits"])]
    tensors = [make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y", "logits")]
    graph = helper.make_graph(nodes, "g", tensors[:2], tensors[2:])
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    assert branches(tmp_path / "g.onnx") == {"Relu_0": "x", "a": "x", "Add_1": "fusion", "logits": "fusion"}


def test_what_reads_no_input_at_all_has_no_branch(tmp_path):
    weight = numpy_helper.from_array(onnx.numpy_helper.to_array(helper.make_tensor("w", 1, [1], [1.0])), "w")
    nodes = [make_node("Relu", ["w"], ["constant"], "relu"), make_node("Neg", ["x"], ["y"], "neg")]
    tensors = [make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y", "constant")]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], [weight])
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    assert branches(tmp_path / "g.onnx") == {"neg": "x", "y": "x"}
