"""Files: atomic writes, digests, the data folders that ship with edgekd, lazy imports of optional packages."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
import sys
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgekd.errors import EdgekdError, MissingDependency

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

#: A JSON object as it is read or written: its values are checked where they are used.
JsonObject: TypeAlias = dict[str, Any]


def _tomllib() -> ModuleType:
    """Import a TOML parser only where TOML is read: a board reads none, and its Python 3.10 brings no parser."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


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
    """Write ``text`` to ``path`` atomically, as UTF-8; a lone half of a character is escaped, as JSON has it."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


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


#: How deep tables and lists may be nested in TOML.
MOST_NESTED = 64

#: A dotted key of so many parts that Python's parser, which keeps all of its beginnings, would fill the memory.
_LONG_KEY = re.compile(r"""(?<![\w.-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){1000}""")

#: The most bytes of a text that a user writes by hand, such as a recipe.
_TEXT_BYTES = 1_000_000


def read_text(path: Path, error: type[EdgekdError]) -> str:
    """Return a file of UTF-8 that a user writes; a byte order mark and the line ends of Windows are left out.

    Raises ``error``, naming the file, where it is absent, is no file (a pipe would never end), is larger than any that
    a hand writes, or holds another encoding.
    """
    try:
        if not path.is_file():
            raise error(f"{path}: is no file" if path.exists() else f"{path}: no such file")
        with path.open("rb") as stream:
            content = stream.read(_TEXT_BYTES + 1)
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror or cause}") from cause
    if len(content) > _TEXT_BYTES:
        raise error(f"{path}: is larger than {_TEXT_BYTES // 1_000_000} MB, which no file that is written by hand is")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as cause:
        line = content[: cause.start].count(b"\n") + 1
        raise error(f"{path}: line {line} is not UTF-8; save the file in that encoding") from cause


def read_toml(path: Path, error: type[EdgekdError]) -> dict[str, Any]:
    """Read a TOML file; raise ``error``, naming the file and line, when it is absent or malformed."""
    try:
        return parse_toml(read_text(path, error))
    except ValueError as cause:
        raise error(f"{path}: not valid TOML: {cause}") from cause


def parse_toml(text: str) -> dict[str, Any]:
    """Return the content of a TOML document.

    Raises:
        ValueError: It is not valid, nests deeper than a parser can follow, or has a number of thousands of digits.
    """
    toml = _tomllib()
    if _LONG_KEY.search(text):
        raise ValueError(f"its tables and lists are nested more than {MOST_NESTED} deep")
    try:
        content: dict[str, Any] = toml.loads(text)
    except RecursionError:
        raise ValueError(f"its tables and lists are nested more than {MOST_NESTED} deep") from None
    except toml.TOMLDecodeError:
        raise
    except ValueError:  # Python's limit on the length of a number
        raise ValueError("it has a whole number of thousands of digits") from None
    _check_content(content)
    return content


def _check_content(content: object) -> None:
    """Raise ValueError for numbers that are not TOML's, and tables that are deeper than what reads them can follow."""
    level = [content]
    for _ in range(MOST_NESTED + 1):
        if any(isinstance(value, int) and value.bit_length() > 63 for value in level):
            raise ValueError("it has a whole number of more than 64 bits")
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
        if not level:
            return
    raise ValueError(f"its tables and lists are nested more than {MOST_NESTED} deep")


def parse_toml_value(text: str) -> Any:
    """Return ``text`` as a TOML value; a text that is no TOML value is returned as a string.

    Raises:
        ValueError: It nests deeper than a parser can follow, or is a number of thousands of digits.
    """
    try:
        content = parse_toml(f"value = {text}")
    except _tomllib().TOMLDecodeError:
        return text
    return content["value"] if len(content) == 1 else text


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_value(value: Any) -> str:
    """Write a value as inline TOML, which :func:`parse_toml_value` reads back. Plain text is written without quotes."""
    return value if isinstance(value, str) and parse_toml_value(value) == value else _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items())
        return f"{{ {', '.join(pairs)} }}" if value else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # Text, numbers and booleans are the same in both, but TOML wants more characters escaped.
    return _NOT_ASCII.sub(_toml_character, json.dumps(value, ensure_ascii=False))


_NOT_ASCII = re.compile(r"[^ -~]")


def _toml_character(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return character if character.isprintable() else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def toml_document(content: Mapping[str, object], table: str = "") -> str:
    """Write tables as a TOML document: the values of each table before its own tables; what is None is left out.

    Args:
        content: The values, and tables of them.
        table: The dotted name of the table that ``content`` is; empty for the document itself.
    """
    values = {key: value for key, value in content.items() if value is not None}
    lines = [f"{_toml_key(key)} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    head = [f"[{table}]"] if table and (lines or not tables) else []
    parts = ["\n".join([*head, *lines]) + "\n"] if head or lines else []
    parts += [toml_document(value, f"{table}.{_toml_key(key)}".lstrip(".")) for key, value in tables.items()]
    return "\n".join(parts)


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml(key)
