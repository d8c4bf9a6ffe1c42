"""Import a user's own Python files, each with its neighbours, and modules by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import TaskError, installed, nearest
from edgekd.stages.user_code import user_code

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


@dataclass
class _UserFolders:
    """What importing users' files has changed in this process, whose import path and modules are one for all.

    Attributes:
        folders: Folders of the files imported so far.
        others: Names of the modules that were there before the first of them.
    """

    folders: set[Path] = field(default_factory=set)
    others: frozenset[str] = field(default_factory=lambda: frozenset(sys.modules))


@cache
def _user_folders() -> _UserFolders:
    return _UserFolders()


def import_module(name: str, what: str) -> ModuleType:
    """Import a module by its name.

    Args:
        name: The module's full name.
        what: What it is to be, for messages, such as "task module".

    Raises:
        TaskError: It is not installed, or its code fails.
    """
    try:
        with user_code(f"{what} '{name}'"):
            return importlib.import_module(name)
    except TaskError as error:
        absent = getattr(error.__cause__, "name", None)
        if not isinstance(error.__cause__, ModuleNotFoundError) or not absent or not name.startswith(absent):
            raise
        raise TaskError(f"{what} '{name}' is not installed or not on the Python path") from error


def import_task_file(path: Path) -> ModuleType:
    """Import a task's file, with its folder importable, so that it may import its neighbours.

    Those of earlier tasks are forgotten: this one's may have the same names.

    Raises:
        TaskError: There is no such file, or its code fails.
    """
    if not path.is_file():
        raise TaskError(f"{path}: no such task file")
    path = path.resolve()
    _forget_neighbours()
    user = _user_folders()
    # Folders of earlier tasks are taken off the path, so that a later import of a neighbour does not find theirs.
    sys.path[:] = [entry for entry in sys.path if Path(entry) not in user.folders]
    # By its path, so that a file called random.py does not become everyone's module 'random'.
    return _execute(path, str(path), f"task file {path.name}")


def import_loss_file(path: Path) -> ModuleType:
    """Import a file with losses, with its folder importable, beside the task that is loaded.

    Raises:
        TaskError: There is no such file, or its code fails.
    """
    if not path.is_file():
        raise TaskError(f"{path}: no such file with losses")
    path = path.resolve()
    return _execute(path, f"{path}:losses", f"file of losses {path.name}")


def import_own(name: str, what: str) -> object:
    """Import an object of the user's own beside the task that is loaded, with its file's folder importable.

    Args:
        name: ``path/to/file.py:name`` or ``package.module:name``.
        what: What it is to be, for messages, such as "optimizer".

    Raises:
        TaskError: The name leads nowhere, or the code of its file fails.
    """
    home, _, attribute = name.rpartition(":")
    if home.endswith(".py"):
        path = Path(home)
        if not path.is_file():
            raise TaskError(f"{what} {name}: no such file")
        path = path.resolve()
        module = _execute(path, f"{path}:{what}", f"{what} {name}")
    else:
        module = import_module(home, what)
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise TaskError(f"{what} {name}: {home} has no '{attribute}'{nearest(attribute, public)}")
    value: object = getattr(module, attribute)
    return value


def _execute(path: Path, name: str, what: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _importable(path.parent), user_code(what, path.parent):
        spec.loader.exec_module(module)
    return module


def _forget_neighbours() -> None:
    """Drop what earlier files imported from their folders."""
    others = _user_folders().others
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if origin and name not in others and name.partition(".")[0] != "edgekd" and _is_neighbour(Path(origin)):
            del sys.modules[name]
    importlib.invalidate_caches()


def _is_neighbour(file: Path) -> bool:
    folders = _user_folders().folders
    return any(file.is_relative_to(folder) and not installed(file.relative_to(folder)) for folder in folders)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path, as for a script, and leave it last: later imports are the others'."""
    _user_folders().folders.add(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
