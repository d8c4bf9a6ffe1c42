"""A user's own engine library, named as ``path/to/file.py:name`` or ``package.module:name``.

The name is a function that opens engines, or a :class:`~edgekd.runtime.backends.backend.Backend` as edgekd's own are.
Its code may do anything: what it raises, and what it returns wrongly, becomes one error that names it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import EdgekdError, ModelError, TargetError, nearest
from edgekd.runtime.backends.backend import Backend
from edgekd.runtime.session import check_mapping

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType, TracebackType

    from edgekd.runtime.session import Array, Feeds, Session, TensorSpec

_MEMBERS = ("inputs", "outputs", "facts", "run", "close")


@contextmanager
def guarded(runtime: str) -> Iterator[None]:
    """Turn any error of a user's code into a ModelError that names the runtime."""
    try:
        yield
    except EdgekdError:
        raise
    except Exception as error:  # a user's code may raise anything
        raise ModelError(f"runtime {runtime}: {type(error).__name__}: {error}") from error


class CheckedSession:
    """A user's session, whose results are checked.

    Args:
        session: What the user's code returned.
        runtime: The runtime's name, for errors.

    Raises:
        TargetError: it is no :class:`~edgekd.runtime.session.Session`.
    """

    def __init__(self, session: Session, runtime: str) -> None:
        lacking = [member for member in _MEMBERS if not hasattr(session, member)]
        if lacking:
            raise TargetError(f"runtime {runtime}: returned a {type(session).__name__} without '{lacking[0]}'")
        self._session = session
        self._runtime = runtime
        self.inputs: tuple[TensorSpec, ...] = tuple(session.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(session.outputs)
        self.facts: Mapping[str, str] = session.facts

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return every output by its name.

        Raises:
            ModelError: the feeds are no arrays by name, or the user's code raised, or did not return arrays by the
                names of its outputs.
        """
        check_mapping(feeds, self.inputs)
        with guarded(self._runtime):
            results = self._session.run(feeds)
        if not isinstance(results, dict) or {spec.name for spec in self.outputs} - results.keys():
            found = sorted(results) if isinstance(results, dict) else type(results).__name__
            names = [spec.name for spec in self.outputs]
            raise ModelError(f"runtime {self._runtime}: run() must return a dict of {names}, but returned {found}")
        for name, array in results.items():
            if not isinstance(array, np.ndarray) or array.ndim == 0:
                kind = type(array).__name__
                raise ModelError(
                    f"runtime {self._runtime}: run() returned '{name}' as a {kind}, not as rows of an array"
                )
        return results

    def close(self) -> None:
        """Free the engine.

        Raises:
            ModelError: the user's code raised.
        """
        with guarded(self._runtime):
            self._session.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def source_file(reference: str) -> Path | None:
    """Return the file of a runtime's code; None for a module that lies in no file."""
    where = reference.rpartition(":")[0]
    if where.endswith(".py"):
        return Path(where)
    spec = importlib.util.find_spec(where)
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def import_backend(reference: str) -> tuple[Backend, Any]:
    """Import the backend or the function that a runtime's name leads to.

    Args:
        reference: ``path/to/file.py:name`` or ``package.module:name``.

    Returns:
        The backend, and an object with its functions: its module, or for a mere function an object with that alone, as
        ``open_engine``.

    Raises:
        TargetError: there is none, or the import of its code failed.
    """
    where, _, name = reference.rpartition(":")
    is_file = where.endswith(".py")
    if not name or not where or (where.startswith(".") and not is_file):
        raise TargetError(f"runtime {reference}: write it as path/to/file.py:function or package.module:function")
    try:
        module = _load_file(Path(where)) if is_file else importlib.import_module(where)
    except EdgekdError:
        raise
    except Exception as error:  # a user's code may raise anything
        known = isinstance(error, ImportError | OSError | SyntaxError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        raise TargetError(f"runtime {reference}: {where} cannot be imported: {reason}") from error
    found = getattr(module, name, None)
    if isinstance(found, Backend):
        return found, _module_of(found, reference)
    if not callable(found):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise TargetError(f"runtime {reference}: {where} has no function '{name}'{nearest(name, names)}")
    return Backend(reference, where), SimpleNamespace(open_engine=found)


def _module_of(backend: Backend, reference: str) -> ModuleType:
    """Import the module of a user's backend, which must be able to open engines."""
    try:
        module = importlib.import_module(backend.module)
    except ImportError as error:
        raise TargetError(f"runtime {reference}: its module {backend.module} cannot be imported: {error}") from error
    if not callable(getattr(module, "open_engine", None)):
        raise TargetError(f"runtime {reference}: its module {backend.module} has no function 'open_engine'")
    return module


def _load_file(path: Path) -> ModuleType:
    """Import a file by its path, once."""
    name = f"edgekd_runtime_{path.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ModuleNotFoundError(f"{path}: no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
