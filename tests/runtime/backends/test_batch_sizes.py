"""Batches of many sizes in OpenVINO: the answers are those of the batch as it is, in few kernels' memory."""

from pathlib import Path

import numpy as np
import pytest
from engines import save_graph
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.runtime.backends.batch_sizes import MOST_SIZES, BatchSizes, mixes_rows
from edgekd.runtime.backends.registry import ORT, Runtime

RANDOM = np.random.default_rng(3)
WEIGHTS = {"w": RANDOM.normal(size=(6, 4)), "k": RANDOM.normal(size=(4, 1, 3, 3))}
WEIGHTS |= {f"k{layer}": RANDOM.normal(size=(4, 4, 3, 3)) for layer in range(1, 6)}
WHOLE = {"first": [0], "axis": [0], "groups": [-1, 2, 6], "rows": [-1, 6], "one": [1]}


def node(operator, inputs, output, **attributes):
    return make_node(operator, inputs.split(), output.split(), **attributes)


SCALED = [
    node("DynamicQuantizeLinear", "x", "q s z"),
    node("DequantizeLinear", "q s z", "d"),
    node("MatMul", "d w", "y"),
]
#: Graphs from x [n, 6] to y, whose answer for a row depends on the other rows, on its place, or on how many there are.
MIXING = {
    "dynamic-quantization": SCALED,
    "centred": [node("ReduceMean", "x axis", "m", keepdims=1), node("Sub", "x m", "c"), node("MatMul", "c w", "y")],
    "softmax-of-the-batch": [node("MatMul", "x w", "l"), node("Softmax", "l", "y", axis=0)],
    "against-the-first": [node("Gather", "x first", "f", axis=0), node("Sub", "x f", "y")],
    "running-sum": [node("CumSum", "x axis0", "y")],
    "frames-in-the-batch": [
        node("Reshape", "x groups", "g"),
        node("ReduceMean", "g one", "m", keepdims=1),
        node("Sub", "g m", "c"),
        node("Reshape", "c rows", "y"),
    ],
    "turned": [node("Shape", "x", "n"), node("Slice", "x last far axis back", "r"), node("Add", "x r", "y")],
    "place": [
        node("Shape", "x", "n2"),
        node("Gather", "n2 zero", "n", axis=0),
        node("Range", "zero n step", "i"),
        node("Cast", "i", "p", to=TensorProto.FLOAT),
        node("Unsqueeze", "p one", "column"),
        node("Add", "x column", "y"),
    ],
    "share-of-the-batch": [
        node("Shape", "x", "n2"),
        node("Gather", "n2 zero", "n", axis=0),
        node("Cast", "n", "count", to=TensorProto.FLOAT),
        node("Div", "x count", "y"),
    ],
    "pooled-over-the-batch": [node("ReduceMax", "x axis", "y", keepdims=1)],
}
#: Cannot have a batch of 1, which OpenVINO's sessions need.
NO_SINGLE = "frames-in-the-batch"
#: And those whose rows have nothing to do with each other.
APART = {
    "linear": [node("MatMul", "x w", "y")],
    "convolution": [
        node("Reshape", "x image", "i"),
        node("Conv", "i k", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "y"),
    ],
    "normed": [node("LayerNormalization", "x gain", "y"), node("Softmax", "y", "z", axis=1)],
    "attention": [
        node("Unsqueeze", "x last", "t"),
        node("Transpose", "t", "u", perm=[0, 2, 1]),
        node("MatMul", "t u", "s"),
        node("Softmax", "s", "a"),
        node("MatMul", "a t", "y"),
    ],
    "int8": [
        node("QuantizeLinear", "x step zp", "q"),
        node("DequantizeLinear", "q step zp", "d"),
        node("MatMul", "d w", "l"),
        node("Relu", "l", "y"),
    ],
}


def save(path, nodes):
    values = {name: array.astype(np.float32) for name, array in WEIGHTS.items()}
    values |= {name: np.array(value, np.int64) for name, value in WHOLE.items()}
    values |= {"zero": np.int64(0), "axis0": np.int64(0), "step": np.float32(0.05), "zp": np.int8(0)}
    values |= {"last": np.array([-1]), "far": np.array([-(2**31)]), "back": np.array([-1])}
    values |= {"image": np.array([-1, 1, 2, 3]), "gain": np.ones(6, np.float32)}
    if any("step" in item.input and item.op_type == "Range" for item in nodes):
        values["step"] = np.int64(1)
    used = {name for item in nodes for name in item.input}
    output = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        "g",
        [make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items() if name in used],
    )
    return save_graph(path, graph)


def answers(session, rows, seed=0):
    x = np.random.default_rng([rows, seed]).normal(size=(rows, 6)).astype(np.float32)
    (found,) = session.run({"x": x}).values()
    return found


@pytest.mark.parametrize("name", sorted({*MIXING, *APART} - {NO_SINGLE}))
def test_batches_of_any_size_give_what_the_whole_batch_gives(tmp_path, name):
    path = save(tmp_path / "g.onnx", (MIXING | APART)[name])
    sizes = [8, 2, 4, 6, 10, 12, 14, 16, 18, 8, 30, 66, 130, 64, 200, 2, 22]
    with Runtime("openvino").open(path) as session, ORT.open(path) as reference:
        for call, rows in enumerate(sizes):
            expected = answers(reference, rows, call)
            np.testing.assert_allclose(answers(session, rows, call), expected, rtol=1e-4, atol=1e-4, err_msg=str(rows))


@pytest.mark.parametrize("name", [*MIXING, *APART])
def test_graphs_whose_rows_depend_on_each_other_are_told_from_others(tmp_path, name):
    runtime = ORT if name == NO_SINGLE else Runtime("openvino")
    with runtime.open(save(tmp_path / "g.onnx", (MIXING | APART)[name])) as session:
        feeds = {"x": RANDOM.normal(size=(10, 6)).astype(np.float32)}
        assert mixes_rows(session.run, feeds, ["x"]) == (name in MIXING)


@pytest.mark.parametrize("kind", ["int64", "uint8"])
def test_rows_of_indices_are_changed_within_their_range(kind):
    seen = []

    def run(feeds):
        seen.append(feeds["ids"])
        return {"y": feeds["ids"].copy()}

    ids = np.array([[3, 7], [4, 5], [6, 3]]).astype(kind)
    assert not mixes_rows(run, {"ids": ids}, ["ids"])
    assert {array.dtype for array in seen} == {ids.dtype}
    assert min(array.min() for array in seen) == ids.min()
    assert max(array.max() for array in seen) == ids.max()


def test_a_graph_that_fails_on_other_sizes_is_run_as_it_is():
    def run(feeds):
        if len(feeds["x"]) % 8:
            raise RuntimeError("not divisible")
        return {"y": feeds["x"] * 2}

    sizes = BatchSizes(["x"])
    for rows in range(8, 200, 8):
        assert np.array_equal(sizes.run(run, {"x": np.arange(rows)}, rows)["y"], 2 * np.arange(rows))


def test_few_sizes_are_ever_run_and_the_first_of_them_as_they_are():
    ran = []

    def run(feeds):
        ran.append(len(feeds["x"]))
        return {"y": feeds["x"] * feeds["by"]}

    sizes = BatchSizes(["x"])
    for rows in [*range(2, 300), 5]:
        x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
        found = sizes.run(run, {"x": x, "by": np.array([1, 2, 3], np.float32)}, rows)
        assert np.array_equal(found["y"], x * [1, 2, 3])
    assert ran[:8] == list(range(2, 10))
    assert ran[-1] == 5
    assert len(set(ran)) <= MOST_SIZES


def test_memory_does_not_grow_with_every_size_of_a_batch(tmp_path):
    nodes = [node("Reshape", "x image", "i"), node("Conv", "i k", "c0", pads=[1, 1, 1, 1])]
    nodes += [node("Conv", f"c{layer - 1} k{layer}", f"c{layer}", pads=[1, 1, 1, 1]) for layer in range(1, 6)]
    path = save(tmp_path / "g.onnx", [*nodes, node("Flatten", "c5", "y")])
    with Runtime("openvino").open(path) as session:
        for rows in (1, 2, 300):
            answers(session, rows)
        before = own_memory()
        for rows in range(2, 300):
            answers(session, rows)
        assert own_memory() - before < 30e6


def own_memory():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
