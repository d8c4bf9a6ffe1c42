"""Embedding tables in INT8: rows keep their scale, and what else reads a table keeps it in float."""

import numpy as np
import onnx
import pytest
from int8 import run
from onnx import TensorProto, numpy_helper
from onnx_graphs import graph, node, random, stored

from edgekd.compress import quantize
from edgekd.compress.graph import copy
from edgekd.compress.oracles.identity import RewriteError
from edgekd.compress.tables import find_tables, require_same_rows, store_tables
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import Calibration, Scheme

CALIBRATION = Calibration(description="", ranges="minmax", samples=24)


def lookup(rows=500, width=24, axis=0, tied=False, spread=1.0):
    """Return a sum of looked-up rows with a head: ids [n, 7]."""
    table = random(rows, width) * np.geomspace(1, spread, rows)[:, None]
    nodes = [
        node("Gather", ["table", "ids"], ["e"], name="lookup", axis=axis),
        node("ReduceMean", ["e"], ["p"], axes=[1], keepdims=0),
        node("Tanh", ["p"], ["t"]),
        node("MatMul", ["t", "w"], ["h"], name="head"),
    ]
    if tied:
        nodes += [
            node("Transpose", ["table"], ["tt"]),
            node("MatMul", ["t", "tt"], ["all"]),
            node("ReduceSum", ["all", "ax"], ["s"]),
        ]
        nodes.append(node("Add", ["h", "s"], ["y"]))
    else:
        nodes.append(node("Identity", ["h"], ["y"]))
    return graph(
        nodes, {"ids": [7]}, stored(table=table, w=random(width, 3), ax=np.array([1])), types={"ids": TensorProto.INT64}
    )


def ids(rows=24):
    return np.random.default_rng(1).integers(0, 500, (rows, 7))


@pytest.mark.parametrize("quantizer", ["qdq", "nncf", "dynamic", "weights8"])
def test_every_int8_candidate_stores_its_tables_in_bytes(tmp_path, quantizer):
    model = lookup()
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", ids=np.arange(24), **{"input.ids": ids()})
    scheme = Scheme(activations="uint8", symmetric_activations=False)
    spec = CandidateSpec("int8", quantizer)
    quantize.run(spec, tmp_path / "model.onnx", tmp_path / "samples.npz", scheme, CALIBRATION, tmp_path)
    found = onnx.load(tmp_path / spec.name / "deploy.onnx")
    large = {tensor.data_type for tensor in found.graph.initializer if np.prod(tensor.dims) == 500 * 24}
    assert large == {TensorProto.INT8}
    exact, rounded = (run(m, {"ids": ids()[:1]})["y"] for m in (model, found))
    assert np.allclose(exact, rounded, atol=0.03)


def test_rows_keep_their_own_scale():
    """Rows whose magnitudes are a million apart are each rounded in steps of their own."""
    model = lookup(spread=1e-6)
    written = copy(model)
    store_tables(written)
    for row in (0, 499):
        feeds = {"ids": np.full((1, 7), row)}
        exact, found = (run(m, feeds)["y"] for m in (model, written))
        assert np.abs(found - exact).max() < 0.01 * np.abs(exact).max()


def test_looked_up_bytes_stay_bytes_in_the_session(tmp_path):
    """What ONNX Runtime makes of the graph holds the table as INT8: nothing unpacks it when the graph is opened."""
    import onnxruntime as ort

    written = lookup()
    store_tables(written)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(written.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kept = onnx.load(tmp_path / "optimized.onnx").graph.initializer
    assert {tensor.data_type for tensor in kept if np.prod(tensor.dims) == 500 * 24} == {TensorProto.INT8}


@pytest.mark.parametrize(
    "model", [lookup(tied=True), lookup(rows=20), lookup(rows=24, width=500, axis=1)], ids=["tied", "small", "columns"]
)
def test_other_tables_stay_as_they_are(model):
    assert find_tables(model.graph) == []
    before = model.SerializeToString()
    store_tables(model)
    assert model.SerializeToString() == before


def test_a_negative_index_and_an_index_that_is_a_scalar_find_their_rows():
    nodes = [node("Gather", ["table", "ids"], ["e"], name="lookup"), node("Add", ["e", "x"], ["y"])]
    model = graph(nodes, {"x": [24]}, stored(table=random(400, 24), ids=np.array(-2)), {"y": [24]})
    written = copy(model)
    store_tables(written)
    x = np.zeros((2, 24), np.float32)
    assert np.allclose(run(model, {"x": x})["y"], run(written, {"x": x})["y"], atol=0.02)
    assert "lookup" in {item.name for item in written.graph.node}


def test_a_table_of_other_rows_is_refused_with_its_node():
    model = lookup()
    written = copy(model)
    store_tables(written)
    for tensor in written.graph.initializer:
        if tensor.data_type == TensorProto.INT8:
            tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1, 0), tensor.name))
    with pytest.raises(RewriteError, match="'lookup'"):
        require_same_rows(written, model, [{"ids": ids()}])
