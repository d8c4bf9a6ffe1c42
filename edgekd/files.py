"""Files: atomic writes, full disks, digests, the data folders that ship with edgekd, lazy imports of packages."""

from __future__ import annotations

import errno
import hashlib
import importlib
import logging
import os
import stat
import sys
import tempfile
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgekd.errors import EdgekdError, MissingDependency, ScratchError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

#: A JSON object as it is read or written: its values are checked where they are used.
JsonObject: TypeAlias = dict[str, Any]


#: What the system says where a disk takes no more. A user can mend it, and no library's own words for it help.
DISK_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO))
#: All that the system says of a path that a user chose, which is no defect of edgekd.
REFUSALS = DISK_FULL | {
    errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.EBUSY,
    errno.ETXTBSY, errno.ESTALE, errno.EEXIST, errno.ENOTEMPTY, errno.EMFILE, errno.ENFILE, errno.ENODEV,
}  # fmt: skip

#: Bytes that are written to find out whether a disk takes any more.
_PROBED_BYTES = 1 << 20
#: Characters of a name that its temporary file repeats, as a name may have 255 bytes, and of a path that errors show.
_NAME_KEPT, _SHOWN = 50, 1000


class DiskFullError(OSError):
    """A disk takes no more: what the system said of it, whatever a library made of that.

    Attributes:
        wanted_bytes: Size of the file that was to be written; None where it is not known.
    """

    wanted_bytes: int | None = None


@contextmanager
def disk_errors(
    folder: Path, *, alone: bool = False, wanted_bytes: int | None = None, named: Path | None = None
) -> Iterator[None]:
    """Raise a :class:`DiskFullError` for whatever a library raises because ``folder`` takes no more.

    Libraries have words of their own for a full disk, and some name another cause. So the disk itself is asked, before
    what they left half written is removed.

    Args:
        folder: The folder, or the file, that the body writes.
        alone: Whether the body writes nowhere else, so that an error need not name the folder to be about it.
        wanted_bytes: Size of what is written, where it is known.
        named: What the error names instead of ``folder``.
    """
    try:
        yield
    except Exception as error:
        refused = None if isinstance(error, DiskFullError) else _disk_refusal(error, folder, alone)
        if refused is None:
            raise
        culprit = named or (folder if alone else refused.filename or folder)  # a copy's error names its source
        full = DiskFullError(refused.errno, os.strerror(refused.errno or 0), str(culprit))
        full.wanted_bytes = wanted_bytes
        raise full from error


def _disk_refusal(error: BaseException, folder: Path, alone: bool) -> OSError | None:
    """Return what the system said where an error comes of a disk that takes no more; None where it does not."""
    text = str(error)
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in DISK_FULL:
            if link.filename is None and not alone:
                return _probe_disk(folder) or _probe_disk(scratch_root()) or link
            return link if alone or str(link.filename).startswith(str(folder)) else None
        link = link.__cause__ or link.__context__
    for code in DISK_FULL:
        if os.strerror(code) in text and (alone or str(folder) in text):
            return OSError(code, os.strerror(code), str(folder))
    return _probe_disk(folder)


def _probe_disk(path: Path) -> OSError | None:
    """Return what the system says when a little more is written beside the files of a path; None where it takes it."""
    folder = path if path.is_dir() else path.parent
    probe = folder / f".probe-{os.urandom(8).hex()}"
    try:
        if largest := _at_limit(path):
            return OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(largest))
        with probe.open("xb", buffering=0) as stream:
            try:
                left = memoryview(bytes(_PROBED_BYTES))
                while left:
                    left = left[stream.write(left) :]
                os.fsync(stream.fileno())
            finally:
                probe.unlink()
    except OSError as error:
        return OSError(error.errno, error.strerror, str(path)) if error.errno in DISK_FULL else None
    return None


def _at_limit(path: Path) -> Path | None:
    """Return a file, of a path or below it, that is as large as this process may make one (``ulimit -f``), or None."""
    limit = file_size_limit()
    if limit is None:
        return None
    return next((file for file in (path, *path.rglob("*")) if file.is_file() and file.stat().st_size >= limit), None)


def file_size_limit() -> int | None:
    """Return the size in bytes that a file of this process may have; None where there is no limit."""
    if sys.platform == "win32":
        return None
    import resource  # there is none on Windows

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


@contextmanager
def atomic_path(path: Path, wanted_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it, on failure remove it.

    A reader sees the old file or the whole new one, whatever kills the writer.

    Args:
        path: The file.
        wanted_bytes: Its size, where it is known: an error about a full disk names it.

    Raises:
        DiskFullError: The disk takes no more, whatever the library that writes makes of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:_NAME_KEPT]}.{os.urandom(8).hex()}")
    try:
        with disk_errors(temporary, alone=True, wanted_bytes=wanted_bytes, named=path):
            # Not mkstemp: its files stay closed to everyone else, whatever the umask allows.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder(within: Path | None = None, prefix: str = "edgekd-") -> Iterator[Path]:
    """Yield a temporary folder, which is removed in the end: in ``within``, else in ``TMPDIR``.

    Raises:
        DiskFullError: Its disk takes no more.
        ScratchError: There is no folder for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, dir=within or scratch_root()) as folder, disk_errors(Path(folder)):
        yield Path(folder)


def scratch_root() -> Path:
    """Return the folder for temporary files: ``TMPDIR``, else the system's.

    Raises:
        ScratchError: There is none that can be written.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ScratchError(
            "there is no folder for temporary files that can be written: name one with TMPDIR, or make room in /tmp"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8; a lone half of a character is escaped, as JSON has it."""
    content = text.encode("utf-8", "backslashreplace")
    with atomic_path(path, len(content)) as temporary:
        temporary.write_bytes(content)


def file_kind(path: Path) -> str | None:
    """Return what a path is if it is no file, in words: a folder, a named pipe; None for a file, or nothing there."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode))


def require_file(path: Path, error: type[EdgekdError]) -> None:
    """Raise ``error`` where a path is no file: a folder cannot be read as one, and reading a named pipe never ends."""
    try:
        kind = file_kind(path)
    except (OSError, ValueError) as cause:  # a name that is too long, or that holds a NUL
        raise error(f"{str(path)[:_SHOWN]}: cannot be read: {getattr(cause, 'strerror', None) or cause}") from cause
    if kind is not None:
        raise error(f"{path}: is {kind}, not a file")


def make_folder(path: Path, error: type[EdgekdError], option: str) -> None:
    """Make a folder that can be written, or raise ``error``, naming the ``option`` that chooses another."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise error(f"{path}: cannot be made a folder: {cause.strerror}; choose another with {option}") from cause
    if not os.access(path, os.W_OK | os.X_OK):
        raise error(f"{path}: cannot be written; choose another folder with {option}")


def user_cache(error: type[EdgekdError], what: str, option: str = "XDG_CACHE_HOME") -> Path:
    """Return edgekd's folder in the user's cache: ``$XDG_CACHE_HOME/edgekd``, else ``~/.cache/edgekd``.

    Raises ``error`` where there is no home folder, saying ``what`` was to be kept there and which ``option`` chooses a
    folder instead.
    """
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache).absolute() / "edgekd"
    try:
        return Path.home() / ".cache" / "edgekd"
    except RuntimeError:
        raise error(f"there is no home folder to keep {what} in; name a folder with {option}") from None


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks.

    Raises:
        OSError: It cannot be read, or is no file: reading a named pipe would never end.
    """
    if (kind := file_kind(path)) is not None:
        raise OSError(errno.ENXIO, f"it is {kind}, not a file", str(path))
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def data_dir(name: str) -> Path:
    """Return the folder ``targets`` or ``calibration``, in a wheel, an editable install and a bare checkout alike.

    A wheel carries it inside the package; a checkout has it beside the package, where ``importlib.resources`` does not
    find it (setuptools#4943).
    """
    package = Path(__file__).resolve().parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def need(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say which ``pip install`` brings it.

    Raises:
        MissingDependency: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise missing(package, extra) from error


def missing(package: str, extra: str) -> MissingDependency:
    """Return the error that says which ``pip install`` brings a package."""
    return MissingDependency(
        f"this needs the package '{package}', which is not installed: pip install \"edgekd[{extra}]\""
    )


#: Logging is silenced for the whole process, so one thread at a time does it.
_QUIET = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence libraries that log hints, warnings and what they raise as well."""
    with _QUIET, warnings.catch_warnings():
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


#: The most bytes of a text that a user writes by hand, such as a recipe.
_TEXT_BYTES = 1_000_000


def read_text(path: Path, error: type[EdgekdError]) -> str:
    """Return a file of UTF-8 that a user writes; a byte order mark and the line ends of Windows are left out.

    Raises ``error``, naming the file, where it is absent, is no file (a pipe would never end), is larger than any that
    a hand writes, or holds another encoding.
    """
    require_file(path, error)
    try:
        with path.open("rb") as stream:
            content = stream.read(_TEXT_BYTES + 1)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror or cause}") from cause
    if len(content) > _TEXT_BYTES:
        raise error(f"{path}: is larger than {_TEXT_BYTES // 1_000_000} MB, which no file that is written by hand is")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as cause:
        line = content[: cause.start].count(b"\n") + 1
        raise error(f"{path}: line {line} is not UTF-8; save the file in that encoding") from cause
