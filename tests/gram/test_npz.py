import io
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekd.gram import npz
from edgekd.gram.npz import MeasuredArrays, read_headers, stream_rows, write_npz

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


def test_arrays_may_have_the_names_of_numpys_parameters(tmp_path):
    arrays = {name: np.arange(3.0) + index for index, name in enumerate(["file", "allow_pickle", "a/b", "größe"])}
    with (tmp_path / "x.npz").open("wb") as stream:
        write_npz(stream, arrays)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as read:
        assert read.files == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)


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


def with_header(path, shape, dtype="<f4", content=b"", compression=ZIP_STORED):
    """Write an archive whose array 'a' has a header that says what it likes."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": dtype, "fortran_order": False, "shape": shape})
    with ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", member.getvalue() + content)
    return path


@pytest.fixture(params=["rows", "headers", "whole"])
def read(request):
    """Each way in which an array is read."""

    def whole(path):
        with np.load(path) as archive:
            return MeasuredArrays(archive)["a"]

    return {"rows": lambda path: list(stream_rows(path, ["a"], 5)), "headers": read_headers, "whole": whole}[
        request.param
    ]


@pytest.mark.parametrize("shape", [(32 * 10**9,), (4, 8 * 10**9), (-1, 5), (10**30,)])
def test_a_header_that_says_more_than_there_is_is_refused(tmp_path, read, shape):
    path = with_header(tmp_path / "x.npz", shape, content=bytes(64))
    with pytest.raises(ValueError, match=r"says that it is float32 of shape .* bytes, and has 64"):
        read(path)


def test_rows_without_a_value_are_refused(tmp_path):
    """They would be counted for ever."""
    with pytest.raises(ValueError, match=r"array 'a': has 1,000,000,000,000 rows without a value"):
        list(stream_rows(with_header(tmp_path / "x.npz", (10**12, 0)), ["a"], 5))


def test_what_unpacks_to_more_than_is_free_is_not_begun(tmp_path, monkeypatch):
    """100 kB that are 100 MB of zeros, in one row."""
    path = with_header(tmp_path / "x.npz", (1, 25_000_000), content=bytes(10**8), compression=ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    assert next(stream_rows(path, ["a"], 1))["a"].shape == (1, 25_000_000)
    with np.load(path) as archive:
        assert MeasuredArrays(archive)["a"].nbytes == 10**8
    monkeypatch.setattr(npz, "_free_memory_bytes", lambda: 9 * 10**7)
    message = r"needs 0\.1 GB of memory at once, and 0\.1 GB are free"
    with pytest.raises(ValueError, match=message):
        next(stream_rows(path, ["a"], 1))
    with np.load(path) as archive, pytest.raises(ValueError, match=message):
        MeasuredArrays(archive)["a"]


def test_this_machine_has_some_memory_free():
    free = npz._free_memory_bytes()
    assert free is None or free > 1 << 20


def test_big_endian_arrays_keep_their_values(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.arange(6, dtype=">f4").reshape(3, 2))
    assert next(stream_rows(tmp_path / "x.npz", ["a"], 3))["a"].tolist() == [[0, 1], [2, 3], [4, 5]]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(at=st.floats(0, 1, exclude_max=True), change=st.binary(min_size=1, max_size=8), compress=st.booleans())
@example(at=0.99609375, change=b"\x01", compress=False)  # the directory lies before the file's beginning
def test_a_damaged_archive_is_read_right_or_refused(at, change, compress):
    """Either way in one kind of error; nothing is read for ever, or by running code."""
    stream, rows = io.BytesIO(), np.arange(40, dtype=np.float32).reshape(10, 4)
    (np.savez_compressed if compress else np.savez)(stream, a=rows, ids=np.array([f"id{n}" for n in range(10)]))
    content = bytearray(stream.getvalue())
    start = int(at * len(content))
    content[start : start + len(change)] = change
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        path.write_bytes(content)
        try:
            chunks = list(stream_rows(path, ["a"], 3))
        except ValueError:
            return
    read = np.concatenate([chunk["a"] for chunk in chunks])
    assert read.tobytes() == rows.tobytes() or read.shape != rows.shape or read.dtype != rows.dtype
