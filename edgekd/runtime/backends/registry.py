"""The table of engine libraries, and engines opened by a library's name; a user's own library too.

To add a library, write its module, add its entry to :data:`BACKENDS`, and ship a target that uses it: the checks of
targets, the choice of devices, what a board must have, and the command line's help derive from the entry.
"""

from __future__ import annotations

import importlib
import inspect
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from edgekd.errors import DeviceError, TargetError, nearest
from edgekd.files import make_folder, sha256_file, user_cache
from edgekd.plugins import is_plugin, source_file
from edgekd.runtime.backends.backend import Backend, BackendOption
from edgekd.runtime.backends.custom import CheckedSession, guarded, import_backend
from edgekd.runtime.backends.exclusive import ExclusiveSession
from edgekd.runtime.measure.machine import cpu_model, package_versions
from edgekd.runtime.session import engine_label

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from edgekd.runtime.backends.backend import OptionValue
    from edgekd.runtime.measure.results import LayerTime
    from edgekd.runtime.session import BuiltEngine, Feeds, Session


def _pip(package: str) -> str:
    return f"install it there (python3 -m pip install {package}), or name the Python that has it with ?python=COMMAND"


def _dla_batch(options: Mapping[str, OptionValue]) -> str | None:
    if options["dla"] and options["max_batch"] != 1:
        return "dla = true needs max_batch = 1: a DLA takes static shapes alone"
    return None


_ONNXRUNTIME = "edgekd.runtime.backends.onnxruntime"
_TENSORRT = "edgekd.runtime.backends.tensorrt"
_TENSORRT_OPTIONS = (
    BackendOption("max_batch", 64, "The most samples of one inference; the engine is tuned for one.", minimum=1),
    BackendOption("dla", False, "Run on a Jetson's DLA core what it can run, and the rest on the GPU."),
)

#: Every engine library that edgekd knows, by its name.
BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend(
        name="onnxruntime",
        module=_ONNXRUNTIME,
        packages=("onnxruntime",),
        install_hint=_pip("onnxruntime"),
        options=(
            BackendOption(
                "fused", True, "Rewrite the graph for speed; if not, compute it node by node as it is written."
            ),
        ),
        import_name="onnxruntime",
        thread_safe=True,
        emulated_arches=("x86_64", "aarch64"),
    ),
    # A browser's engines are those of ONNX Runtime, which Python opens without a browser.
    "onnxruntime-web": Backend(
        name="onnxruntime-web",
        module=_ONNXRUNTIME,
        packages=("onnxruntime",),
        thread_safe=True,
        in_browser=True,
    ),
    "openvino": Backend(
        name="openvino",
        module="edgekd.runtime.backends.openvino",
        packages=("openvino",),
        install_hint=_pip("openvino"),
        options=(
            BackendOption("device", "CPU", "The device that computes.", choices=("CPU", "GPU", "NPU")),
            BackendOption("precision", "f32", "What floats are computed in.", choices=("f32", "f16", "bf16")),
        ),
        import_name="openvino",
        compiles=True,
        emulated_arches=("x86_64",),
        emulation_note=": OpenVINO's INT8 is wrong on an emulated ARM processor",
    ),
    "tensorrt": Backend(
        name="tensorrt",
        module=_TENSORRT,
        packages=("tensorrt",),
        install_hint="JetPack brings it to the system's Python: sudo apt install python3-libnvinfer, and no ?python= "
        "of a venv",
        options=_TENSORRT_OPTIONS,
        fixed={"flavor": "tensorrt"},
        import_name="tensorrt",
        compiles=True,
        slow_to_compile=True,
        on_gpu=True,
        conflict=_dla_batch,
    ),
    "tensorrt-rtx": Backend(
        name="tensorrt-rtx",
        module=_TENSORRT,
        packages=("tensorrt-rtx-cu12-bindings",),
        install_hint=_pip("tensorrt-rtx-cu12"),
        options=_TENSORRT_OPTIONS,
        fixed={"flavor": "tensorrt-rtx"},
        import_name="tensorrt_rtx_bindings",
        compiles=True,
        slow_to_compile=True,
        on_gpu=True,
        conflict=_dla_batch,
    ),
}


def find_backend(name: str) -> Backend:
    """Return an engine library's entry.

    Raises:
        TargetError: there is no library of that name.
    """
    if name not in BACKENDS:
        raise TargetError(f"there is no runtime '{name}'{nearest(name, BACKENDS)}")
    return BACKENDS[name]


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
    """An engine library, and the options that it opens engines with.

    Attributes:
        name: A key of :data:`BACKENDS`, or a user's own library: ``path/to/file.py:name`` or ``package.module:name``.
            That name is a :class:`~edgekd.runtime.backends.backend.Backend`, or a function that takes
            ``(engine: Path | bytes, threads: int, name: str | None, **options)`` and returns a
            :class:`~edgekd.runtime.session.Session`.
        options: Keyword arguments of its ``open_engine``; JSON values.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def custom(self) -> bool:
        """Whether it is a user's own, whose code is imported by its name."""
        return is_plugin(self.name)

    @property
    def backend(self) -> Backend:
        """The library's entry; for a user's own, whose code is not imported for this, one that promises nothing."""
        return BACKENDS.get(self.name) or Backend(self.name, module="")

    @property
    def compiles(self) -> bool:
        """Whether it compiles engines for the machine at hand when it opens them."""
        return self.backend.compiles

    @property
    def source(self) -> Path | None:
        """The file of a user's own library; None for edgekd's, and for a module that lies in no file."""
        return source_file(self.name) if self.custom else None

    def digest(self) -> str | None:
        """Return the SHA-256 of the file of a user's own library, where there is one."""
        source = self.source
        return sha256_file(source) if source else None

    def absent(self) -> str | None:
        """Return the reason why no engine can run on this machine; None where it can.

        Raises:
            MissingDependency: the library is not installed.
            TargetError: there is no such library, or a user's own cannot be imported.
        """
        backend, functions = self._resolve()
        find_reason = getattr(functions, "absent", None)
        with self._guard():
            reason: str | None = find_reason(**backend.fixed, **self.options) if find_reason else None
        return reason

    def hardware(self) -> dict[str, str]:
        """Return what besides the processor decides what an engine does on this machine, e.g. its GPU.

        Raises:
            MissingDependency: the library is not installed.
            DeviceError: the machine lacks the device that the options ask for.
            TargetError: there is no such library, or a user's own cannot be imported.
        """
        backend, functions = self._resolve()
        read_facts = getattr(functions, "hardware", None)
        with self._guard():
            facts: dict[str, str] = read_facts(**backend.fixed, **self.options) if read_facts else {}
        return facts

    def versions(self) -> dict[str, str]:
        """Return the versions of the distributions that decide what the library computes, without importing them.

        Raises:
            TargetError: there is no such library, or a user's own cannot be imported.
        """
        return package_versions(self._resolve()[0].packages)

    def describe(self) -> dict[str, str]:
        """Return what tells the results of this machine from those of another kind; no engine is opened for it.

        Raises:
            MissingDependency: the library is not installed.
            DeviceError: the machine lacks the device that the options ask for.
            TargetError: there is no such library, or a user's own cannot be imported.
        """
        host = {"cpu": cpu_model(), "arch": platform.machine(), "logical_cores": str(os.cpu_count())}
        return {**host, **self.hardware(), **self.versions()}

    def build(self, engine: Path, folder: Path, threads: int = 1) -> BuiltEngine | None:
        """Write what the library compiles of an engine for this very machine into a folder.

        Args:
            engine: ONNX, or an engine that was built ahead of time, of which nothing more is compiled.
            folder: An empty folder.
            threads: As for :meth:`open`.

        Returns:
            None where the library compiles nothing that can be kept.

        Raises:
            MissingDependency: the library is not installed.
            ModelError: the engine cannot be built.
            DeviceError: the machine lacks the device that the options ask for.
        """
        backend, functions = self._resolve()
        keep_engine = getattr(functions, "keep_engine", None)
        if not backend.compiles or keep_engine is None:
            return None
        with self._guard():
            built: BuiltEngine | None = keep_engine(
                engine, folder, threads, cache=_engine_cache(), **backend.fixed, **self.options
            )
        return built

    def load(self) -> Callable[..., Session]:
        """Import the engine library and return its ``open_engine``.

        Raises:
            MissingDependency: the library is not installed.
            TargetError: there is no such library, or it does not know one of the options.
        """
        return self._load()[1]

    def open(self, engine: Path | bytes, threads: int = 1, name: str | None = None, *, keep: bool = False) -> Session:
        """Open an engine, as a session that any number of threads may use.

        Args:
            engine: The file, or its content.
            threads: The number of threads of one inference.
            name: The engine's name in errors; by default the file's path.
            keep: Whether a library that compiles engines for the machine keeps them in the user's cache for the next
                time. One that takes minutes to compile, as TensorRT, does so in any case.

        Raises:
            MissingDependency: the library is not installed.
            TargetError: there is no such library, or it does not know one of the options.
            ModelError: the engine cannot be opened.
            DeviceError: the library lacks the device that the options ask for.
        """
        (backend, open_engine), options = self._load(), dict(self.options)
        reserved = sorted(options.keys() & {"cache", *backend.fixed}) if not self.custom else []
        if reserved:
            raise TargetError(f"the runtime '{self.name}' is not given '{reserved[0]}' as an option")
        for option in backend.options:  # a bundle's manifest may state any JSON value
            if type(options.get(option.name, option.default)) is not type(option.default):
                kind, value = type(option.default).__name__, options[option.name]
                raise TargetError(f"the runtime '{self.name}' takes '{option.name}' of type {kind}, not {value!r}")
        if backend.compiles:
            options["cache"] = _engine_cache() if keep or backend.slow_to_compile else None
        with self._guard():
            session = open_engine(engine, threads, name, **options)
        opened: Session = CheckedSession(session, self.name) if self.custom else session
        return opened if backend.thread_safe else ExclusiveSession(opened, name or engine_label(engine))

    def layer_times(self, engine: Path, threads: int, rows: Sequence[Feeds]) -> tuple[LayerTime, ...] | None:
        """Run an engine once for each of ``rows`` under the library's profiler.

        Returns:
            The layers in the order in which they ran; None for a user's own library that has no profiler.

        Raises:
            MissingDependency, TargetError, ModelError, DeviceError: as of :meth:`open`.
        """
        backend, _ = self._load()
        profile = getattr(self._resolve()[1], "layer_times", None)
        if profile is None:
            return None
        cache = {"cache": _engine_cache()} if backend.slow_to_compile else {}
        with self._guard():
            times: tuple[LayerTime, ...] = profile(engine, threads, rows, **backend.fixed, **self.options, **cache)
        return times

    def _load(self) -> tuple[Backend, Callable[..., Session]]:
        backend, functions = self._resolve()
        if (import_library := getattr(functions, "library", None)) is not None:
            with self._guard():
                import_library(**backend.fixed)
        open_engine: Callable[..., Session] = partial(functions.open_engine, **backend.fixed)
        try:
            inspect.signature(open_engine).bind(None, 1, None, **self.options)
        except TypeError as error:
            raise TargetError(f"the runtime '{self.name}' cannot be given these options: {error}") from error
        return backend, open_engine

    def _resolve(self) -> tuple[Backend, Any]:
        """Return the library's entry and an object with its functions; of a user's own, the code is imported."""
        if self.custom:
            return import_backend(self.name)
        backend = find_backend(self.name)
        return backend, importlib.import_module(backend.module)

    def _guard(self) -> AbstractContextManager[None]:
        return guarded(self.name) if self.custom else nullcontext()


#: ONNX Runtime on this host.
ORT = Runtime("onnxruntime")
#: The same without its optimizers, for the check of a graph that another library will run.
AS_WRITTEN = Runtime("onnxruntime", {"fused": False})
