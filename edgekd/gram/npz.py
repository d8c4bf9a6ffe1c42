"""Reading the rows of an ``.npz`` a chunk at a time, so that memory does not grow with their number.

``numpy.load`` reads a member of an ``.npz`` whole, and ignores ``mmap_mode`` for it.
"""

from __future__ import annotations

import errno
import re
import struct
import tokenize
import zlib
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.lib.npyio import NpzFile

try:
    from lzma import LZMAError as _LzmaError
except ImportError:  # a board's Python may be built without it
    _LzmaError = ValueError  # type: ignore[assignment,misc]

#: An array of any numbers or texts.
Array: TypeAlias = NDArray[Any]

#: In an ``.npz`` of samples, the input ``image`` is stored as ``input.image``.
INPUT_PREFIX = "input."

#: In a bundle's reference, the network's output ``scores`` is stored as ``output.scores``.
OUTPUT_PREFIX = "output."

#: The output that holds the embedding of the modality ``image`` is called ``embedding.image``.
EMBEDDING_PREFIX = "embedding."

#: Beside ``input.image``, ``present.image`` says of each sample whether it has that modality, where some lack it.
PRESENT_PREFIX = "present."

#: In an ``.npz`` of samples that are steps of sequences, ``carried.h`` is the name of the output that holds the input
#: ``h`` after a step; ``groups`` says which sequence each sample is a step of.
CARRIED_PREFIX = "carried."

_SUFFIX = ".npy"

#: What zipfile, its decompressors and numpy's reader of headers raise on a damaged or foreign file.
UNREADABLE = (
    *(ValueError, TypeError, SyntaxError, LookupError, ArithmeticError, EOFError, RuntimeError),
    *(BadZipFile, zlib.error, _LzmaError, struct.error, tokenize.TokenError),
)

_MOST_EMPTY_ROWS = 10_000_000

#: For less than this nobody asks how much memory is free.
_ALWAYS_FREE_BYTES = 1 << 26


def embeddings_of(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the embeddings among an engine's outputs, by modality."""
    return {name.removeprefix(EMBEDDING_PREFIX): z for name, z in outputs.items() if name.startswith(EMBEDDING_PREFIX)}


def answers_of(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return what a network answers among an engine's outputs: all but the embeddings."""
    return {name: x for name, x in outputs.items() if not name.startswith(EMBEDDING_PREFIX)}


@dataclass(frozen=True)
class Header:
    """The header of one array of an ``.npz``.

    Attributes:
        shape: Shape of the array.
        dtype: Type of its elements.
        fortran_order: Whether the first index varies fastest in the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

    @property
    def row_bytes(self) -> int:
        """Size of one row, in bytes."""
        return prod(self.shape[1:]) * self.dtype.itemsize


def write_npz(stream: IO[bytes], arrays: Mapping[str, Array]) -> None:
    """Write an ``.npz`` of arrays under any names: of ``numpy.savez`` some, as "file", are parameters.

    Raises:
        ValueError: An array holds Python objects.
    """
    with ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(name + _SUFFIX, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_headers(path: Path) -> dict[str, Header]:
    """Return the header of every array of an ``.npz``; no content is read.

    Raises:
        ValueError: The file is not an ``.npz`` of plain arrays.
        OSError: The file cannot be read.
    """
    headers = {}
    with _open(path) as archive:
        for name in archive.namelist():
            key = name.removesuffix(_SUFFIX)
            with _named(path, key), archive.open(name) as stream:
                headers[key] = _header(stream, archive.getinfo(name).file_size)
    return headers


def stream_rows(path: Path, keys: Sequence[str], rows: int) -> Iterator[dict[str, Array]]:
    """Yield these arrays of an ``.npz``, ``rows`` of their rows at a time, in order; the last chunk may be smaller.

    One chunk is held in memory. Arrays in Fortran order, whose rows are scattered over the file, are held whole.

    Args:
        path: The file, compressed or not.
        keys: Names of the arrays to read; all have the same number of rows.
        rows: Number of rows of a chunk, at least 1.

    Yields:
        For each key a read-only array [rows, ...].

    Raises:
        ValueError: The file is not an ``.npz`` or lacks a key, or an array is pickled, is a single value, or differs
            in rows from the others. It is raised when the first chunk is asked for; for damaged content, at its chunk.
        OSError: The file cannot be read.
    """
    with ExitStack() as stack:
        archive = stack.enter_context(_open(path))
        readers = {}
        for key in keys:
            if key + _SUFFIX not in archive.namelist():
                raise ValueError(f"{path}: has no array '{key}'")
            with _named(path, key):
                name = key + _SUFFIX
                stream = stack.enter_context(archive.open(name))
                readers[key] = _RowReader(stream, archive.getinfo(name).file_size)
        counts = {key: reader.count for key, reader in readers.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"{path}: its arrays differ in rows: {counts}")
        for start in range(0, max(counts.values(), default=0), rows):
            chunk = {}
            for key, reader in readers.items():
                with _named(path, key):
                    chunk[key] = reader.read(min(rows, reader.count - start))
            yield chunk


class _RowReader:
    """Reads the rows of one array, in order."""

    def __init__(self, stream: IO[bytes], size_bytes: int) -> None:
        header = _header(stream, size_bytes)
        if not header.shape:
            raise ValueError("is a single value, not rows")
        if header.shape[0] > _MOST_EMPTY_ROWS and not header.row_bytes:  # nothing in the file bounds their number
            raise ValueError(f"has {header.shape[0]:,} rows without a value")
        self.count = header.shape[0]
        self._stream, self._dtype, self._row = stream, header.dtype, header.shape[1:]
        self._whole: Array | None = None
        self._next = 0
        if header.fortran_order:
            self._whole = self._content(header.shape[::-1]).T

    def read(self, rows: int) -> Array:
        if self._whole is None:
            return self._content((rows, *self._row))
        self._next += rows
        return self._whole[self._next - rows : self._next]

    def _content(self, shape: tuple[int, ...]) -> Array:
        size = prod(shape) * self._dtype.itemsize
        _require_memory(size)
        content = self._stream.read(size)
        if len(content) < size:
            raise ValueError("ends too early")
        return np.ndarray(shape, self._dtype, content)


class MeasuredArrays(Mapping[str, Array]):
    """The arrays of an ``.npz`` that ``numpy.load`` opened; one that cannot be whole in memory is not begun to be read.

    ``numpy.load`` itself believes a header of any size, and a few MB of zeros, packed, are many GB of them.
    """

    def __init__(self, archive: NpzFile) -> None:
        self._archive = archive

    def __getitem__(self, key: str) -> Array:
        """Return an array.

        Raises:
            ValueError: Its header says more than there is, or than fits into memory.
        """
        packed = self._archive.zip
        assert packed is not None  # it is open
        info = packed.getinfo(key + _SUFFIX if key + _SUFFIX in packed.namelist() else key)
        try:
            with packed.open(info) as stream:
                header = _header(stream, info.file_size)
            _require_memory(prod(header.shape) * header.dtype.itemsize)
            array: Array = self._archive[key]
        except UNREADABLE as error:
            raise ValueError(f"array '{key}': {error}") from error
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive)

    def __len__(self) -> int:
        return len(self._archive)


def _require_memory(size_bytes: int) -> None:
    """Raise ValueError where more bytes are needed at once than this machine has free."""
    if size_bytes < _ALWAYS_FREE_BYTES:
        return
    free = _free_memory_bytes()
    if free is not None and size_bytes > free:
        raise ValueError(f"needs {size_bytes / 1e9:,.1f} GB of memory at once, and {free / 1e9:,.1f} GB are free")


def _free_memory_bytes() -> int | None:
    """Return how much memory Linux can still give this process, or None elsewhere."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    free = [int(found[1]) * 1024] if found else []
    free += [int(limit) - int(used)] if limit.isdigit() and used.isdigit() else []
    return min(free, default=None)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _header(stream: IO[bytes], size_bytes: int) -> Header:
    """Read an array's header, whose file has ``size_bytes`` in all."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
    else:  # (3, 0) is for structured types
        raise ValueError(f"is stored in version {version[0]}.{version[1]} of numpy's format, not as plain numbers")
    if dtype.hasobject:
        raise ValueError("is pickled (allow_pickle), and may run code when it is read; store plain arrays")
    said, stored = prod(shape) * dtype.itemsize, size_bytes - stream.tell()
    if min(shape, default=0) < 0 or said > stored:
        raise ValueError(f"says that it is {dtype} of shape {shape}, {said:,} bytes, and has {max(stored, 0):,}")
    return Header(shape, dtype, fortran_order)


@contextmanager
def _open(path: Path) -> Iterator[ZipFile]:
    try:
        archive = ZipFile(path)
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as an .npz: {error}") from error
    with archive:
        yield archive


@contextmanager
def _named(path: Path, key: str) -> Iterator[None]:
    """Name the file and the array in the errors that are raised while the array is read."""
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(f"{path}: array '{key}': {error}") from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # the disk's; a decompressor's has no number, and a seek to a
            raise  # place that a damaged directory names is invalid
        raise ValueError(f"{path}: array '{key}': {error}") from error
