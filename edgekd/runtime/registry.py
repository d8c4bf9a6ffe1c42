"""Engine libraries by name, each behind the same :class:`~edgekd.runtime.session.Session`; a user's own too."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import DeviceError, EdgekdError, TargetError, nearest
from edgekd.files import make_folder, sha256_file, user_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgekd.runtime.session import Session

#: For each runtime its module below :mod:`edgekd.runtime`, and what its ``open_engine`` is always told. A browser's
#: engines are those of ONNX Runtime, which Python opens without a browser.
_MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "onnxruntime": ("ort", {}),
    "onnxruntime-web": ("ort", {}),
    "openvino": ("openvino", {}),
    "tensorrt": ("tensorrt", {"flavor": "tensorrt"}),
    "tensorrt-rtx": ("tensorrt", {"flavor": "tensorrt-rtx"}),
}

RUNTIMES = tuple(_MODULES)

#: The packages whose versions decide what a runtime computes on this machine.
PACKAGES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-web": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx-cu12-bindings",),
}


#: Those that compile engines for the machine at hand, and take a folder to keep them in.
_COMPILING = ("openvino", "tensorrt", "tensorrt-rtx")

#: What an ``open_engine`` of edgekd's is told by the registry alone.
_RESERVED = {"flavor", "cache"}

#: What a session has; a user's own may lack it.
_SESSION = ("inputs", "outputs", "facts", "run", "close")


def _engine_cache() -> Path | None:
    """Return the folder of compiled engines in the user's cache; None where there can be none: it only saves time."""
    try:
        folder = user_cache(DeviceError, "compiled engines") / "engines"
        make_folder(folder, DeviceError, "XDG_CACHE_HOME")
    except DeviceError:
        return None
    return folder


@dataclass(frozen=True)
class Runtime:
    """An engine library, and how it is told to run engines.

    Attributes:
        name: one of :data:`RUNTIMES`, or a user's own: ``path/to/file.py:function`` or ``package.module:function``.
            Such a function takes ``(engine: Path | bytes, threads: int, name: str | None, **options)`` and returns a
            :class:`~edgekd.runtime.session.Session`.
        options: keyword arguments of its ``open_engine``; JSON values.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def custom(self) -> bool:
        """Whether it is a user's own, whose code is imported by its name."""
        return ":" in self.name

    @property
    def source(self) -> Path | None:
        """The file of a user's own runtime; None for edgekd's, and for a module that lies in no file."""
        if not self.custom:
            return None
        where = self.name.rpartition(":")[0]
        if where.endswith(".py"):
            return Path(where)
        spec = importlib.util.find_spec(where)
        return Path(spec.origin) if spec and spec.has_location and spec.origin else None

    def digest(self) -> str | None:
        """Return the SHA-256 of the file of a user's own runtime, where there is one."""
        source = self.source
        return sha256_file(source) if source else None

    def absent(self) -> str | None:
        """Say why nothing of this runtime can run on this machine; None where it can.

        Raises:
            MissingDependency: its library is not installed.
        """
        if self.custom or self.name not in _MODULES:
            return None
        name, fixed = _MODULES[self.name]
        module = importlib.import_module(f"edgekd.runtime.{name}")
        reason: str | None = module.absent(**fixed, **self.options)
        return reason

    def hardware(self) -> dict[str, str]:
        """Return what besides the processor decides what an engine does on this machine, e.g. its GPU.

        Raises:
            MissingDependency: the library is not installed.
            DeviceError: the machine lacks the device that the options ask for.
        """
        if self.custom or self.name not in _MODULES:
            return {}
        name, fixed = _MODULES[self.name]
        facts: dict[str, str] = importlib.import_module(f"edgekd.runtime.{name}").hardware(**fixed, **self.options)
        return facts

    def load(self) -> Callable[..., Session]:
        """Import the engine library and return its ``open_engine``.

        Raises:
            MissingDependency: the library is not installed.
            TargetError: there is no such runtime.
        """
        if self.custom:
            return _import(self.name)
        if self.name not in _MODULES:
            raise TargetError(f"there is no runtime '{self.name}'{nearest(self.name, _MODULES)}")
        name, fixed = _MODULES[self.name]
        module = importlib.import_module(f"edgekd.runtime.{name}")
        module.library(**fixed)
        return partial(module.open_engine, **fixed)

    def open(self, engine: Path | bytes, threads: int = 1, name: str | None = None, *, keep: bool = False) -> Session:
        """Open an engine.

        Args:
            engine: the file, or its content.
            threads: threads of one inference.
            name: what errors call it; by default the file's path.
            keep: let a library that compiles engines for the machine keep them in the user's cache for the next time.
                TensorRT, which may take minutes, does so in any case.

        Raises:
            MissingDependency: the library is not installed.
            TargetError: there is no such runtime, or it does not know one of the options.
            ModelError: the engine cannot be opened.
            DeviceError: the runtime lacks the device that the options ask for.
        """
        open_engine, options = self.load(), dict(self.options)
        reserved = sorted(options.keys() & _RESERVED) if not self.custom else []
        if reserved:
            raise TargetError(f"the runtime '{self.name}' is not given '{reserved[0]}' as an option")
        try:
            inspect.signature(open_engine).bind(engine, threads, name, **options)
        except TypeError as error:
            raise TargetError(f"the runtime '{self.name}' cannot be given these options: {error}") from error
        if self.name in _COMPILING:
            options["cache"] = _engine_cache() if keep or self.name != "openvino" else None
        session = open_engine(engine, threads, name, **options)
        lacking = [member for member in _SESSION if not hasattr(session, member)]
        if lacking:
            raise TargetError(f"runtime {self.name}: returned a {type(session).__name__} without '{lacking[0]}'")
        return session


ORT = Runtime("onnxruntime")


def _import(reference: str) -> Callable[..., Session]:
    where, _, function = reference.rpartition(":")
    is_file = where.endswith(".py")
    if not function or not where or (where.startswith(".") and not is_file):
        raise TargetError(f"runtime {reference}: write it as path/to/file.py:function or package.module:function")
    try:
        module = _load_file(Path(where)) if is_file else importlib.import_module(where)
    except EdgekdError:
        raise
    except Exception as error:  # a user's code may raise anything
        known = isinstance(error, ImportError | OSError | SyntaxError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        raise TargetError(f"runtime {reference}: {where} cannot be imported: {reason}") from error
    found = getattr(module, function, None)
    if not callable(found):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise TargetError(f"runtime {reference}: {where} has no function '{function}'{nearest(function, names)}")
    opener: Callable[..., Session] = found
    return opener


def _load_file(path: Path) -> Any:
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
