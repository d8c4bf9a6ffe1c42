"""OpenVINO, on Intel's processors, graphics and neural units, and on other x86-64 and ARM64 processors."""

from __future__ import annotations

import functools
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import DeviceError, ModelError, TargetError
from edgekd.files import need
from edgekd.runtime.backends.openvino_reductions import widen_reductions
from edgekd.runtime.backends.openvino_session import OpenVinoSession, error_text
from edgekd.runtime.backends.telemetry import no_telemetry
from edgekd.runtime.session import BuiltEngine, engine_label

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from openvino import Core

    from edgekd.runtime.backends.openvino_session import Properties
    from edgekd.runtime.measure.results import LayerTime
    from edgekd.runtime.session import Feeds, Session

#: How long an engine runs with counters, at least.
_COUNTED_SECONDS = 1.0

#: Precisions by OpenVINO's names of types, and what it calls a device's capability for each.
_PRECISIONS = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}


def library() -> ModuleType:
    """Import OpenVINO, which then sends nothing home.

    Raises:
        MissingDependency: it is not installed.
    """
    with no_telemetry():
        return need("openvino", "openvino")


def devices() -> tuple[str, ...]:
    """Return the devices that OpenVINO finds here, e.g. ``("CPU",)`` or ``("CPU", "GPU.0", "GPU.1")``.

    Raises:
        MissingDependency: OpenVINO is not installed.
    """
    return tuple(library().Core().available_devices)


def absent(device: str = "CPU", precision: str = "f32") -> str | None:
    """Return the reason why no engine can run on this machine, as a device that is not here; None where it can.

    Raises:
        MissingDependency: OpenVINO is not installed.
    """
    core = library().Core()
    reason = _no_device(core, device)
    if reason is None and _PRECISIONS[precision] not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
        return f"{device} does not compute in {precision}"
    return reason


def hardware(device: str = "CPU", precision: str = "f32") -> dict[str, str]:  # noqa: ARG001
    """Return what besides the processor decides what an engine does here: the name of the device.

    Raises:
        MissingDependency: OpenVINO is not installed.
        DeviceError: there is no such device.
    """
    if device == "CPU":
        return {}
    core = library().Core()
    if reason := _no_device(core, device):
        raise DeviceError(reason)
    return {"device": str(core.get_property(device, "FULL_DEVICE_NAME"))}


def _no_device(core: Core, device: str) -> str | None:
    available = core.available_devices
    if any(device in (known, known.partition(".")[0]) for known in available):
        return None
    return f"OpenVINO finds no device '{device}' here; available: {', '.join(available)}"


def open_engine(
    engine: Path | bytes,
    threads: int = 1,
    name: str | None = None,
    *,
    device: str = "CPU",
    precision: str = "f32",
    cache: Path | None = None,
) -> Session:
    """Open an ONNX model, float or QDQ, for the least latency.

    It is compiled for batch 1 alone, which runs faster than a dynamic batch; the first run of another batch size
    compiles it once more, for all of them. A neural unit (NPU) has no dynamic batch: there it runs row by row.

    A session runs one inference at a time, and must be called by one thread at a time, as
    :meth:`~edgekd.runtime.backends.registry.Runtime.open` sees to. OpenVINO drops inputs that nothing
    in the graph reads, and on the processor computes 64-bit integers in 32 bits and doubles in single precision.

    Args:
        engine: The file, or its content.
        threads: The number of threads of one inference on the processor; other devices have their own.
        name: The engine's name in errors; by default the file's path.
        device: One of :func:`devices`; "GPU" is the first of several.
        precision: The type that floating-point arithmetic is done in: "f32", "f16" or "bf16". Left to OpenVINO, it
            would be bf16 wherever the processor has it.
        cache: The folder where OpenVINO keeps compiled models; None for no such cache.

    Raises:
        MissingDependency: OpenVINO is not installed.
        DeviceError: there is no such device.
        ModelError: the model cannot be opened, an input has a dynamic dimension besides its batch, or the device does
            not compute in ``precision``.
        TargetError: ``precision`` is unknown.
        ValueError: ``threads`` is below 1, where OpenVINO would silently take every core.
    """
    return _open(engine, threads, name, device, precision, cache)


def layer_times(
    engine: Path, threads: int, rows: Sequence[Feeds], *, device: str = "CPU", precision: str = "f32"
) -> tuple[LayerTime, ...]:
    """Run an engine on ``rows`` with OpenVINO's counters, each once and on for a second; return the layers' mean times.

    The first run, which builds kernels, counts too: hence the second. Layers of less than 1 us, the step of the
    counters, are not among them; see :func:`~edgekd.runtime.measure.layers.from_openvino`.

    Raises:
        MissingDependency, DeviceError, ModelError, TargetError: as of :func:`open_engine`.
    """
    with _open(engine, threads, None, device, precision, None, counted=True) as session:
        end = time.monotonic() + _COUNTED_SECONDS
        for index, row in enumerate(itertools.cycle(rows)):
            if index >= len(rows) and time.monotonic() > end:
                break
            session.run(row)
        return session.layers()


def _open(
    engine: Path | bytes,
    threads: int,
    name: str | None,
    device: str,
    precision: str,
    cache: Path | None,
    counted: bool = False,
) -> OpenVinoSession:
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    if precision not in _PRECISIONS:
        raise TargetError(f"precision must be one of {', '.join(_PRECISIONS)}, not {precision!r}")
    core = library().Core()
    if reason := _no_device(core, device):
        raise DeviceError(reason)
    name = engine_label(engine, name)
    try:
        model = core.read_model(str(engine) if isinstance(engine, Path) else engine)
    except RuntimeError as error:
        raise ModelError(f"{name}: OpenVINO cannot open it: {error_text(error)}") from error
    widen_reductions(model)
    options = _options(_writable(device), threads, cache)
    if counted:
        options["PERF_COUNT"] = True
    return OpenVinoSession(core, model, name, device, options | {"INFERENCE_PRECISION_HINT": precision})


def keep_engine(
    engine: Path,
    folder: Path,
    threads: int = 1,
    *,
    device: str = "CPU",
    precision: str = "f32",
    cache: Path | None = None,
) -> BuiltEngine:
    """Write the compiled model, ``<engine>.blob``, which ``Core.import_model`` reads on this kind of machine alone.

    A blob states neither the precision that it computes in nor its number of threads: imported without ``open_with``,
    it computes in bf16 wherever the processor has it.

    Args:
        engine: As for :func:`open_engine`, as are ``threads``, ``device`` and ``precision``.
        folder: The folder to write into.
        threads: The number of threads of one inference.
        device: The device that it is compiled for.
        precision: The type that it computes in.
        cache: Not used: the time of compiling is measured.

    Raises:
        MissingDependency, DeviceError, ModelError, TargetError: as :func:`open_engine`.
    """
    del cache
    openvino = library()
    start = time.perf_counter()
    with _open(engine, threads, None, device, precision, None) as session:
        build_s = time.perf_counter() - start
        path = folder / f"{engine.stem}.blob"
        path.write_bytes(session.export())
    return BuiltEngine((path.name,), f"OpenVINO {openvino.__version__}", session.open_with, build_s)


@functools.cache
def _writable(device: str) -> frozenset[str]:
    """Return the properties that a device lets one set. Asked once: each time OpenVINO loses 3 kB of memory."""
    supported = library().Core().get_property(device, "SUPPORTED_PROPERTIES")
    return frozenset(key for key, access in supported.items() if access == "RW")


def _options(writable: frozenset[str], threads: int, cache: Path | None) -> Properties:
    """Return the properties that are set, of those that the device lets one set."""
    wanted: Properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Otherwise OpenVINO quantizes activations of its own accord, in layers of which only the weights are INT8.
        "EXECUTION_MODE_HINT": "ACCURACY",
    }
    options = {key: value for key, value in wanted.items() if key in writable}
    return options if cache is None else {**options, "CACHE_DIR": str(cache)}
