"""A batch that the exporter fixed is made free where that changes nothing, and is named where it cannot be."""

import graphs
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import node, tensor
from onnx import numpy_helper

from edgekd.errors import ModelError
from edgekd.runtime.backends.onnxruntime import open_engine

BATCH, WIDTH, STEPS, ROWS = 4, 8, 6, 20


def stored(**arrays):
    return [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def flattened(path):
    nodes = [
        node("Conv", ["x", "k"], ["map"], pads=[1, 1, 1, 1]),
        node("Reshape", ["map", "s"], ["flat"]),
        node("Gemm", ["flat", "w"], ["y"]),
    ]
    initializers = [*graphs.weights(k=(4, 2, 3, 3), w=(144, 3)), *graphs.integers(s=[BATCH, 144])]
    return graphs.write(path, nodes, [tensor("x", [BATCH, 2, 6, 6])], [tensor("y", [BATCH, 3])], initializers)


def recurrent(path):
    """Zeros for the state that it begins with, and steps before samples."""
    nodes = [
        node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        node("GRU", ["steps", "w", "r", "", "", "h"], ["all", "last"], hidden_size=5),
        node("Reshape", ["last", "s"], ["state"]),
        node("Gemm", ["state", "v"], ["y"]),
    ]
    initializers = [
        *graphs.weights(w=(1, 15, WIDTH), r=(1, 15, 5), v=(5, 3)),
        *stored(h=np.zeros((1, BATCH, 5), np.float32)),
        *graphs.integers(s=[BATCH, -1]),
    ]
    return graphs.write(path, nodes, [tensor("x", [BATCH, STEPS, WIDTH])], [tensor("y", [BATCH, 3])], initializers)


def attention(path):
    """Heads in the batch's dimension, a token before all others and positions, all stored for the whole batch."""
    token, places = (np.random.default_rng(1).normal(size=(1, n, WIDTH)).astype(np.float32) for n in (1, STEPS + 1))
    nodes = [
        node("Concat", ["token", "x"], ["tokens"], axis=1),
        node("Add", ["tokens", "places"], ["placed"]),
        node("MatMul", ["placed", "w"], ["mixed"]),
        node("Reshape", ["mixed", "apart"], ["four"]),
        node("Transpose", ["four"], ["turned"], perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "heads"], ["q"]),
        node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
        node("MatMul", ["q", "k"], ["scores"]),
        node("Softmax", ["scores"], ["weights"]),
        node("MatMul", ["weights", "q"], ["values"]),
        node("Reshape", ["values", "apart_again"], ["five"]),
        node("ReduceMean", ["five"], ["mean"], axes=[1, 2], keepdims=0),
        node("Gemm", ["mean", "v"], ["y"]),
    ]
    initializers = [
        *graphs.weights(w=(WIDTH, WIDTH), v=(WIDTH // 2, 3)),
        *stored(token=np.repeat(token, BATCH, 0), places=np.repeat(places, BATCH, 0)),
        *graphs.integers(
            apart=[BATCH, STEPS + 1, 2, WIDTH // 2],
            heads=[BATCH * 2, STEPS + 1, WIDTH // 2],
            apart_again=[BATCH, 2, -1, WIDTH // 2],
        ),
    ]
    return graphs.write(path, nodes, [tensor("x", [BATCH, STEPS, WIDTH])], [tensor("y", [BATCH, 3])], initializers)


def filled(path):
    nodes = [
        node("ConstantOfShape", ["z"], ["zeros"]),
        node("Expand", ["one", "e"], ["ones"]),
        node("Concat", ["zeros", "x", "ones"], ["joined"], axis=1),
        node("Gemm", ["joined", "w"], ["y"]),
    ]
    initializers = [
        *graphs.weights(w=(WIDTH + 3, 3)),
        *stored(one=np.ones((1, 1), np.float32)),
        *graphs.integers(z=[BATCH, 2], e=[BATCH, 1]),
    ]
    return graphs.write(path, nodes, [tensor("x", [BATCH, WIDTH])], [tensor("y", [BATCH, 3])], initializers)


def mixing(path):
    """Each sample is compared with the mean of its batch."""
    nodes = [
        node("ReduceMean", ["x"], ["mean"], axes=[0]),
        node("Sub", ["x", "mean"], ["apart"]),
        node("Gemm", ["apart", "w"], ["y"]),
    ]
    inputs, outputs = [tensor("x", [BATCH, WIDTH])], [tensor("y", [BATCH, 3])]
    return graphs.write(path, nodes, inputs, outputs, graphs.weights(w=(WIDTH, 3)))


def normal(*shape):
    return np.random.default_rng(0).normal(size=(ROWS, *shape)).astype(np.float32)


FREED = {
    "flattened": (flattened, normal(2, 6, 6)),
    "recurrent": (recurrent, normal(STEPS, WIDTH)),
    "attention": (attention, normal(STEPS, WIDTH)),
    "filled": (filled, normal(WIDTH)),
}


@pytest.mark.parametrize("name", FREED)
def test_any_batch_gives_what_a_full_one_gives(tmp_path, import_, name):
    write, x = FREED[name]
    path = write(tmp_path / "m.onnx")
    imported = import_(path, {"x": x})
    assert any(f"exported for a batch of {BATCH}; the engine takes any" in note for note in imported.notes)
    user = ort.InferenceSession(str(path))
    expected = np.concatenate([user.run(["y"], {"x": x[row : row + BATCH]})[0] for row in range(0, ROWS, BATCH)])
    with open_engine(tmp_path / "out/float.onnx") as engine:
        for rows in (1, 3, BATCH, ROWS):
            np.testing.assert_allclose(engine.run({"x": x[:rows]})["y"], expected[:rows], rtol=1e-4, atol=1e-5)


def test_a_batch_whose_samples_mix_is_refused_and_whole_batches_are_taken(tmp_path, import_):
    path = mixing(tmp_path / "m.onnx")
    message = (
        rf"is exported for a batch of {BATCH}, and cannot be made to take others \(its output 'y' depends on the other "
        rf"samples .* 'x' as \[samples, {BATCH}, {WIDTH}\]"
    )
    with pytest.raises(ModelError, match=message):
        import_(path, {"x": normal(WIDTH)})
    import_(path, {"x": normal(BATCH, WIDTH)})
    found = ort.InferenceSession(str(tmp_path / "out/float.onnx")).run(["y"], {"x": normal(BATCH, WIDTH)[:1]})[0]
    expected = ort.InferenceSession(str(path)).run(["y"], {"x": normal(BATCH, WIDTH)[0]})[0]
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_a_batch_of_one_stays_one(tmp_path, import_):
    path = flattened(tmp_path / "m.onnx")
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    shape = next(item for item in model.graph.initializer if item.name == "s")
    shape.CopyFrom(numpy_helper.from_array(np.array([1, 144]), "s"))
    onnx.save(model, path)
    x = normal(2, 6, 6)
    import_(path, {"x": x})
    written = ort.InferenceSession(str(tmp_path / "out/float.onnx"))
    assert written.get_inputs()[0].shape[0] == 1
    expected = ort.InferenceSession(str(path)).run(["y"], {"x": x[3:4]})[0]
    np.testing.assert_allclose(written.run(["y"], {"x": x[3:4]})[0], expected, rtol=1e-5)
