"""The node that an engine computes otherwise is named, whatever comes after it, and rounding is no fault."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.compress.oracles.engine import EngineTrial, locate

ROWS = 4


def run(model, batches):
    """Run a graph in ONNX Runtime with all its optimizers: an engine that is right."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, batch), strict=True)) for batch in batches]


def graph(nodes, inputs, outputs, stored):
    """Return a model; outputs are float unless they are given as (name, type)."""
    typed = [output if isinstance(output, tuple) else (output, TensorProto.FLOAT) for output in outputs]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in typed],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs, outputs, name=f"{operator} {outputs[0]}", **attributes)


@pytest.fixture(scope="module")
def network():
    """A network with two branches, whose attributes an engine may get wrong."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    stored = {
        "w": normal(6, 3, 3, 3), "w2": normal(6, 6, 2, 2), "wt": normal(6, 4, 3, 3) / 4, "head": normal(4, 5),
        "scale": normal(6), "shift": normal(6), "axes": np.array([2, 3]), "pads": np.array([0, 0, 1, 2, 0, 0, 2, 1]),
        "sizes": np.array([1, 1, 2, 2], np.float32), "axis": np.array(-1),
    }  # fmt: skip
    nodes = [
        node("Pad", ["x", "pads"], ["padded"], mode="reflect"),
        node("Conv", ["padded", "w"], ["c"], dilations=[1, 1], strides=[1, 1]),
        node("LeakyRelu", ["c"], ["a"], alpha=0.1),
        node("AveragePool", ["a"], ["left"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        node("Conv", ["a", "w2"], ["c2"], auto_pad="SAME_LOWER"),
        node("InstanceNormalization", ["c2", "scale", "shift"], ["i"], epsilon=1e-2),
        node("Elu", ["i"], ["e"], alpha=1.0),
        node("MaxPool", ["e"], ["small"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Resize", ["small", "", "sizes"], ["right"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Add", ["left", "right"], ["both"]),
        node("ConvTranspose", ["both", "wt"], ["up"], strides=[2, 2], output_padding=[1, 1]),
        node("CumSum", ["up", "axis"], ["summed"], exclusive=0),
        node("ReduceMean", ["summed", "axes"], ["pooled"], keepdims=0),
        node("MatMul", ["pooled", "head"], ["y"]),
        node("Softmax", ["y"], ["p"], axis=-1),
    ]
    batch = normal(ROWS, 3, 9, 9)
    return graph(nodes, {"x": (3, 9, 9)}, ["p", "pooled"], stored), [{"x": batch}, {"x": batch[:1]}]


#: What an engine may understand wrong: the node, its attribute, and the value that it takes instead.
MISREAD = [
    ("Pad padded", "mode", b"edge"),
    ("LeakyRelu a", "alpha", 0.01),
    ("AveragePool left", "count_include_pad", 0),
    ("Conv c2", "auto_pad", b"SAME_UPPER"),
    ("Elu e", "alpha", 0.7),
    ("Resize right", "coordinate_transformation_mode", b"asymmetric"),
    ("CumSum summed", "exclusive", 1),
    ("InstanceNormalization i", "epsilon", 0.5),
]


def misreading(name, attribute, value):
    """Return an engine that takes an attribute of one node for another."""

    def engine(model, batches):
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        (misread,) = (node for node in wrong.graph.node if node.name == name)
        kept = [item for item in misread.attribute if item.name != attribute]
        del misread.attribute[:]
        misread.attribute.extend([*kept, helper.make_attribute(attribute, value)])
        return run(wrong, batches)

    return engine


@pytest.mark.parametrize(("name", "attribute", "value"), MISREAD, ids=[misread[0] for misread in MISREAD])
def test_the_node_whose_attribute_an_engine_misreads_is_named(network, name, attribute, value):
    model, batches = network
    trial = EngineTrial(lambda graph: misreading(name, attribute, value)(graph, batches), batches)
    assert any(seen.reason for seen in trial.deviations(model).values())
    fault = locate(trial, model)
    assert (fault.node, fault.wrong, fault.joined) == (name, True, False)
    assert "is off by" in fault.reason
    assert "float32 [4, " in fault.reads


def test_an_engine_that_is_right_differs_by_rounding_alone(network):
    model, batches = network
    seen = EngineTrial(lambda graph: run(graph, batches), batches).deviations(model)
    assert all(not output.reason and output.share < 1e-5 for output in seen.values())


def test_what_is_wrong_in_a_batch_alone_is_found(network):
    model, batches = network

    def engine(given):
        several, single = run(given, batches)
        return [{name: np.repeat(x[:1], len(x), 0) if x.ndim else x for name, x in several.items()}, single]

    trial = EngineTrial(engine, batches)
    assert "is off by" in trial.deviations(model)["p"].reason
    assert locate(trial, model).node == "Pad padded"


def test_what_an_engine_gets_wrong_only_while_nobody_looks_is_said_to_be_joined(network):
    model, batches = network

    def engine(given):
        joined = all(output.name != "small" for output in given.graph.output)
        return misreading("MaxPool small", "ceil_mode", 1)(given, batches) if not joined else [
            {name: x * 1.2 if name in ("p", "pooled") else x for name, x in outputs.items()}
            for outputs in run(given, batches)
        ]  # fmt: skip

    fault = locate(EngineTrial(engine, batches), model)
    assert (fault.node, fault.joined) == ("MaxPool small", True)


def test_rounding_that_an_argmax_turns_into_another_class_is_no_fault():
    stored = {"w": np.eye(3, dtype=np.float32)}
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("ArgMax", ["y"], ["best"], axis=-1, keepdims=0)]
    model = graph(nodes, {"x": (3,)}, [("best", TensorProto.INT64)], stored)
    batches = [{"x": np.array([[1, 2, 2 + 1e-6], [0.5, 0.1, 0.2]], np.float32)}]

    def engine(given):
        (outputs,) = run(given, batches)
        outputs["best"] = np.array([1, 0])
        if "y" in outputs:
            outputs["y"] = outputs["y"] + np.array([[0, 3e-6, 0], [0, 0, 0]], np.float32)
        return [outputs]

    trial = EngineTrial(engine, batches)
    seen = trial.deviations(model)["best"]
    fault = locate(trial, model) if seen.reason else None
    assert fault is None or not fault.wrong


def test_a_node_inside_of_which_a_branch_reads_from_outside_is_compared_alone():
    then = helper.make_graph(
        [helper.make_node("Mul", ["a", "two"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["o"])],
        "else",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("ReduceMax", ["a"], ["largest"], keepdims=0),
        node("Greater", ["largest", "two"], ["high"]),
        node("If", ["high"], ["b"], then_branch=then, else_branch=other),
        node("Exp", ["b"], ["y"]),
    ]
    model = graph(nodes, {"x": (3,)}, ["y"], {"two": np.float32(2)})
    batches = [{"x": np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)}]

    def engine(given):
        wrong = onnx.ModelProto()
        wrong.CopyFrom(given)
        (branch,) = (node for node in wrong.graph.node if node.op_type == "If")
        for attribute in branch.attribute:
            attribute.g.node[0].op_type = "Add" if attribute.name == "then_branch" else "Abs"
        return run(wrong, batches)

    fault = locate(EngineTrial(engine, batches), model)
    assert (fault.node, fault.operator, fault.wrong) == ("If b", "If", True)
