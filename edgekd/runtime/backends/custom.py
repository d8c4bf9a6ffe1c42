"""A user's own engine library, named as ``path/to/file.py:name`` or ``package.module:name``.

The name is a function that opens engines, or a :class:`~edgekd.runtime.backends.backend.Backend` as edgekd's own are.
Its code may do anything: what it raises, and what it returns wrongly, becomes one error that names it.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import plugins
from edgekd.errors import ModelError, TargetError
from edgekd.runtime.backends.backend import Backend
from edgekd.runtime.feeds import check_mapping

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from types import ModuleType, TracebackType

    from edgekd.runtime.session import Array, Feeds, Session, TensorSpec

_MEMBERS = ("inputs", "outputs", "facts", "run", "close")


def guarded(runtime: str) -> AbstractContextManager[None]:
    """Turn any error of a user's code into a ModelError that names the runtime, and undo what it changes."""
    return plugins.guarded(f"runtime {runtime}", ModelError)


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
        with plugins.converted(f"runtime {self._runtime}", ModelError):  # this is timed, so no more is looked at
            results = self._session.run(feeds)
        if not isinstance(results, dict) or {spec.name for spec in self.outputs} - results.keys():
            returned = sorted(results) if isinstance(results, dict) else type(results).__name__
            names = [spec.name for spec in self.outputs]
            raise ModelError(f"runtime {self._runtime}: run() must return a dict of {names}, but returned {returned}")
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
    plugin = plugins.import_plugin(reference, "runtime", TargetError)
    if isinstance(plugin, Backend):
        return plugin, _module_of(plugin, reference)
    if not callable(plugin):
        kind = type(plugin).__name__
        raise TargetError(f"runtime {reference}: must be a function that opens engines, or a Backend, not a {kind}")
    return Backend(reference, module=""), SimpleNamespace(open_engine=plugin)


def _module_of(backend: Backend, reference: str) -> ModuleType:
    """Import the module of a user's backend, which must be able to open engines."""
    try:
        module = importlib.import_module(backend.module)
    except ImportError as error:
        raise TargetError(f"runtime {reference}: its module {backend.module} cannot be imported: {error}") from error
    if not callable(getattr(module, "open_engine", None)):
        raise TargetError(f"runtime {reference}: its module {backend.module} has no function 'open_engine'")
    return module
