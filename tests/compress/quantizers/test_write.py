"""Quantizing graphs that libraries read wrong, refuse, or overlook a part of: what comes out is the float network."""

import numpy as np
import onnx
import onnxruntime.quantization as ort_quantization
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from int8 import run
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_tensor_value_info
from onnx_graphs import SYMMETRIC, USUAL, error, graph, int8_layers, node, quantize, random, readers, stored

from edgekd.compress.activations.ranges import find_ranges
from edgekd.compress.quantizers.quantizer import Quantizer
from edgekd.compress.quantizers.registry import find_quantizer
from edgekd.errors import ModelError

W, V, B, C = random(8, 8), random(8, 3), random(8, seed=1), random(3, seed=1)


def chain(middle, **tensors):
    """Return a model of a Gemm, some nodes from h to a, and another Gemm."""
    nodes = [
        node("Gemm", ["x", "w0"], ["h"], name="first"),
        *middle,
        node("Relu", ["a"], ["r"], name="relu"),
        node("Gemm", ["r", "v", "c"], ["y"], name="last"),
    ]
    return graph(nodes, {"x": [8]}, stored(w0=random(8, 8, seed=2), w=W, b=B, v=V, c=C, **tensors))


def with_gemm(*bias, before=(), **attributes):
    return chain(
        [*before, node("Gemm", ["h", "w", *bias], ["a"], name="gemm", **attributes)],
        one=0.3,
        row=B[None],
        single=[[0.4]],
    )


def two_groups():
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="one", pads=[1] * 4),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "w"], ["b"], name="two", pads=[1] * 4, group=2),
        node("GlobalAveragePool", ["b"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "v", "c"], ["y"], name="last"),
    ]
    return graph(nodes, {"x": [2, 6, 6]}, stored(w=random(4, 2, 3, 3), v=random(4, 3), c=C))


def tied(uneven):
    """A weight of rows and columns of unlike size, read transposed and not, by a lookup, and as an output."""
    weight = random(8, 8) * (np.geomspace(0.05, 2, 8)[:, None] * np.geomspace(2, 0.05, 8) if uneven else 1)
    nodes = [
        node("Gather", ["w", "ids"], ["e"], axis=0),
        node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
        node("Gemm", ["m", "w", "b"], ["h"], name="encode", transB=1),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w"], ["d"], name="decode"),
        node("Gemm", ["d", "v", "c"], ["y"], name="last"),
    ]
    model = graph(nodes, {"ids": [4]}, stored(w=weight, b=B, v=V, c=C), types={"ids": TensorProto.INT64})
    model.graph.output.append(make_tensor_value_info("w", TensorProto.FLOAT, [8, 8]))
    return model


def branch(*nodes, output):
    return helper.make_graph(nodes, "branch", [], [make_tensor_value_info(output, TensorProto.FLOAT, None)])


def with_if():
    """Graphs inside a node read an activation before its Relu, a weight, and a bias."""
    then = branch(node("MatMul", ["a", "w"], ["t"]), node("Add", ["t", "b"], ["to"]), output="to")
    other = branch(node("Identity", ["a"], ["eo"]), output="eo")
    nodes = [
        node("Gemm", ["x", "w", "b"], ["a"], name="first"),
        node("Relu", ["a"], ["r"]),
        node("ReduceMax", ["x"], ["most"], keepdims=0),
        node("Greater", ["most", "zero"], ["condition"]),
        node("If", ["condition"], ["i"], name="if", then_branch=then, else_branch=other),
        node("Add", ["i", "r"], ["s"]),
        node("Gemm", ["s", "v", "c"], ["y"], name="last"),
    ]
    return graph(nodes, {"x": [8]}, stored(w=W, b=B, v=V, c=C, zero=0.0))


def recurrent():
    """An LSTM with inputs and outputs that are left out, before layers."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node(
            "LSTM", ["t", "W", "R", "", "", "", "", "P"], ["", "hidden", ""], hidden_size=6, direction="bidirectional"
        ),
        node("Transpose", ["hidden"], ["u"], perm=[1, 0, 2]),
        node("Flatten", ["u"], ["f"]),
        node("Gemm", ["f", "w", ""], ["a"], name="first"),
        node("Relu", ["a"], ["r"]),
        node("Gemm", ["r", "v", "c"], ["y"], name="last"),
    ]
    peepholes = {"W": random(2, 24, 4), "R": random(2, 24, 6), "P": random(2, 18)}
    return graph(nodes, {"x": [7, 4]}, stored(**peepholes, w=random(12, 8), v=V, c=C))


def attention():
    nodes = [
        *(node("MatMul", ["x", f"w{name}"], [name], name=name) for name in "qkv"),
        node("Einsum", ["q", "k"], ["s"], equation="bqd,bkd->bqk"),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("Einsum", ["p", "v"], ["o"], equation="bqk,bkd->bqd"),
        node("Add", ["o", "x"], ["sum"]),
        node("ReduceMean", ["sum"], ["m"], axes=[1], keepdims=0),
        node("Gemm", ["m", "out", "c"], ["y"], name="last"),
    ]
    return graph(
        nodes, {"x": [5, 8]}, stored(**{f"w{n}": random(8, 8, seed=i) for i, n in enumerate("qkv")}, out=V, c=C)
    )


def half_precision():
    """As an export in half precision is: weights and activations, and casts at both ends."""
    nodes = [
        node("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16),
        node("Gemm", ["xh", "w", "b"], ["a"], name="first", alpha=0.5, beta=2.0),
        node("Relu", ["a"], ["r"]),
        node("Gemm", ["r", "v"], ["yh"], name="last"),
        node("Cast", ["yh"], ["y"], to=TensorProto.FLOAT),
    ]
    return graph(nodes, {"x": [8]}, stored(w=W.astype(np.float16), b=B.astype(np.float16), v=V.astype(np.float16)))


def constant(name, array):
    return node("Constant", [], [name], value=numpy_helper.from_array(array.astype(np.float32)))


def unnamed():
    """Nodes without names, weights as Constant nodes."""
    nodes = [constant("w", W), node("MatMul", ["x", "w"], ["m"]), constant("b", B), node("Add", ["m", "b"], ["a"])]
    nodes += [node("Relu", ["a"], ["r"]), constant("v", V), node("Gemm", ["r", "v"], ["y"])]
    return graph(nodes, {"x": [8]}, [])


def like_quantized():
    """Inputs, outputs, tensors and nodes with names that quantizers give."""
    nodes = [
        node("Conv", ["image", "scale_image_1"], ["image_quantized"], name="image_QuantizeLinear", pads=[1] * 4),
        node("Relu", ["image_quantized"], ["scale_image_1_quantized"], name="QuantizeLinear_image_1"),
        node("GlobalAveragePool", ["scale_image_1_quantized"], ["y_scale"]),
        node("Flatten", ["y_scale"], ["image_ReduceMax"]),
        node("Concat", ["image_ReduceMax", "image_scale"], ["both"], axis=1),
        node("Gemm", ["both", "v", "c"], ["y"], name="last"),
        node("Softmax", ["y"], ["y_DequantizeLinear_Output"]),
    ]
    tensors = stored(scale_image_1=random(7, 3, 3, 3), v=V, c=C)
    outputs = {"y": [3], "y_DequantizeLinear_Output": [3]}
    return graph(nodes, {"image": [3, 6, 6], "image_scale": [1]}, tensors, outputs)


def shared_bias():
    nodes = [node("Gemm", ["h", "wide", "b"], ["k"], name="second"), node("Gemm", ["k", "w", "b"], ["a"], name="third")]
    return chain(nodes, wide=50 * random(8, 8, seed=3))


GRAPHS = {
    "factors": (with_gemm("b", alpha=-1.5, beta=2.0), 3),
    "factor of no bias": (with_gemm(beta=3.0, alpha=0.5), 3),
    "factor of an empty bias": (with_gemm("", beta=3.0), 3),
    "no weight left": (with_gemm("b", alpha=0.0), 3),
    "no bias left": (with_gemm("b", beta=0.0), 3),
    "one number": (with_gemm("one", beta=0.5), 3),
    "a row": (with_gemm("row", beta=0.5, transB=1), 3),
    "one number as a matrix": (with_gemm("single"), 3),
    "computed bias": (with_gemm("computed", before=[node("Tanh", ["h"], ["computed"])]), 3),
    "two groups": (two_groups(), 3),
    "tied": (tied(uneven=False), 3),
    "tied, uneven": (tied(uneven=True), 3),
    "if": (with_if(), 2),
    "recurrent": (recurrent(), 2),
    "attention": (attention(), 4),
    "half precision": (half_precision(), 2),
    "unnamed": (unnamed(), 2),
    "names like quantized": (like_quantized(), 2),
    "shared bias": (shared_bias(), 4),
}


@pytest.mark.parametrize("quantizer", ["qdq", "nncf"])
@pytest.mark.parametrize("kind", GRAPHS)
def test_every_layer_is_int8_and_the_network_is_the_same(kind, quantizer, tmp_path):
    model, layers = GRAPHS[kind]
    given = {"ids": np.random.default_rng(0).integers(0, 8, (48, 4))} if kind.startswith("tied") else {}
    for scheme in (USUAL, SYMMETRIC) if quantizer == "qdq" else (USUAL,):
        qdq, notes, feeds = quantize(model, tmp_path / scheme.activations, scheme, quantizer, **given)
        onnx.checker.check_model(qdq, full_check=True)
        assert notes == ()
        assert len(int8_layers(qdq)) == layers
        exact, found = run(model, feeds), run(qdq, feeds)
        assert list(exact) == list(found)
        for name, value in exact.items():
            assert error(value, found[name]) < 0.06, name


@pytest.mark.parametrize(
    ("model", "layer", "reason"),
    [
        (with_gemm("t", before=[node("Tanh", ["h"], ["t"])], beta=2.0),
         "gemm", "beta cannot be folded, since its bias is computed"),
        (chain([node("Sigmoid", ["h"], ["s"]), node("Transpose", ["s"], ["t"], perm=[1, 0]),
                node("MatMul", ["s", "t"], ["g"], name="gram"),
                node("Gemm", ["g", "h"], ["a"], name="gemm", alpha=0.1)]),
         "gemm", "alpha cannot be folded, since no weight of it is stored"),
        (chain([node("MatMul", ["h", "one"], ["s"], name="gemm"), node("Unsqueeze", ["s", "axis"], ["u"]),
                node("Add", ["u", "h"], ["a"])], one=B, axis=np.array([1])), "gemm", "its weight is a vector"),
    ],
    ids=["beta", "alpha", "vector"],
)  # fmt: skip
@pytest.mark.parametrize("quantizer", ["qdq", "nncf"])
def test_a_layer_that_no_quantizer_reads_right_stays_float_and_is_named(model, layer, reason, quantizer, tmp_path):
    qdq, notes, feeds = quantize(model, tmp_path, quantizer=quantizer)
    assert len(notes) == 1
    assert f"'{layer}' (" in notes[0]
    assert reason in notes[0]
    assert layer not in int8_layers(qdq)
    assert {"first", "last"} <= set(int8_layers(qdq))
    assert error(run(model, feeds)["y"], run(qdq, feeds)["y"]) < 0.06


def raw_networks():
    """Channels of unlike units on all ways to the first layer, which reads them standardised."""
    tail = [
        node("Sub", ["raw", "mean"], ["centred"]),
        node("Div", ["centred", "deviation"], ["z"]),
        node("Gemm", ["z", "w", "b"], ["a"], name="first"),
        node("Relu", ["a"], ["r"]),
        node("Gemm", ["r", "v", "c"], ["y"], name="last"),
    ]
    ways = {
        "concat": [node("GlobalAveragePool", ["x"], ["g"]), node("Flatten", ["g"], ["raw"])],
        "slices": [
            node("Slice", ["x", "from", "to", "axis"], ["s"]),
            node("Split", ["s", "parts"], ["left", "right"], axis=2),
            node("Concat", ["right", "left"], ["swapped"], axis=2),
            node("MaxPool", ["swapped"], ["most"], kernel_shape=[4]),
            node("Squeeze", ["most", "axis"], ["raw"]),
        ],
        "moved": [
            node("Pad", ["x", "pads"], ["padded"], mode="edge"),
            node("Transpose", ["padded"], ["t"], perm=[0, 2, 1]),
            node("Clip", ["t", "", "high"], ["clipped"]),
            node("Reshape", ["clipped", "shape"], ["same"]),
            node("Gather", ["same", "third"], ["raw"], axis=1),
        ],
        "averaged": [
            node("AveragePool", ["x"], ["g"], kernel_shape=[20]),
            node("Relu", ["g"], ["positive"]),
            node("Where", ["yes", "positive", "g"], ["chosen"]),
            node("Flatten", ["chosen"], ["raw"]),
        ],
    }  # fmt: skip
    integers = {
        "from": [4], "to": [8], "axis": [2], "parts": [2, 2], "pads": [0, 0, 1, 0, 0, 1], "shape": [0, 22, 4],
    }  # fmt: skip
    tensors = stored(
        mean=[0, 0, 0, 101325.0], deviation=[1, 1, 1, 200.0], w=random(4, 8), b=B, v=V, c=C, high=1e6,
        third=np.array(3), yes=np.array(True), **{name: np.array(value) for name, value in integers.items()},
    )  # fmt: skip
    return {name: graph([*way, *tail], {"x": [4, 20]}, tensors) for name, way in ways.items()}


@pytest.mark.parametrize("quantizer", ["qdq", "nncf"])
@pytest.mark.parametrize("way", ["concat", "slices", "moved", "averaged"])
def test_raw_channels_of_unlike_units_stay_float_up_to_the_first_layer(way, quantizer, tmp_path):
    model = raw_networks()[way]
    random_ = np.random.default_rng(0)
    pressure = 101325 + 200 * random_.normal(size=(48, 1, 1)) + 30 * random_.normal(size=(48, 1, 20))
    x = np.concatenate([random_.normal(size=(48, 3, 20)), pressure], 1).astype(np.float32)
    operators = ["Pad", "Slice", "Split", "Gather", "Where", *USUAL.operators]
    scheme = type(USUAL)(activations="uint8", symmetric_activations=False, operators=operators)
    qdq, notes, feeds = quantize(model, tmp_path, scheme, quantizer, x=x)
    assert notes == ()
    assert set(int8_layers(qdq)) == {"first", "last"}
    made = {name: item for item in qdq.graph.node for name in item.output}
    ahead = ["z"]
    while ahead:  # from the first layer's input back to x
        before = made.get(ahead.pop())
        assert before is None or before.op_type not in ("QuantizeLinear", "DequantizeLinear")
        ahead += [] if before is None else list(before.input)
    assert error(run(model, feeds)["y"], run(qdq, feeds)["y"]) < 0.04


def test_raw_arithmetic_does_not_read_what_a_layer_rounds(tmp_path):
    """The layer's Q/DQ pair is its own: ONNX Runtime's quantizer gives it to every reader."""
    nodes = [
        node("Gemm", ["x", "w", "b"], ["a"], name="first"),
        node("Sub", ["x", "mean"], ["centred"], name="raw"),
        node("Add", ["a", "centred"], ["s"], name="sum"),
        node("Relu", ["s"], ["r"]),
        node("Gemm", ["r", "v", "c"], ["y"], name="last"),
    ]
    model = graph(nodes, {"x": [8]}, stored(w=W, b=B, v=V, c=C, mean=B))
    qdq, _, _ = quantize(model, tmp_path)
    assert readers(qdq, "x") == {"Sub", "QuantizeLinear"}


def picky(refused, problem):
    """Return a quantizer like ONNX Runtime's, for which some nodes are a problem unless they stay float."""

    def write(prepared, samples, scheme, work, floats):
        wrong = [name for name in refused if name not in floats]
        path = find_quantizer("qdq").write(prepared, samples, scheme, work, floats)
        if wrong:
            problem(wrong[0], path)
        return path

    return Quantizer("picky", "Picky", write, ("test_write",))


def refuse(name, path):
    raise KeyError(name)


def change(edit):
    """Return a problem that changes the QDQ graph at a node."""

    def problem(name, path):
        qdq = onnx.load(path)
        edit(qdq.graph, next(item for item in qdq.graph.node if item.name == name))
        onnx.save(qdq, path)

    return problem


def forget_bias(graph, layer):
    del layer.input[2:]


def other_weight(graph, layer):
    dequantize = next(item for item in graph.node if layer.input[1] in item.output)
    tensor = next(item for item in graph.initializer if item.name == dequantize.input[0])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))


def no_type(graph, layer):
    layer.input[0] = "nowhere"


DEEP = chain(
    [item for i in range(6) for item in (
        node("Gemm", ["h" if i == 0 else f"r{i - 1}", "w", f"b{i}"], [f"g{i}"], name=f"layer{i}"),
        node("Relu", [f"g{i}"], ["a" if i == 5 else f"r{i}"], name=f"relu{i}"))],
    **{f"b{i}": B + i / 10 for i in range(6)},
)  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (refuse, "Picky cannot quantize it: KeyError: 'layer2'"),
        (change(no_type), "Picky cannot quantize it: "),
        (change(forget_bias), "Picky changes the network: 'g2' is off by "),
        (change(other_weight), "Picky changes the network: 'w' is "),
    ],
    ids=["refuses", "writes what does not run", "forgets a bias", "stores another weight"],
)
def test_the_node_that_a_quantizer_gets_wrong_stays_float_and_is_named(problem, said, tmp_path):
    shared = "stores" in said or "'w' is" in said  # the weight of all layers: the first that reads it is named
    model = with_gemm("b") if shared else DEEP
    refused = ["gemm"] if shared else ["layer2", "layer4"]
    qdq, notes, feeds = quantize(model, tmp_path, quantizer=picky(refused, problem))
    assert len(notes) == len(refused)
    assert f"'{refused[0]}' (Gemm) stays float: {said}" in notes[0]
    assert int8_layers(qdq) == [
        item.name for item in model.graph.node if item.op_type == "Gemm" and item.name not in refused
    ]
    assert error(run(model, feeds)["y"], run(qdq, feeds)["y"]) < 0.06


def test_a_quantizer_that_takes_nothing_refuses_the_graph(tmp_path):
    def write(*_):
        raise IndexError("no graph is good enough")

    quantizer = Quantizer("none", "Nobody", write, ("test_write",))
    with pytest.raises(ModelError, match=r"model\.onnx: Nobody cannot quantize it: IndexError: no graph is good"):
        quantize(DEEP, tmp_path, quantizer=quantizer)


def test_a_quantizer_that_changes_what_stays_float_is_refused(tmp_path):
    def write(prepared, samples, scheme, work, floats):
        path = find_quantizer("qdq").write(prepared, samples, scheme, work, floats)
        change(forget_bias)("layer3", path)
        return path

    with pytest.raises(ModelError, match=r"'layer3' cannot be quantized, nor stay float: .*'g3' is off by"):
        quantize(DEEP, tmp_path, quantizer=Quantizer("always", "Always", write))


def test_a_defect_that_is_no_librarys_keeps_its_traceback(tmp_path):
    quantizer = Quantizer("mine", "Mine", picky(["layer2"], refuse).write)
    with pytest.raises(KeyError, match="layer2"):
        quantize(DEEP, tmp_path, quantizer=quantizer)


NAMES = (
    "x_quantized",
    "t0_scale",
    "t1_DequantizeLinear_Output",
    "scale_t2_1",
    "w_zero_point",
    "t0_QuantizeLinear_Output",
)


@st.composite
def networks(draw):
    """Draw a network of tensors [n, 8]: layers that share weights, activations, sums, and names of any kind."""
    known, nodes = ["x"], []
    names = draw(st.permutations(NAMES))
    for index in range(draw(st.integers(2, 7))):
        source = draw(st.sampled_from(known[-3:]))
        kind = draw(st.sampled_from(["Gemm", "Gemm", "MatMul", "Relu", "Clip", "Add", "Concat", "Tanh"]))
        name = names[index] if index < len(names) and draw(st.booleans()) else f"t{index}"
        weight = draw(st.sampled_from(["w", "u"]))
        if kind == "Gemm":
            bias = draw(st.sampled_from([[], ["b"], ["row"], ["one"], [source]]))
            factor = st.sampled_from([1.0, 0.5, 2.0])
            attributes = {"alpha": draw(factor), "beta": draw(factor), "transB": draw(st.integers(0, 1))}
            nodes.append(node(kind, [source, weight, *bias], [name], name=f"n{index}", **attributes))
        elif kind == "Concat":
            nodes.append(node(kind, [source, draw(st.sampled_from(known))], [f"{name}.both"], axis=1))
            nodes.append(node("MatMul", [f"{name}.both", "wide"], [name], name=f"n{index}"))
        else:
            second = {"MatMul": [weight], "Add": [draw(st.sampled_from(known))], "Clip": ["low", "high"]}.get(kind, [])
            nodes.append(node(kind, [source, *second], [name], name=f"n{index}"))
        known.append(name)
    nodes.append(node("Gemm", [known[-1], "v", "c"], ["y"], name="last"))
    tensors = stored(
        w=W, u=random(8, 8, seed=5), b=B, row=B[None], one=0.3, wide=random(16, 8) / 2, v=V, c=C, low=-0.5, high=1.5
    )
    return graph(nodes, {"x": [8]}, tensors)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks(), st.sampled_from([USUAL, SYMMETRIC]))
def test_no_network_is_quantized_to_another(tmp_path, model, scheme):
    qdq, _, feeds = quantize(model, tmp_path, scheme)
    exact, found = (np.float64(run(each, feeds)["y"]) for each in (model, qdq))
    assert np.square(found - exact).mean() < 0.02 * np.square(exact).mean()


def test_a_network_that_ends_in_a_relu_gives_no_negative_numbers(tmp_path):
    nodes = [node("Gemm", ["x", "v", "c"], ["h"], name="layer"), node("Relu", ["h"], ["y"], name="end")]
    model = graph(nodes, {"x": [8]}, stored(v=V, c=C))
    qdq, notes, feeds = quantize(model, tmp_path)
    exact, found = run(model, feeds)["y"], run(qdq, feeds)["y"]
    assert (notes, int8_layers(qdq)) == ((), ["layer"])
    assert (exact.min(), found.min()) == (0, 0)
    assert error(exact, found) < 0.05


def _with_pairs_of_weights(prepared, samples, scheme, work, floats):
    """Quantize as ONNX Runtime does where it leaves weights float, each behind a QuantizeLinear."""
    ranges, quantized, cache = find_ranges(prepared, samples, scheme), work / "pairs.onnx", work / "pairs.json"
    ort_quantization.calibrate.save_tensors_data(ranges, cache)
    ort_quantization.quantize_static(
        str(prepared), str(quantized), None, calibration_cache_path=str(cache), nodes_to_exclude=sorted(floats),
        op_types_to_quantize=scheme.operators, per_channel=True, calibrate_method=ranges.calibration_method,
        extra_options={"AddQDQPairToWeight": True},
    )  # fmt: skip
    return quantized


def test_weights_behind_a_quantize_linear_are_stored_in_int8(tmp_path):
    nodes = [node("Gemm", ["x", "v", "b"], ["h"], name="first"), node("MatMul", ["h", "w"], ["y"], name="head")]
    model = graph(nodes, {"x": [8]}, stored(v=random(8, 8), b=random(8), w=random(8, 3)))
    qdq, notes, feeds = quantize(
        model, tmp_path / "work", quantizer=Quantizer("pairs", "pairs", _with_pairs_of_weights)
    )
    assert not notes
    assert int8_layers(qdq) == ["first", "head"]
    kinds = {tensor.name: tensor.data_type for tensor in qdq.graph.initializer}
    made = {name: item for item in qdq.graph.node for name in item.output}
    weights = [made[item.input[1]].input[0] for item in qdq.graph.node if item.name in ("first", "head")]
    assert {kinds[name] for name in weights} == {TensorProto.INT8}
    assert error(run(model, feeds)["y"], run(qdq, feeds)["y"]) < 0.05
