"""Reading the rows of an ``.npz`` a chunk at a time, so that memory does not grow with their number.

``numpy.load`` reads a member of an ``.npz`` whole, and ignores ``mmap_mode`` for it.
"""

from __future__ import annotations

import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import IO, TYPE_CHECKING, Any, TypeAlias
from zipfile import BadZipFile, ZipFile

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

#: An array of any numbers or texts.
Array: TypeAlias = "NDArray[Any]"

#: In an ``.npz`` of samples, the input ``image`` is stored as ``input.image``.
INPUT_PREFIX = "input."

#: The output that holds the embedding of the modality ``image`` is called ``embedding.image``.
EMBEDDING_PREFIX = "embedding."

_SUFFIX = ".npy"


def embeddings_of(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the embeddings among an engine's outputs, by modality."""
    return {name.removeprefix(EMBEDDING_PREFIX): z for name, z in outputs.items() if name.startswith(EMBEDDING_PREFIX)}


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
                headers[key] = _header(stream)
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
                readers[key] = _RowReader(stack.enter_context(archive.open(key + _SUFFIX)))
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

    def __init__(self, stream: IO[bytes]) -> None:
        header = _header(stream)
        if not header.shape:
            raise ValueError("is a single value, not rows")
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
        content = self._stream.read(size)
        if len(content) < size:
            raise ValueError("ends too early")
        return np.ndarray(shape, self._dtype, content)


def _header(stream: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
    else:  # (3, 0) is for structured types
        raise ValueError(f"is stored in version {version[0]}.{version[1]} of numpy's format, not as plain numbers")
    if dtype.hasobject:
        raise ValueError("is pickled (allow_pickle), and may run code when it is read; store plain arrays")
    return Header(shape, dtype, fortran_order)


@contextmanager
def _open(path: Path) -> Iterator[ZipFile]:
    try:
        archive = ZipFile(path)
    except BadZipFile as error:
        raise ValueError(f"{path}: cannot be read as an .npz: {error}") from error
    with archive:
        yield archive


@contextmanager
def _named(path: Path, key: str) -> Iterator[None]:
    """Name the file and the array in the errors that are raised while the array is read."""
    try:
        yield
    except (ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: array '{key}': {error}") from error
