"""TensorRT and TensorRT-RTX as Python modules: import one, make its objects, and read engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from edgekd.errors import DeviceError, MissingDependency, ModelError
from edgekd.files import need
from edgekd.runtime.backends.tensorrt_log import without_collector

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from tensorrt import ICudaEngine, Runtime

    from edgekd.runtime.backends.tensorrt_log import Journal

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"
TITLES = {TENSORRT: "TensorRT", RTX: "TensorRT-RTX"}

T = TypeVar("T")


def library(flavor: str) -> ModuleType:
    """Import TensorRT or TensorRT-RTX.

    Args:
        flavor: "tensorrt" or "tensorrt-rtx".

    Raises:
        MissingDependency: it is not installed.
    """
    if flavor == TENSORRT:
        try:
            return need("tensorrt", "tensorrt")
        except MissingDependency as error:
            hint = "; on a Jetson it comes with JetPack: use the system's Python, or --system-site-packages"
            raise MissingDependency(f"{error}{hint}") from error
    need("tensorrt_rtx_libs", "build")  # loads the libraries that the bindings are linked to
    return need("tensorrt_rtx_bindings", "build")


@without_collector()
def make(kind: Callable[[object], T], journal: Journal, title: str) -> T:
    """Make a builder or runtime, which TensorRT, unlike TensorRT-RTX, can make only where there is a GPU.

    Args:
        kind: The library's class.
        journal: Takes the library's messages.
        title: The library's name and version, for errors.

    Raises:
        DeviceError: there is no GPU.
    """
    try:
        return kind(journal.logger)
    except TypeError as error:  # "factory function returned nullptr"
        raise DeviceError(f"{title} finds no NVIDIA GPU that it can use: {journal.reason()}") from error


@without_collector()
def deserialize(runtime: Runtime, content: bytes, journal: Journal, name: str, title: str) -> ICudaEngine:
    """Read a serialized engine.

    Args:
        runtime: The library's runtime, made with ``journal``.
        content: The plan.
        journal: Takes the library's messages.
        name: The engine's name in errors.
        title: The library's name and version, for errors.

    Raises:
        DeviceError: there is no GPU.
        ModelError: it is no plan of this library's version for this GPU.
    """
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        if journal.lacks_gpu():
            raise DeviceError(f"{title} needs a working NVIDIA GPU to open an engine: {journal.reason()}")
        raise ModelError(f"{name}: {title} cannot open it: {journal.reason()}; build it on this machine")
    return engine


def library_version(trt: ModuleType) -> tuple[int, ...]:
    """Return the major and minor version."""
    return tuple(int(part) for part in trt.__version__.split(".")[:2])


def read_engine(source: Path | bytes) -> bytes:
    """Return an engine's content.

    Raises:
        ModelError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise ModelError(f"{source}: cannot be read: {error.strerror}") from error
