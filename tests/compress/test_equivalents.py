"""A graph in another form computes the same, and OpenVINO computes of it what it got wrong, or refused, before."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.compress.equivalents import FORMS, in_forms
from edgekd.compress.graph import open_at
from edgekd.compress.oracles.deviation import deviation
from edgekd.compress.oracles.engine import EngineTrial, locate
from edgekd.errors import ModelError
from edgekd.runtime.backends.openvino import open_engine

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(3, 4, 8, 10)).astype(np.float32)
RARE = ({"antialias": 1}, {"coordinate_transformation_mode": "half_pixel_symmetric"})
RESIZES = [
    *((mode, factor, rare) for mode in ("linear", "cubic") for factor in (0.5, 0.7) for rare in RARE),
    ("cubic", 1.6, {"exclude_outside": 1, "cubic_coeff_a": -0.5}),
]


def graph(nodes, stored, sizes=("n", 4, 8, 10)):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(sizes))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )


def openvino(batches):
    """Return OpenVINO as an engine."""

    def run(model):
        with open_engine(model.SerializeToString()) as session:
            return [session.run(batch) for batch in batches]

    return run


def mended(model, *names, x=X):
    """Show that OpenVINO gets a graph wrong, or refuses it, and gets it right in other forms; return the fault."""
    batches = [{"x": x}, {"x": x[:1]}]
    trial = EngineTrial(openvino(batches), batches)
    try:
        fault = locate(trial, model) if any(seen.reason for seen in trial.deviations(model).values()) else None
    except ModelError as error:
        fault = error
    assert fault is not None
    form = in_forms(model, names, {"x": x[:1]})
    assert not trial.deviations(form, model)["y"].reason
    return fault


@pytest.mark.parametrize(("mode", "factor", "rare"), RESIZES)
def test_a_rare_resize_is_a_product_with_matrices(mode, factor, rare):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Resize", ["a", "", "scales"], ["r"], name="rare", mode=mode, **rare),
        helper.make_node("Neg", ["r"], ["y"]),
    ]
    model = graph(nodes, {"scales": np.array([1, 1, factor, factor], np.float32)})
    fault = mended(model, "resize by matrices")
    assert "'rare' (Resize)" in str(fault)


def test_a_pooling_that_counts_its_padding_is_padded_before():
    nodes = [
        helper.make_node(
            "AveragePool", ["x"], ["y"], name="pool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1,
            pads=[0, 1, 1, 0], count_include_pad=1,
        )
    ]  # fmt: skip
    x = RANDOM.normal(size=(3, 4, 7, 9)).astype(np.float32)
    assert mended(graph(nodes, {}, ("n", 4, 7, 9)), "pads apart", x=x).node == "pool"


def test_the_condition_of_a_branch_has_no_dimensions():
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(operator, ["x"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, operator in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=1),
        helper.make_node("Greater", ["largest", "two"], ["high"]),
        helper.make_node("If", ["high"], ["y"], name="branch", **branches),
    ]
    assert "'branch' (If)" in str(mended(graph(nodes, {"two": np.float32(2)}), "scalar conditions"))


def test_a_transposed_convolution_that_fills_is_right_at_one_sample():
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2], auto_pad="SAME_LOWER")]
    model = graph(nodes, {"w": RANDOM.normal(size=(4, 5, 3, 3)).astype(np.float32)})
    single = in_forms(model, ["one at a time"], {"x": X[:1]})
    batches = [{"x": X[:1]}, {"x": X[1:2]}]
    assert not EngineTrial(openvino(batches), batches).deviations(single, model)["y"].reason
    both = [{"x": X}]
    assert "instead of" in EngineTrial(openvino(both), both).deviations(model)["y"].reason


def test_sizes_are_fixed_to_those_of_the_samples_and_the_batch_stays_free():
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["y"])]
    model = graph(nodes, {}, ("n", 4, "h", "w"))
    fixed = in_forms(model, ["fixed sizes"], {"x": X[:1]})
    first, *rest = fixed.graph.input[0].type.tensor_type.shape.dim
    assert first.dim_param == "n"
    assert [size.dim_value for size in rest] == [4, 8, 10]
    assert "only the batch may be dynamic" in str(mended(model, "fixed sizes"))


def test_what_depends_on_no_input_is_folded():
    nodes = [
        helper.make_node("Shape", ["w"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"]),
        helper.make_node("Cast", ["count"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "factor"], ["y"]),
    ]
    model = graph(nodes, {"w": np.zeros((7, 2), np.float32), "zero": np.array(0)})
    folded = in_forms(model, ["folded"], {"x": X[:1]})
    assert [node.op_type for node in folded.graph.node] == ["Mul"]
    (found,) = open_at(folded, ["y"]).run(["y"], {"x": X})
    assert not deviation(found, X * 7).reason


def test_a_graph_that_has_a_form_already_stays_as_it_is():
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {}, (1, 4, 8, 10))
    assert all(form.write(model, {"x": X[:1]}) is None for form in FORMS)
