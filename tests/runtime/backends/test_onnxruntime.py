import numpy as np
import pytest
from engines import samples, save_engine, save_graph
from onnx import TensorProto, helper
from onnx.helper import make_node, make_tensor_value_info

from edgekd.errors import ModelError
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.session import ComputeTimer, TensorSpec


@pytest.fixture
def path(tmp_path):
    return save_engine(tmp_path / "e.onnx")


def test_inputs_and_outputs_are_described(path):
    with open_engine(path) as session:
        assert session.inputs == (
            TensorSpec("accel", "float32", ("batch", 4)),
            TensorSpec("image", "float32", ("batch", 1, 2, 3)),
        )
        assert [spec.name for spec in session.outputs] == ["logits", "embedding.accel", "embedding.image"]


def test_a_run_returns_every_output_by_name(path):
    with open_engine(path) as session:
        outputs = session.run(samples(2))
    assert {name: (x.dtype, x.shape) for name, x in outputs.items()} == {
        "logits": (np.float32, (2, 3)),
        "embedding.accel": (np.float32, (2, 5)),
        "embedding.image": (np.float32, (2, 5)),
    }


def test_bytes_open_like_the_file(path):
    with open_engine(path) as from_file, open_engine(path.read_bytes()) as from_bytes:
        for name, expected in from_file.run(samples(2)).items():
            assert np.array_equal(from_bytes.run(samples(2))[name], expected)


def test_a_run_checks_its_feeds(path):
    with open_engine(path) as session, pytest.raises(ModelError, match="'image'"):
        session.run({"accel": samples(1)["accel"]})


def test_threads_and_provider_are_what_was_asked(path):
    session = open_engine(path, threads=2)._session
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level) == (2, 1, 4)
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_no_threads_would_mean_all_of_them(path):
    with pytest.raises(ValueError, match="1 or more, not 0"):
        open_engine(path, threads=0)


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"cut"], ids=["absent", "empty", "text", "cut"])
def test_a_broken_file_is_named(path, content):
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:200] if content == b"cut" else content)
    with pytest.raises(ModelError, match=r"e\.onnx: ONNX Runtime cannot open it"):
        open_engine(path)


def test_broken_bytes_are_named_as_told():
    with pytest.raises(ModelError, match=r"bundle/deploy\.onnx: ONNX Runtime cannot open it"):
        open_engine(b"not a model", name="bundle/deploy.onnx")


def test_a_closed_engine_does_not_run(path):
    with open_engine(path) as session:
        pass
    with pytest.raises(ModelError, match=r"e\.onnx: the engine is closed"):
        session.run(samples(1))


def test_a_failure_while_running_is_named(tmp_path):
    graph = helper.make_graph(
        [make_node("Reshape", ["x", "shape"], ["y"])],
        "reshape",
        [_tensor("x", TensorProto.FLOAT, [4]), _tensor("shape", TensorProto.INT64, [1])],
        [_tensor("y", TensorProto.FLOAT, ["n"])],
    )
    with (
        open_engine(save_graph(tmp_path / "reshape.onnx", graph)) as session,
        pytest.raises(ModelError, match=r"reshape\.onnx: ONNX Runtime failed to run it"),
    ):
        session.run({"x": np.zeros(4, np.float32), "shape": np.array([3])})


def test_unnamed_dimensions_are_tied_to_nothing(tmp_path):
    graph = helper.make_graph(
        [make_node("Identity", ["a"], ["c"]), make_node("Identity", ["b"], ["d"])],
        "unnamed",
        [_tensor("a", TensorProto.FLOAT, [None]), _tensor("b", TensorProto.FLOAT, [None])],
        [_tensor("c", TensorProto.FLOAT, [None]), _tensor("d", TensorProto.FLOAT, [None])],
    )
    with open_engine(save_graph(tmp_path / "e.onnx", graph)) as session:
        outputs = session.run({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})
    assert (len(outputs["c"]), len(outputs["d"])) == (2, 3)


def test_a_type_that_numpy_lacks_is_named(tmp_path):
    strings = [_tensor(name, TensorProto.STRING, [1]) for name in ("x", "y")]
    graph = helper.make_graph([make_node("Identity", ["x"], ["y"])], "strings", strings[:1], strings[1:])
    with pytest.raises(ModelError, match=r"s\.onnx: 'x' is a tensor\(string\)"):
        open_engine(save_graph(tmp_path / "s.onnx", graph))


def _tensor(name, kind, shape):
    return make_tensor_value_info(name, kind, shape)


# --- computing alone


def one(seed=0):
    return samples(1, seed=seed)


def test_computing_alone_is_timed_and_changes_no_result(path):
    with open_engine(path) as session:
        expected = session.run(one())
        assert isinstance(session, ComputeTimer)
        compute = session.bind_inputs(one(1))
        assert all(compute() > 0 for _ in range(3))
        for name, array in session.run(one()).items():
            np.testing.assert_array_equal(array, expected[name])


def test_computing_alone_needs_the_callers_arrays_no_more(path):
    feeds = one()
    with open_engine(path) as session:
        compute = session.bind_inputs(feeds)
        feeds["accel"][:] = np.nan
        del feeds
        assert compute() > 0


def test_computing_alone_takes_any_batch(path):
    with open_engine(path) as session:
        first, second = session.bind_inputs(one()), session.bind_inputs(samples(3))
        assert first() > 0
        assert second() > 0


def test_computing_alone_checks_its_feeds(path):
    with open_engine(path) as session, pytest.raises(ModelError, match="not given all of its inputs"):
        session.bind_inputs({"accel": one()["accel"]})


def test_a_closed_engine_computes_nothing(path):
    session = open_engine(path)
    session.close()
    with pytest.raises(ModelError, match="the engine is closed"):
        session.bind_inputs(one())
