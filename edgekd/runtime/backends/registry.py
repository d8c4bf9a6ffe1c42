"""Engine libraries by name, each behind the same :class:`~edgekd.runtime.session.Session`; a user's own too."""

from __future__ import annotations

import importlib
import inspect
import os
import platform
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from edgekd.errors import DeviceError, TargetError, nearest
from edgekd.files import make_folder, sha256_file, user_cache
from edgekd.runtime.backends.custom import CheckedSession, guarded, import_function, source_file
from edgekd.runtime.measure.machine import cpu_model, package_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from edgekd.runtime.measure.results import LayerTime
    from edgekd.runtime.session import BuiltEngine, Feeds, Session

#: For each runtime its module below :mod:`edgekd.runtime.backends`, and what its ``open_engine`` is always told. A
#: browser's engines are those of ONNX Runtime, which Python opens without a browser.
_MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "onnxruntime": ("onnxruntime", {}),
    "onnxruntime-web": ("onnxruntime", {}),
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
    def compiles(self) -> bool:
        """Whether it compiles engines for the machine at hand when it opens them."""
        return self.name in _COMPILING

    @property
    def source(self) -> Path | None:
        """The file of a user's own runtime; None for edgekd's, and for a module that lies in no file."""
        return source_file(self.name) if self.custom else None

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
        module = importlib.import_module(f"edgekd.runtime.backends.{name}")
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
        facts: dict[str, str] = importlib.import_module(f"edgekd.runtime.backends.{name}").hardware(
            **fixed, **self.options
        )
        return facts

    def describe(self) -> dict[str, str]:
        """Return what tells the results of this machine from those of another kind; it costs no engine.

        Raises:
            MissingDependency: the library is not installed.
            DeviceError: the machine lacks the device that the options ask for.
        """
        host = {"cpu": cpu_model(), "arch": platform.machine(), "logical_cores": str(os.cpu_count())}
        return {**host, **self.hardware(), **package_versions(PACKAGES.get(self.name, ()))}

    def build(self, engine: Path, folder: Path, threads: int = 1) -> BuiltEngine | None:
        """Write what the library makes of an engine for this very machine into a folder.

        Args:
            engine: ONNX, or an engine that was built ahead of time, of which nothing is made any more.
            folder: an empty one.
            threads: as for :meth:`open`.

        Returns:
            None where the library makes nothing that can be kept.

        Raises:
            MissingDependency: the library is not installed.
            ModelError: the engine cannot be built.
            DeviceError: the machine lacks the device that the options ask for.
        """
        if not self.compiles:
            return None
        name, fixed = _MODULES[self.name]
        module = importlib.import_module(f"edgekd.runtime.backends.{name}")
        kept: BuiltEngine | None = module.keep_engine(
            engine, folder, threads, cache=_engine_cache(), **fixed, **self.options
        )
        return kept

    def load(self) -> Callable[..., Session]:
        """Import the engine library and return its ``open_engine``.

        Raises:
            MissingDependency: the library is not installed.
            TargetError: there is no such runtime, or it does not know one of the options.
        """
        open_engine = import_function(self.name) if self.custom else self._load_own()
        try:
            inspect.signature(open_engine).bind(None, 1, None, **self.options)
        except TypeError as error:
            raise TargetError(f"the runtime '{self.name}' cannot be given these options: {error}") from error
        return open_engine

    def _load_own(self) -> Callable[..., Session]:
        if self.name not in _MODULES:
            raise TargetError(f"there is no runtime '{self.name}'{nearest(self.name, _MODULES)}")
        name, fixed = _MODULES[self.name]
        module = importlib.import_module(f"edgekd.runtime.backends.{name}")
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
        if self.compiles:
            options["cache"] = _engine_cache() if keep or self.name != "openvino" else None
        if self.custom:
            with guarded(self.name):
                session = open_engine(engine, threads, name, **options)
            return CheckedSession(session, self.name)
        return open_engine(engine, threads, name, **options)

    def layer_times(self, engine: Path, threads: int, rows: Sequence[Feeds]) -> tuple[LayerTime, ...] | None:
        """Run an engine once for each of ``rows`` under the library's profiler.

        Returns:
            The layers in the order in which they ran; None of a user's own runtime, which has no profiler that edgekd
            knows.

        Raises:
            MissingDependency, TargetError, ModelError, DeviceError: as of :meth:`open`.
        """
        if self.custom:
            return None
        self.load()
        name, fixed = _MODULES[self.name]
        module = importlib.import_module(f"edgekd.runtime.backends.{name}")
        cache = {"cache": _engine_cache()} if name == "tensorrt" else {}  # built engines, which take minutes
        times: tuple[LayerTime, ...] = module.layer_times(engine, threads, rows, **fixed, **self.options, **cache)
        return times


ORT = Runtime("onnxruntime")
