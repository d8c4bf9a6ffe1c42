"""A user's own code, named as ``path/to/file.py:name`` or ``package.module:name``: a loss, a quantizer, a backend.

Such code may do anything. Whatever it raises becomes one error that names it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import EdgekdError, nearest
from edgekd.files import sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


def is_plugin(name: str) -> bool:
    """Whether a name leads to a user's own code, rather than to something that comes with edgekd."""
    return ":" in name


def anchor(name: str, folder: Path) -> str:
    """Return a plug-in's name with its file's path from ``folder`` made absolute; any other name as it is."""
    file, _, attribute = name.rpartition(":")
    return f"{folder.resolve() / file}:{attribute}" if file.endswith(".py") else name


def source_file(name: str) -> Path | None:
    """Return the file of a plug-in's code; None for a module that lies in no file."""
    where = name.rpartition(":")[0]
    if where.endswith(".py"):
        return Path(where)
    spec = importlib.util.find_spec(where)
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def import_plugin(name: str, kind: str, error: type[EdgekdError]) -> object:
    """Import the object that a plug-in's name leads to.

    Args:
        name: ``path/to/file.py:name`` or ``package.module:name``.
        kind: What it is, as errors call it, e.g. "quantizer".
        error: The error to raise.

    Raises:
        EdgekdError: The name leads nowhere, or the import of its code failed; of the type ``error``.
    """
    where, _, attribute = name.rpartition(":")
    is_file = where.endswith(".py")
    if not attribute or not where or (where.startswith(".") and not is_file):
        raise error(f"{kind} {name}: write it as path/to/file.py:name or package.module:name")
    try:
        module = _load_file(Path(where)) if is_file else importlib.import_module(where)
    except EdgekdError:
        raise
    except Exception as problem:  # a user's code may raise anything
        known = isinstance(problem, ImportError | OSError | SyntaxError)
        reason = str(problem) if known else f"{type(problem).__name__}: {problem}{_line(problem, where)}"
        raise error(f"{kind} {name}: {where} cannot be imported: {reason}") from problem
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise error(f"{kind} {name}: {where} has no '{attribute}'{nearest(attribute, public)}")
    value: object = getattr(module, attribute)
    return value


@contextmanager
def guarded(name: str, kind: str, error: type[EdgekdError]) -> Iterator[None]:
    """Raise whatever a plug-in's code raises as one error that names the plug-in.

    Args:
        name: The plug-in's name.
        kind: What it is, as errors call it, e.g. "quantizer".
        error: The error to raise.
    """
    try:
        yield
    except EdgekdError:
        raise
    except Exception as problem:  # a user's code may raise anything
        reason = f"{type(problem).__name__}: {problem}{_line(problem, name.rpartition(':')[0])}"
        raise error(f"{kind} {name}: {reason}") from problem


def _line(problem: Exception, where: str) -> str:
    """Return the innermost line of a plug-in's file that an exception passed, as " (mine.py:3)"; "" where none did."""
    file, line, trace = str(Path(where).absolute()), 0, problem.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" ({where}:{line})" if line else ""


def _load_file(path: Path) -> ModuleType:
    """Import a file by its path, once for each content that it has: stages are kept by the digest of the file."""
    if not path.is_file():
        raise ModuleNotFoundError(f"{path}: no such file")
    name, digest = f"edgekd_plugin_{path.stem}", sha256_file(path)
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    assert spec is not None
    assert spec.loader is not None
    spec.loader_state = digest
    known = sys.modules.get(name)
    before = known.__spec__ if known else None
    if known and before and before.origin == spec.origin and before.loader_state == digest:
        return known
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
