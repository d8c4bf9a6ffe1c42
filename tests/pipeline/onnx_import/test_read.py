import graphs
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import node, tensor
from onnx import helper

from edgekd.errors import ModelError, TaskError
from edgekd.pipeline.onnx_import.file.read import read_model


def run(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


def kinds(model):
    return [item.op_type for item in model.graph.node]


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 17, 21])
def test_old_opsets_are_converted_and_constants_become_weights(tmp_path, opset):
    path = graphs.in_constants(tmp_path / "m.onnx", opset)
    x = graphs.normal(2, 8, 6)
    model = read_model(path)
    assert next(item.version for item in model.opset_import if item.domain == "") == max(opset, 13)
    assert kinds(model) == ["Conv", "BatchNormalization", "Relu", "GlobalAveragePool", "Flatten"]
    assert {item.name for item in model.graph.initializer} == {"k", "scale", "bias", "mean", "var"}
    np.testing.assert_allclose(run(model, x), run(onnx.load(path), x), rtol=1e-6)


def test_every_kind_of_constant_is_lifted(tmp_path):
    constants = [
        node("Constant", [], ["a"], value_float=2.0),
        node("Constant", [], ["b"], value_floats=[1.0, 2.0, 3.0, 4.0]),
        node("Constant", [], ["shape"], value_ints=[-1, 2, 2]),
        node("Constant", [], ["axis"], value_int=1),
    ]
    nodes = [
        *constants,
        node("Mul", ["x", "a"], ["m"]),
        node("Add", ["m", "b"], ["s"]),
        node("Reshape", ["s", "shape"], ["r"]),
        node("Gather", ["r", "axis"], ["y"], axis=1),
    ]
    path = graphs.write(tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4])], [tensor("y", ["n", 2])])
    model = read_model(path)
    assert kinds(model) == ["Mul", "Add", "Reshape", "Gather"]
    np.testing.assert_array_equal(run(model, np.ones((1, 4), np.float32)), [[5, 6]])


def test_initializers_that_are_listed_as_inputs_are_none(tmp_path):
    path = graphs.mlp(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input.append(tensor("w", [4, 3]))
    onnx.save(model, path)
    assert [value.name for value in read_model(path).graph.input] == ["x"]


def test_an_if_that_a_constant_decides_is_folded(tmp_path):
    path = graphs.branch(tmp_path / "m.onnx", constant=True)
    x = graphs.normal(4)
    model = read_model(path, keep=["hidden"])
    assert "If" not in kinds(model)
    assert any("hidden" in item.output for item in model.graph.node)
    assert [item.name for item in model.graph.output] == ["y"]
    np.testing.assert_allclose(run(model, x), run(onnx.load(path), x), rtol=1e-6)


def test_an_if_that_data_decide_stays(tmp_path):
    path = graphs.branch(tmp_path / "m.onnx", constant=False)
    model = read_model(path)
    assert "If" in kinds(model)
    for sign in (1, -1):
        x = sign * np.abs(graphs.normal(4))
        np.testing.assert_allclose(run(model, x), run(onnx.load(path), x), rtol=1e-6)


def test_functions_are_inlined(tmp_path):
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [node("Twice", ["x"], ["y"], domain="own")]
    path = graphs.write(
        tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4])], [tensor("y", ["n", 4])], domains=["own"],
        functions=[function],
    )  # fmt: skip
    assert kinds(read_model(path)) == ["Add"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "m.onnx: cannot be read: No such file"),
        (b"", "is not an ONNX model: there is no graph in it"),
        (b"a text file\nof two lines", "is not an ONNX model, or only a part of one"),
    ],
    ids=["absent", "empty", "text"],
)
def test_what_is_no_model_is_named(tmp_path, content, message):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_model(path)


def test_half_a_file(tmp_path):
    path = graphs.mlp(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match="is not an ONNX model, or only a part of one"):
        read_model(path)


def test_external_data_is_read_and_its_absence_named(tmp_path):
    path = graphs.mlp(tmp_path / "m.onnx")
    whole = onnx.load(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    x = graphs.normal(4)
    np.testing.assert_array_equal(run(read_model(path), x), run(whole, x))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"one cannot be read: .*weights\.bin.*put them beside the model"):
        read_model(path)


def test_an_invalid_graph(tmp_path):
    path = graphs.write(
        tmp_path / "m.onnx", [node("Relu", ["nowhere"], ["y"])], [tensor("x", ["n"])], [tensor("y", ["n"])]
    )
    with pytest.raises(ModelError, match=r"is not valid ONNX: .*nowhere"):
        read_model(path)


@pytest.mark.parametrize("operator", ["QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul"])
def test_a_quantized_graph_is_sent_back(tmp_path, operator):
    nodes = {
        "QuantizeLinear": [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "DynamicQuantizeLinear": [
            node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
            node("DequantizeLinear", ["q", "qs", "qz"], ["y"]),
        ],
        "MatMulInteger": [
            node("Cast", ["x"], ["q"], to=onnx.TensorProto.UINT8),
            node("MatMulInteger", ["q", "q"], ["i"]),
            node("Cast", ["i"], ["y"], to=graphs.FLOAT),
        ],
        "QLinearMatMul": [
            node("Cast", ["x"], ["q"], to=onnx.TensorProto.UINT8),
            node("QLinearMatMul", ["q", "s", "z", "q", "s", "z", "s", "z"], ["i"]),
            node("Cast", ["i"], ["y"], to=graphs.FLOAT),
        ],
    }[operator]
    stored = [
        onnx.numpy_helper.from_array(np.float32(0.1), "s"),
        onnx.numpy_helper.from_array(np.uint8(128), "z"),
    ]
    path = graphs.write(tmp_path / "m.onnx", nodes, [tensor("x", [4, 4])], [tensor("y", [4, 4])], stored)
    with pytest.raises(ModelError, match=f"is quantized already .*{operator}.*give the float model it is from"):
        read_model(path)


def test_a_training_graph_is_sent_back(tmp_path):
    path = graphs.in_constants(tmp_path / "m.onnx", 17)
    model = onnx.load(path)
    normal = next(item for item in model.graph.node if item.op_type == "BatchNormalization")
    normal.name = "bn1"
    normal.attribute.append(helper.make_attribute("training_mode", 1))
    normal.output.extend(["new_mean", "new_var"])
    onnx.save(model, path)
    with pytest.raises(
        ModelError, match=r"node 'bn1' \(BatchNormalization\) is in training mode; export .* model.eval"
    ):
        read_model(path)


def test_a_dropout_that_drops_is_sent_back(tmp_path):
    nodes = [
        node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))),
        node("Dropout", ["x", "", "yes"], ["y"]),
    ]
    path = graphs.write(tmp_path / "m.onnx", nodes, [tensor("x", ["n"])], [tensor("y", ["n"])])
    with pytest.raises(ModelError, match=r"Dropout.* is in training mode"):
        read_model(path)


def test_operators_that_nobody_knows_are_named(tmp_path):
    nodes = [node("Swirl", ["x"], ["y"], domain="com.acme")]
    path = graphs.write(tmp_path / "m.onnx", nodes, [tensor("x", ["n"])], [tensor("y", ["n"])], domains=["com.acme"])
    with pytest.raises(ModelError, match=r"that ONNX Runtime does not know: com\.acme\.Swirl; export"):
        read_model(path)


def test_an_old_opset_with_control_flow_cannot_be_converted(tmp_path):
    path = graphs.branch(tmp_path / "m.onnx", constant=False, opset=11)
    message = r"is of opset 11, .* cannot be converted here: it has control flow \(If\); export it again with opset 13"
    with pytest.raises(ModelError, match=message):
        read_model(path)


def test_an_opset_that_nothing_runs(tmp_path):
    path = graphs.mlp(tmp_path / "m.onnx", opset=6)
    with pytest.raises(ModelError, match=r"is of opset 6, .*ONNX Runtime runs 7 and later"):
        read_model(path)


def test_a_tap_that_is_not_there(tmp_path):
    with pytest.raises(TaskError, match="no tensor 'pooledd'; did you mean 'pooled'"):
        read_model(graphs.two_towers(tmp_path / "m.onnx"), keep=["pooledd"])
