"""Files: atomic writes, digests, the data folders that ship with edgekd, lazy imports of optional packages."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgekd.errors import EdgekdError, MissingDependency

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

#: A JSON object as it is read or written: its values are checked where they are used.
JsonObject: TypeAlias = dict[str, Any]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it, on failure remove it.

    A reader sees the old file or the whole new one, whatever kills the writer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    # Not mkstemp: its files stay closed to everyone else, whatever the umask allows.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
    """Return the hex SHA-256 of a file, read in blocks."""
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
    """Silence libraries that log hints and warnings at every call; they raise what matters."""
    with _QUIET, warnings.catch_warnings():
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
