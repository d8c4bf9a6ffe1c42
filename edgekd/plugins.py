"""A user's own code, named as ``path/to/file.py:name`` or ``package.module:name``: a loss, a quantizer, a backend.

Such code may do anything. Whatever it raises becomes one error that names it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekd.errors import EdgekdError, is_own, nearest, reason_of
from edgekd.files import sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

#: What passes through where a user's code runs: edgekd's own errors, the user's Ctrl-C, the end of a generator.
PASSING = (EdgekdError, KeyboardInterrupt, GeneratorExit)

#: How long a thread that a user's code has started may take to end.
_GRACE_S = 1.0


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
        with undisturbed(f"{kind} {name}", error):
            module = _load_file(Path(where)) if is_file else importlib.import_module(where)
    except PASSING:
        raise
    except BaseException as problem:  # a user's code may raise anything
        known = isinstance(problem, ImportError | OSError | SyntaxError)
        reason = str(problem) if known else reason_of(problem)
        raise error(f"{kind} {name}: {where} cannot be imported: {reason}") from problem
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise error(f"{kind} {name}: {where} has no '{attribute}'{nearest(attribute, public)}")
    value: object = getattr(module, attribute)
    return value


@contextmanager
def converted(what: str, error: type[EdgekdError], folder: Path | None = None) -> Iterator[None]:
    """Raise whatever a user's code raises, ``SystemExit`` too, as one line that says what it was, and where.

    Args:
        what: What the code is called for, at the beginning of the line.
        error: The error to raise; edgekd's own errors and the user's Ctrl-C pass through.
        folder: Folder of the user's code; by default all files that are neither edgekd's nor installed.
    """
    try:
        yield
    except PASSING:
        raise
    except BaseException as problem:  # a user's code may raise anything
        raise error(f"{what}: {reason_of(problem, folder)}") from problem


@contextmanager
def guarded(what: str, error: type[EdgekdError], folder: Path | None = None) -> Iterator[None]:
    """Do both: :func:`converted` and :func:`undisturbed`."""
    with converted(what, error, folder), undisturbed(what, error):
        yield


@contextmanager
def undisturbed(what: str, error: type[EdgekdError]) -> Iterator[None]:
    """Undo what a user's code changes in the process: numpy's error state, torch's defaults, folder, streams, signals.

    Environment variables stay as the code leaves them: libraries of the user's read them later.

    Args:
        what: What the code is called for, at the beginning of the line.
        error: The error to raise where something cannot be undone: a closed stream, a thread that stays.
    """
    before = [kept.read() for kept in _KEPT]
    threads = set(threading.enumerate())
    try:
        yield
    finally:
        for kept, value in zip(_KEPT, before, strict=True):
            if kept.read() != value:
                kept.restore(value)
    closed = [name for name in ("stdout", "stderr") if _closed(getattr(sys, name))]
    for name in closed:
        setattr(sys, name, open(2 if name == "stderr" else 1, "w", closefd=False))  # noqa: SIM115
    if closed:
        raise error(f"{what}: closes sys.{closed[0]}")
    staying = [thread for thread in set(threading.enumerate()) - threads if _stays(thread)]
    if staying:
        raise error(
            f"{what}: starts the thread '{staying[0].name}', which is still running and would not let the command end: "
            "start it with daemon=True, or end it"
        )


class _Kept(NamedTuple):
    """Something of the process that is put back after a user's code has run."""

    read: Callable[[], Any]
    restore: Callable[[Any], object]


def _of(module: str, read: Callable[[Any], Any], restore: Callable[[Any, Any], object]) -> _Kept:
    """Return something that a module keeps, which is not looked for before that is imported."""
    loaded = sys.modules.get
    return _Kept(
        lambda: read(loaded(module)) if loaded(module) else None,
        lambda value: None if value is None else restore(loaded(module), value),
    )


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - as text, which is quick to compare
    except FileNotFoundError:  # it was removed
        return None


def _restore_signal(number: int, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(number, handler)


def _restore_device(torch: Any, device: Any) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # 'cpu' by name would slow down every call


_KEPT = (
    _Kept(_folder, lambda folder: None if folder is None else os.chdir(folder)),
    *(
        _Kept(partial(getattr, sys, name), partial(setattr, sys, name))
        for name in ("stdin", "stdout", "stderr", "excepthook")
    ),
    *(
        _Kept(partial(signal.getsignal, number), partial(_restore_signal, number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ),
    _of("numpy", lambda numpy: numpy.geterr(), lambda numpy, state: numpy.seterr(**state)),
    _of("torch", lambda torch: torch.get_default_dtype(), lambda torch, dtype: torch.set_default_dtype(dtype)),
    _of("torch", lambda torch: torch.get_default_device(), _restore_device),
    _of("torch", lambda torch: torch.is_grad_enabled(), lambda torch, enabled: torch.set_grad_enabled(enabled)),
    _of("torch", lambda torch: torch.get_num_threads(), lambda torch, count: torch.set_num_threads(count)),
)


def _closed(stream: Any) -> bool:
    return bool(getattr(stream, "closed", False))


def _stays(thread: threading.Thread) -> bool:
    """Whether a thread of the user's own code runs on, and would be waited for when the process ends."""
    code = getattr(getattr(thread, "_target", None) or type(thread).run, "__code__", None)
    if thread.daemon or code is None or not is_own(code.co_filename):
        return False
    thread.join(_GRACE_S)
    return thread.is_alive()


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
