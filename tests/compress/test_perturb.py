import numpy as np
import onnx
import pytest
from fusion import make_inputs
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.compress.perturb import Perturbation, perturb, perturbations
from edgekd.errors import ModelError
from edgekd.runtime.backends.onnxruntime import open_engine

RANDOM = np.random.default_rng(0)


def weights(graph):
    """Return every stored tensor of a graph by name, those of Constant nodes too."""
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    stored |= {node.output[0]: node.attribute[0].t for node in graph.graph.node if node.op_type == "Constant"}
    return {name: numpy_helper.to_array(tensor) for name, tensor in stored.items()}


def changed(before, after):
    """Return the names of the tensors that are not the same."""
    old, new = weights(before), weights(after)
    assert {n: (x.shape, x.dtype) for n, x in old.items()} == {n: (x.shape, x.dtype) for n, x in new.items()}
    return {name for name in old if not np.array_equal(old[name], new[name])}


def small(nodes, values, inputs=("x",), constants=()):
    """Return a graph from [batch, 4] inputs to the outputs ``y`` and, where a node makes it, ``z``."""
    made = {name for node in nodes for name in node.output}
    graph = helper.make_graph(
        [
            *(make_node("Constant", [], [name], value=numpy_helper.from_array(values[name])) for name in constants),
            *nodes,
        ],
        "g",
        [make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in inputs],
        [make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]) for name in ("y", "z") if name in made],
        [numpy_helper.from_array(value, name) for name, value in values.items() if name not in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def loaded(model):
    return onnx.load(model)


def of(loaded, part):
    return {name for name in weights(loaded) if part in name and name.endswith("weight")}


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounding_leaves_each_channel_so_many_levels(loaded, bits):
    before, after = weights(loaded), weights(perturb(loaded, Perturbation("rounding", bits)))
    touched = changed(loaded, perturb(loaded, Perturbation("rounding", bits)))
    assert touched == of(loaded, "encoders") | of(loaded, "head")
    for name in touched:
        for exact, rounded in zip(
            before[name], after[name], strict=True
        ):  # channels stand first in Conv and here in Gemm
            step = np.abs(exact).max() / (2 ** (bits - 1) - 1)
            assert np.abs(rounded - exact).max() <= step / 2 * 1.001
            assert np.allclose(rounded / step, np.round(rounded / step), atol=1e-3)


def test_a_channel_of_zeros_stays_zero(loaded):
    values = {"w": np.concatenate([np.zeros((4, 1), np.float32), normal(4, 1)], 1)}
    graph = small([make_node("MatMul", ["x", "w"], ["y"])], values)
    rounded = weights(perturb(graph, Perturbation("rounding", 2)))["w"]
    assert np.isfinite(rounded).all()
    assert (rounded[:, 0] == 0).all()


def test_noise_is_of_the_given_size(loaded):
    before, after = weights(loaded), weights(perturb(loaded, Perturbation("noise", 0.1)))
    for name in of(loaded, "encoders"):
        ratio = (after[name] - before[name]).std() / before[name].std()
        assert ratio == pytest.approx(0.1, rel=5 / np.sqrt(2 * before[name].size))  # 5 standard errors


def test_pruning_zeroes_the_smallest_channels_and_spares_the_outputs(loaded):
    pruned = perturb(loaded, Perturbation("pruning", 0.5))
    before, after = weights(loaded), weights(pruned)
    touched = {name for name in changed(loaded, pruned) if before[name].ndim > 1}
    last = {node.input[1] for node in loaded.graph.node if node.output[0] in {o.name for o in loaded.graph.output}}
    assert len(last) == 3  # logits and two embeddings
    assert touched == (of(loaded, "encoders") | of(loaded, "head")) - last
    for node in loaded.graph.node:
        if node.op_type in ("Conv", "Gemm") and node.input[1] in touched:
            weight, bias = node.input[1:3]
            flat = before[weight].reshape(len(before[weight]), -1)
            gone = np.argsort(np.linalg.norm(flat, axis=1))[: len(flat) // 2]
            kept = np.setdiff1d(np.arange(len(flat)), gone)
            assert (after[weight][gone] == 0).all()
            assert (after[bias][gone] == 0).all()
            assert np.array_equal(after[weight][kept], before[weight][kept])
            assert np.array_equal(after[bias][kept], before[bias][kept])


@pytest.mark.parametrize(("kind", "strength"), [("rounding", 3), ("pruning", 0.5), ("noise", 0.3)])
@pytest.mark.parametrize("where", ["network", "image", "motion", "fusion"])
def test_only_what_was_meant_changes(loaded, kind, strength, where):
    damaged = perturb(loaded, Perturbation(kind, strength, where))
    found = {name for name in changed(loaded, damaged) if name.endswith("weight")}
    places = {"image": "encoders.image", "motion": "encoders.motion", "fusion": "head", "network": ""}
    assert found
    assert all(places[where] in name for name in found)
    with open_engine(loaded.SerializeToString()) as exact, open_engine(damaged.SerializeToString()) as broken:
        a, b = exact.run(make_inputs(8)), broken.run(make_inputs(8))
    same = {name for name in a if np.array_equal(a[name], b[name])}
    unmoved = {"network": set(), "image": {"embedding.motion"}, "motion": {"embedding.image"}}
    assert same == unmoved.get(where, {"embedding.image", "embedding.motion"})


def test_the_graph_is_left_as_it_is_and_the_seed_decides(loaded):
    content = loaded.SerializeToString(deterministic=True)
    noisy = [perturb(loaded, Perturbation("noise", 0.1, seed=seed)) for seed in (0, 0, 1)]
    assert loaded.SerializeToString(deterministic=True) == content
    assert not changed(noisy[0], noisy[1])
    assert changed(noisy[0], noisy[2])


CHANNELS = {
    "Gemm": (make_node("Gemm", ["x", "w", "b"], ["h"]), normal(4, 6), 1),
    "Gemm transB": (make_node("Gemm", ["x", "w", "b"], ["h"], transB=1), normal(6, 4), 0),
    "MatMul": (make_node("MatMul", ["x", "w"], ["h"]), normal(4, 6), 1),
}


@pytest.mark.parametrize("constants", [(), ("w",)], ids=["initializer", "Constant"])
@pytest.mark.parametrize(("node", "weight", "axis"), CHANNELS.values(), ids=CHANNELS)
def test_output_channels_are_found_in_every_layout(node, weight, axis, constants):
    last = make_node("MatMul", ["h", "v"], ["y"])
    graph = small([node, last], {"w": weight, "b": normal(6), "v": normal(6, 2)}, constants=constants)
    pruned = perturb(graph, Perturbation("pruning", 1 / 3))
    assert "v" not in changed(graph, pruned)
    norms = np.linalg.norm(np.moveaxis(weights(pruned)["w"], axis, 0), axis=1)
    smallest = np.argsort(np.linalg.norm(np.moveaxis(weight, axis, 0), axis=1))[:2]
    assert sorted(np.flatnonzero(norms == 0)) == sorted(smallest)
    with open_engine(pruned.SerializeToString()) as session:
        session.run({"x": normal(3, 4)})


def test_transposed_convolutions_lose_output_channels(tmp_path):
    nodes = [
        make_node("Unsqueeze", ["x", "axis"], ["wide"]),
        make_node("ConvTranspose", ["wide", "w", "b"], ["h"]),
        make_node("Conv", ["h", "v"], ["c"]),
        make_node("Flatten", ["c"], ["y"]),
    ]
    values = {"axis": np.array([1]), "w": normal(1, 4, 3), "b": normal(4), "v": normal(2, 4, 3)}
    graph = small(nodes, values)
    pruned = perturb(graph, Perturbation("pruning", 0.25))
    assert changed(graph, pruned) == {"w", "b"}  # the last layer is spared
    (gone,) = np.flatnonzero(np.abs(weights(pruned)["w"]).sum((0, 2)) == 0)
    assert gone == np.linalg.norm(values["w"], axis=(0, 2)).argmin()
    assert weights(pruned)["b"][gone] == 0


def test_weights_that_two_branches_share_are_of_neither():
    nodes = [
        make_node("MatMul", ["a", "shared"], ["p"]),
        make_node("MatMul", ["b", "shared"], ["q"]),
        make_node("MatMul", ["b", "own"], ["r"]),
        make_node("Concat", ["p", "q", "r"], ["y"], axis=1),
    ]
    graph = small(nodes, {"shared": normal(4, 3), "own": normal(4, 3)}, inputs=("a", "b"))
    assert changed(graph, perturb(graph, Perturbation("noise", 0.1, "b"))) == {"own"}
    assert changed(graph, perturb(graph, Perturbation("noise", 0.1, "fusion"))) == {"shared"}
    with pytest.raises(ModelError, match="no weights belong to 'a'; known: b, fusion, network"):
        perturb(graph, Perturbation("noise", 0.1, "a"))


def test_a_product_of_two_activations_has_no_weights():
    nodes = [
        make_node("Transpose", ["a"], ["columns"]),
        make_node("Gemm", ["columns", "b", "offset"], ["square"]),
        make_node("MatMul", ["b", "w"], ["z"]),
        make_node("MatMul", ["z", "square"], ["y"]),
    ]
    graph = small(nodes, {"offset": normal(1, 4), "w": normal(4, 4)}, inputs=("a", "b"))
    assert changed(graph, perturb(graph, Perturbation("noise", 0.1))) == {"w"}


def test_types_are_kept():
    graph = small([make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(4, 2).astype(np.float16)})
    assert weights(perturb(graph, Perturbation("noise", 0.1)))["w"].dtype == np.float16


def test_a_graph_without_weights_is_refused():
    graph = small([make_node("Relu", ["x"], ["y"])], {"unused": np.arange(3)})
    with pytest.raises(ModelError, match="stores no float weights of Conv, ConvTranspose, Gemm, MatMul"):
        perturb(graph, Perturbation("rounding", 4))


def test_the_grid_covers_every_place_once(loaded):
    grid = perturbations(["image", "motion"], repeats=2)
    assert len(set(grid)) == len(grid)
    assert {item.where for item in grid} == {"network", "image", "motion", "fusion"}
    assert perturbations(["image", "motion"], repeats=2) == grid
    noise = [item for item in grid if item.kind == "noise" and item.where == "network"]
    assert {item.seed for item in noise} == {0, 1}
