"""What ONNX Runtime opens and ONNX's checker refuses is imported, and computes what it computes there."""

import graphs
import numpy as np
import onnx
import pytest
from graphs import node, tensor
from onnx import helper, numpy_helper
from user import run_user

from edgekd.errors import ModelError
from edgekd.pipeline.onnx_import.file.read import read_model


def unsorted(path):
    model = onnx.load(graphs.branch(path, constant=False))
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _listed(*versions):
    """Softmax over all behind the batch before opset 13, over the last dimension since then."""

    def write(path):
        outputs = [tensor("y", ["n", 2, 2])]
        nodes = [node("Reshape", ["x", "s"], ["r"]), node("Softmax", ["r"], ["y"])]
        path = graphs.write(path, nodes, [tensor("x", ["n", 4])], outputs, graphs.integers(s=[-1, 2, 2]))
        model = onnx.load(path)
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions)
        return model

    return write


def _changed(**changes):
    def write(path):
        model = onnx.load(graphs.mlp(path))
        for name, value in changes.items():
            setattr(model, name, value)
        return model

    return write


def without_name(path):
    model = onnx.load(graphs.mlp(path))
    model.graph.name = ""
    return model


def with_alias(path):
    model = onnx.load(graphs.mlp(path))
    model.graph.node[0].domain = "ai.onnx"
    return model


def stored_twice(path):
    model = onnx.load(graphs.mlp(path))
    other = numpy_helper.to_array(model.graph.initializer[0]) * 2
    model.graph.initializer.append(numpy_helper.from_array(other, "w"))
    return model


def without_output_type(path):
    model = onnx.load(graphs.mlp(path))
    model.graph.output[0].ClearField("type")
    return model


def hidden_name(path):
    """A branch with a stored tensor of its own, named like one outside, which that branch does not read."""
    model = onnx.load(graphs.branch(path, constant=False))
    branch = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    branch.initializer.append(numpy_helper.from_array(np.ones((6, 3), np.float32), "w1"))
    model.graph.node.insert(1, node("Gemm", ["hidden", "w1"], ["outer"]))
    model.graph.output.append(tensor("outer", ["n", 3]))
    return model


MODELS = {
    "unsorted": unsorted,
    "older last": _listed(("", 13), ("", 11)),
    "newer last": _listed(("", 11), ("", 13)),
    "listed three times": _listed(("", 13), ("ai.onnx.ml", 3), ("", 13), ("", 13)),
    "under both names": _listed(("ai.onnx", 11), ("", 13)),
    "domain by its other name": with_alias,
    "weights not listed as inputs": _changed(ir_version=3),
    "no version": _changed(ir_version=0),
    "graph without a name": without_name,
    "stored twice": stored_twice,
    "output without a type": without_output_type,
    "a name that hides another": hidden_name,
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_imported_and_computes_the_same(tmp_path, import_, name):
    model = MODELS[name](tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    x = np.concatenate([graphs.normal(4), -np.abs(graphs.normal(4))])
    import_(tmp_path / "m.onnx", {"x": x})
    for row in (x[:1], x[-1:]):
        for output in (value.name for value in model.graph.output):
            expected = run_user(tmp_path / "m.onnx", output, {"x": row})
            np.testing.assert_allclose(run_user(tmp_path / "out/float.onnx", output, {"x": row}), expected, rtol=1e-5)


def test_a_circle_is_refused(tmp_path):
    nodes = [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]
    path = graphs.write(tmp_path / "m.onnx", nodes, [tensor("x", ["n"])], [tensor("y", ["n"])])
    with pytest.raises(ModelError, match=r"is not valid ONNX: .*topologically sorted"):
        read_model(path)


def test_an_output_that_is_never_made_is_refused(tmp_path):
    path = graphs.mlp(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name="nowhere"))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"m\.onnx: ONNX Runtime cannot open it"):
        read_model(path)


@pytest.mark.parametrize(
    "sizes",
    [["w", "hidden", 4], ["batch", "seq_len + 1", 4], [None, None, 4], ["n", "n", 4], ["", "b", 4]],
    ids=["of weights and tensors", "arithmetic", "unnamed", "one for all", "empty"],
)
def test_free_sizes_may_have_any_name(tmp_path, import_, sizes):
    nodes = [node("MatMul", ["x", "w"], ["hidden"]), node("MatMul", ["hidden", "batch"], ["y"])]
    stored = graphs.weights(w=(4, 6), batch=(6, 3))
    path = graphs.write(tmp_path / "m.onnx", nodes, [tensor("x", sizes)], [tensor("y", [*sizes[:2], 3])], stored)
    x = graphs.normal(5, 4)
    import_(path, {"x": x})
    for steps in (2, 5):  # what was free stays so
        found = run_user(tmp_path / "out/float.onnx", "y", {"x": x[:3, :steps]})
        np.testing.assert_allclose(found, run_user(path, "y", {"x": x[:3, :steps]}), rtol=1e-5)
