"""Sessions of libraries that let only one thread in: those of all others wait."""

from __future__ import annotations

import ctypes
import os
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakSet

from edgekd.errors import ModelError
from edgekd.runtime.session import ComputeTimer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from edgekd.runtime.session import Array, Feeds, Session, TensorSpec

_OPEN: WeakSet[ExclusiveSession] = WeakSet()


class ExclusiveSession:
    """A session that any number of threads may use, one after the other.

    A process that was forked from the one that opened it cannot use it; there it raises at once, where the engine
    library would wait for ever.

    Args:
        session: The session, which nothing else uses from here on.
        name: The engine's name in errors.
    """

    def __init__(self, session: Session, name: str) -> None:
        self._session: Session | None = session
        self._name = name
        self._lock = Lock()
        self.inputs: tuple[TensorSpec, ...] = session.inputs
        self.outputs: tuple[TensorSpec, ...] = session.outputs
        self.facts: Mapping[str, str] = session.facts
        _OPEN.add(self)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run the engine, after the threads that came before; see :meth:`~edgekd.runtime.session.Session.run`."""
        with self._lock:
            if self._session is None:
                raise self._forked()
            return self._session.run(feeds)

    def bind_inputs(self, feeds: Feeds) -> Callable[[], int] | None:
        """Time computing alone; see :class:`~edgekd.runtime.session.ComputeTimer`. None where the session cannot.

        The time is the library's own, so that it does not contain the waiting for other threads.
        """
        with self._lock:
            if self._session is None:
                raise self._forked()
            compute = self._session.bind_inputs(feeds) if isinstance(self._session, ComputeTimer) else None
        if compute is None:
            return None

        def locked() -> int:
            with self._lock:
                return compute()

        return locked

    def close(self) -> None:
        """Free the engine, after the inference that is running."""
        with self._lock:
            if self._session is not None:
                self._session.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forked(self) -> ModelError:
        return ModelError(f"{self._name}: was opened before this process was forked; open it in this process")

    def _leave_behind(self) -> None:
        """Make a forked process neither use nor ever free the engine, whose threads only its parent has."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
        self._session = None
        self._lock = Lock()  # another thread of the parent may have held it


def _after_fork() -> None:
    for session in tuple(_OPEN):
        session._leave_behind()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_after_fork)
