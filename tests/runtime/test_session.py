import timeit
from types import MappingProxyType

import numpy as np
import pytest
from engines import samples, save_engine, save_samples

from edgekd.errors import ModelError
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.backends.registry import Runtime
from edgekd.runtime.feeds import FeedCheck, read_feeds
from edgekd.runtime.session import TensorSpec, rows_at_once, run_rows

SPECS = (TensorSpec("accel", "float32", ("batch", 4)), TensorSpec("image", "float32", ("batch", 1, 2, 3)))


def test_right_feeds_pass():
    FeedCheck(SPECS)(samples(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, r"not given all.*'image', float32 \[batch, 1, 2, 3\]"),
        ({"accell": np.zeros(1)}, r"no input 'accell'; did you mean 'accel'\?"),
        ({"accel": [[0.0] * 4]}, "'accel' must be a numpy array, .*but is a list"),
        ({"accel": np.zeros((3, 4))}, r"'accel' must be float32 \[batch, 4\], but is float64 \[3, 4\]"),
        ({"accel": np.zeros((3, 4), ">f4")}, r"but is >f4 \[3, 4\]"),
        ({"accel": np.zeros((3, 4, 1), np.float32)}, r"but is float32 \[3, 4, 1\]"),
        ({"accel": np.zeros((3, 5), np.float32)}, r"but is float32 \[3, 5\]"),
        ({"accel": np.zeros((2, 4), np.float32)}, "size of 'batch', but it is 2 before input 'image' and 3 in it"),
    ],
    ids=["missing", "unknown", "no-array", "dtype", "byte-order", "rank", "fixed-size", "dynamic-size"],
)
def test_wrong_feeds_are_named(change, message):
    feeds = {name: array for name, array in {**samples(3), **change}.items() if array is not None}
    with pytest.raises(ModelError, match=message):
        FeedCheck(SPECS)(feeds)


def test_a_typo_is_named_rather_than_the_input_it_leaves_missing():
    feeds = samples(3)
    feeds["imgae"] = feeds.pop("image")
    with pytest.raises(ModelError, match=r"no input 'imgae'; did you mean 'image'\?"):
        FeedCheck(SPECS)(feeds)


EXPECTED = (
    r"; feed a dict of numpy arrays: 'accel', float32 \[batch, 4\]; 'image', float32 \[batch, 1, 2, 3\]; "
    r"e.g. run\(\{'accel': np.zeros\(\[1, 4\], 'float32'\), 'image': np.zeros\(\[1, 1, 2, 3\], 'float32'\)\}\)$"
)
NO_FEEDS = [
    ([np.zeros((1, 4), np.float32)], "given a value of type list instead of its inputs by name"),
    (None, "given None instead of its inputs by name"),
    (3, "given a value of type int instead of its inputs by name"),
    (np.zeros((1, 4), np.float32), "given a value of type ndarray instead of its inputs by name"),
    ({0: np.zeros((1, 4), np.float32), 1: np.zeros((1, 1, 2, 3), np.float32)}, "has no input 0: its inputs have names"),
]


@pytest.mark.parametrize(("feeds", "said"), NO_FEEDS, ids=["list", "none", "number", "array", "numbered"])
def test_what_is_no_dict_of_arrays_is_refused_with_an_example(feeds, said):
    with pytest.raises(ModelError, match=said + EXPECTED):
        FeedCheck(SPECS)(feeds)
    check = FeedCheck(SPECS)
    check(samples(2))  # the quick check of what fitted before takes nothing else for it
    with pytest.raises(ModelError, match=said + EXPECTED):
        check(feeds)


def test_the_example_of_the_refusal_runs(tmp_path):
    with open_engine(save_engine(tmp_path / "e.onnx")) as session:
        with pytest.raises(ModelError) as error:
            session.run(None)
        call = str(error.value).partition("e.g. ")[2]
        assert eval(f"session.{call}", {"session": session, "np": np})["logits"].shape == (1, 3)


@pytest.mark.parametrize("library", ["onnxruntime", "onnxruntime-web", "openvino", "own"])
@pytest.mark.parametrize(("feeds", "said"), NO_FEEDS[:3], ids=["list", "none", "number"])
def test_every_session_refuses_it(tmp_path, library, feeds, said):
    path = tmp_path / "mine.py"
    path.write_text("from edgekd.runtime.backends.onnxruntime import open_engine as o\n"
                    "def open_engine(engine, threads, name):\n    return o(engine, threads, name)\n")  # fmt: skip
    runtime = Runtime(f"{path}:open_engine" if library == "own" else library)
    with runtime.open(save_engine(tmp_path / "e.onnx")) as session, pytest.raises(ModelError, match=said):
        session.run(feeds)


def test_any_mapping_of_arrays_is_taken(tmp_path):
    with open_engine(save_engine(tmp_path / "e.onnx")) as session:
        assert session.run(MappingProxyType(samples(2)))["logits"].shape == (2, 3)


def test_differently_named_dimensions_may_differ():
    FeedCheck((TensorSpec("a", "int64", ("rows",)), TensorSpec("b", "int64", ("columns",))))(_integers(a=2, b=3))


def test_the_check_costs_microseconds():
    feeds, check = samples(1), FeedCheck(SPECS)
    best = min(timeit.repeat(lambda: check(feeds), number=1000, repeat=5)) / 1000
    assert best < 10e-6


def test_feeds_are_read_and_other_arrays_ignored(tmp_path):
    path = save_samples(tmp_path / "x.npz", 5, labels=np.arange(5), ids=np.array([object()] * 5))
    feeds = read_feeds(path, SPECS)
    assert feeds.keys() == {"accel", "image"}
    assert np.array_equal(feeds["image"], samples(5)["image"])


def test_a_missing_input_is_named_with_its_neighbour(tmp_path):
    np.savez(tmp_path / "x.npz", **{"input.acel": np.zeros((2, 4), np.float32)})
    with pytest.raises(ModelError, match=r"x\.npz: has no array 'input.accel'; did you mean 'input.acel'\?"):
        read_feeds(tmp_path / "x.npz", SPECS)


def test_pickled_inputs_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **{"input.accel": np.array([{}], object), "input.image": np.zeros(1)})
    with pytest.raises(ModelError, match=r"plain arrays: array 'input.accel': is pickled"):
        read_feeds(tmp_path / "x.npz", SPECS)


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04 cut off"], ids=["absent", "empty", "text", "cut"])
def test_a_file_that_is_no_archive_is_named(tmp_path, content):
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.npz: cannot be read as an \.npz"):
        read_feeds(path, SPECS)


def test_a_lone_array_is_no_archive(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ModelError, match=r"x\.npy: is a single array, not an \.npz; write it with np\.savez"):
        read_feeds(tmp_path / "x.npy", SPECS)


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ModelError, match="same number of rows, at least one"):
        read_feeds(save_samples(tmp_path / "x.npz", 0), SPECS)


def test_unequal_rows_are_refused_where_the_engine_does_not_tie_them(tmp_path):
    np.savez(tmp_path / "x.npz", **{f"input.{name}": array for name, array in _integers(a=2, b=3).items()})
    with pytest.raises(ModelError, match=r"same number of rows.*'a': 2, 'b': 3"):
        read_feeds(tmp_path / "x.npz", (TensorSpec("a", "int64", ("x",)), TensorSpec("b", "int64", ("y",))))


def test_batches_give_what_one_run_gives(tmp_path):
    with open_engine(save_engine(tmp_path / "e.onnx")) as session:
        whole, parts = session.run(samples(7)), run_rows(session, samples(7), 3)
    assert list(parts) == list(whole)
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("row_bytes", "rows"), [(516, 64), (64 << 10, 16), (3 << 20, 1), (0, 64)])
def test_large_rows_are_run_a_few_at_a_time(row_bytes, rows):
    assert rows_at_once(64, row_bytes) == rows


def test_a_batch_is_never_exceeded(tmp_path):
    with open_engine(save_engine(tmp_path / "e.onnx", batch=2)) as session:
        assert run_rows(session, samples(6), 2)["logits"].shape == (6, 3)
        with pytest.raises(ModelError, match=r"float32 \[2, 4\], but is float32 \[3, 4\]"):
            run_rows(session, samples(6), 3)


def _integers(**sizes):
    return {name: np.zeros(size, np.int64) for name, size in sizes.items()}


def test_feeds_after_right_ones_are_checked_as_well():
    """Right feeds make the next check shorter, not blind."""
    check = FeedCheck(SPECS)
    check(samples(3))
    check(samples(3))
    check(samples(2))
    for wrong in (
        {**samples(2), "accel": np.zeros((2, 5), np.float32)},
        {**samples(2), "accel": np.zeros((2, 4))},
        {**samples(2), "more": np.zeros(1)},
        {"accel": samples(2)["accel"]},
        {**samples(2), "accel": samples(3)["accel"]},
        {**samples(2), "accel": samples(2)["accel"].tolist()},
    ):
        with pytest.raises(ModelError):
            check(wrong)


def test_an_engine_that_takes_one_row_gets_one_row_at_a_time(tmp_path):
    feeds = read_feeds(save_samples(tmp_path / "x.npz", 5), (TensorSpec("accel", "float32", (1, 4)),))
    assert feeds["accel"].shape == (5, 4)
    with open_engine(save_engine(tmp_path / "e.onnx", batch=1)) as session:
        found = run_rows(session, read_feeds(tmp_path / "x.npz", session.inputs), 256)
    with open_engine(save_engine(tmp_path / "many.onnx")) as session:
        expected = session.run(samples(5))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_rows_of_another_size_than_such_an_engine_takes_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"'accel' must be float32 \[1, 5\], but is float32 \[1, 4\]"):
        read_feeds(save_samples(tmp_path / "x.npz", 5), (TensorSpec("accel", "float32", (1, 5)),))
