import subprocess
import sys

import numpy as np
import pytest

from edgekd.gram.npz import read_headers, stream_rows

ARRAYS = {
    "ids": np.array([f"s{i}" for i in range(10)]),
    "input.a": np.arange(60, dtype=np.float32).reshape(10, 2, 3),
    "labels": np.arange(10),
    "columns": np.asfortranarray(np.arange(40.0).reshape(10, 4)),
    "empty": np.zeros((10, 0)),
}


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
def archive(request, tmp_path):
    request.param(tmp_path / "x.npz", **ARRAYS, scalar=np.float32(1), others=np.arange(3))
    return tmp_path / "x.npz"


@pytest.mark.parametrize("rows", [1, 3, 5, 10, 11])
def test_chunks_are_the_rows_in_order(archive, rows):
    chunks = list(stream_rows(archive, list(ARRAYS), rows))
    assert [len(chunk["ids"]) for chunk in chunks] == [min(rows, 10 - start) for start in range(0, 10, rows)]
    for key, whole in ARRAYS.items():
        read = np.concatenate([chunk[key] for chunk in chunks])
        np.testing.assert_array_equal(read, whole)
        assert read.dtype == whole.dtype


def test_several_streams_of_one_file_do_not_disturb_each_other(archive):
    first, second = (stream_rows(archive, ["input.a"], rows) for rows in (2, 5))
    next(first)
    next(second)
    np.testing.assert_array_equal(next(first)["input.a"], ARRAYS["input.a"][2:4])
    np.testing.assert_array_equal(next(second)["input.a"], ARRAYS["input.a"][5:])


def test_no_rows_are_no_chunks(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros((0, 3)))
    assert list(stream_rows(tmp_path / "x.npz", ["a"], 4)) == []


def test_headers_tell_shape_and_type(archive):
    headers = read_headers(archive)
    assert {key: (header.shape, header.dtype) for key, header in headers.items() if key in ARRAYS} == {
        key: (array.shape, array.dtype) for key, array in ARRAYS.items()
    }
    assert headers["scalar"].shape == ()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["input.b"], r"x\.npz: has no array 'input\.b'"),
        (["ids", "others"], r"x\.npz: its arrays differ in rows: \{'ids': 10, 'others': 3\}"),
        (["scalar"], r"x\.npz: array 'scalar': is a single value"),
    ],
)
def test_what_has_no_such_rows_is_refused(archive, keys, message):
    with pytest.raises(ValueError, match=message):
        next(stream_rows(archive, keys, 2))


def test_a_pickle_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([object()]))
    for read in (lambda: next(stream_rows(tmp_path / "x.npz", ["a"], 2)), lambda: read_headers(tmp_path / "x.npz")):
        with pytest.raises(ValueError, match=r"x\.npz: array 'a': is pickled"):
            read()


def test_a_lone_array_is_no_npz(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"x\.npy: cannot be read as an \.npz"):
        next(stream_rows(tmp_path / "x.npy", ["a"], 2))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_content_is_refused(tmp_path, save):
    path = tmp_path / "x.npz"
    save(path, a=np.random.default_rng(0).normal(size=(100, 50)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: array 'a': "):
        list(stream_rows(path, ["a"], 30))


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        next(stream_rows(tmp_path / "x.npz", ["a"], 2))


def test_memory_is_that_of_a_chunk(tmp_path):
    """80 MB of rows; a process that streams them grows by less than a tenth of that."""
    np.savez(tmp_path / "x.npz", a=np.zeros((20_000, 1000), np.float32))
    program = """
import sys
from pathlib import Path
from edgekd.gram.npz import stream_rows
from edgekd.runtime.measure.machine import peak_rss_bytes
before = peak_rss_bytes()
assert sum(len(chunk["a"]) for chunk in stream_rows(Path(sys.argv[1]), ["a"], 100)) == 20_000
print(peak_rss_bytes() - before)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "x.npz")]
    grown_bytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown_bytes < 8e6
