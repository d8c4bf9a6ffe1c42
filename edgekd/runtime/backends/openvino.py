"""OpenVINO, on Intel's processors, graphics and neural units, and on other x86-64 and ARM64 processors."""

from __future__ import annotations

import io
import itertools
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import DeviceError, ModelError, TargetError
from edgekd.files import need
from edgekd.runtime.measure.layers import from_openvino
from edgekd.runtime.session import Array, Built, FeedCheck, Feeds, Session, TensorSpec, run_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from edgekd.runtime.measure.results import LayerTime

#: OpenVINO forgets the names of dynamic dimensions; a leading one is the batch.
_BATCH = "batch"
#: How long an engine runs with counters, at least.
_COUNTED_SECONDS = 1.0

#: Precisions by OpenVINO's names of types, and what it calls a device's capability for each.
_PRECISIONS = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}
_DTYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "boolean": "bool",
    **{f"{sign}{bits}": f"{kind}{bits}" for sign, kind in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
}


def library() -> Any:
    """Import OpenVINO, which then sends nothing home.

    Raises:
        MissingDependency: it is not installed.
    """
    with no_telemetry():
        return need("openvino", "openvino")


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Let OpenVINO and NNCF, where this is their first import, believe that they run in CI.

    Left to itself, the mere import of either reports to its maker, unless the user opted out in a file in the home
    folder. Only these variables, read at import, stop it from the outside. What was imported before keeps its ways.
    """
    before = {name: os.environ.get(name) for name in ("CI", "NNCF_CI")}
    os.environ.update(dict.fromkeys(before, "true"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def devices() -> tuple[str, ...]:
    """Return the devices that OpenVINO finds here, e.g. ``("CPU",)`` or ``("CPU", "GPU.0", "GPU.1")``.

    Raises:
        MissingDependency: OpenVINO is not installed.
    """
    return tuple(library().Core().available_devices)


def absent(device: str = "CPU", precision: str = "f32") -> str | None:
    """Say why no engine can run on this machine: the device is not here, or lacks the precision; None where it can.

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


def _no_device(core: Any, device: str) -> str | None:
    available = core.available_devices
    if any(device in (found, found.partition(".")[0]) for found in available):
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

    A session runs one inference at a time; give each thread of a program its own. OpenVINO drops inputs that nothing
    in the graph reads, and on the processor computes 64-bit integers in 32 bits and doubles in single precision.

    Args:
        engine: the file, or its content.
        threads: threads of one inference on the processor; other devices have their own.
        name: what errors call it; by default the file's path.
        device: one of :func:`devices`; "GPU" is the first of several.
        precision: what floating-point arithmetic is done in: "f32", "f16" or "bf16". Left to OpenVINO, it would be
            bf16 wherever the processor has it.
        cache: a folder where OpenVINO keeps compiled models; None for no such cache.

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
) -> _OpenVinoSession:
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    if precision not in _PRECISIONS:
        raise TargetError(f"precision must be one of {', '.join(_PRECISIONS)}, not {precision!r}")
    core = library().Core()
    if reason := _no_device(core, device):
        raise DeviceError(reason)
    name = name or (str(engine) if isinstance(engine, Path) else "the given bytes")
    try:
        model = core.read_model(str(engine) if isinstance(engine, Path) else engine)
    except RuntimeError as error:
        raise ModelError(f"{name}: OpenVINO cannot open it: {_reason(error)}") from error
    options = _options(core.get_property(device, "SUPPORTED_PROPERTIES"), threads, cache)
    if counted:
        options["PERF_COUNT"] = True
    return _OpenVinoSession(core, model, name, device, options | {"INFERENCE_PRECISION_HINT": precision})


def keep_engine(
    engine: Path,
    folder: Path,
    threads: int = 1,
    *,
    device: str = "CPU",
    precision: str = "f32",
    cache: Path | None = None,
) -> Built:
    """Write the compiled model, ``<engine>.blob``, which ``Core.import_model`` reads on this kind of machine alone.

    A blob does not say in which precision it computes, nor with how many threads: imported without ``open_with``, it
    computes in bf16 wherever the processor has it.

    Args:
        engine: as for :func:`open_engine`, as are ``threads``, ``device`` and ``precision``.
        folder: where to.
        threads: threads of one inference.
        device: the same.
        precision: the same.
        cache: not used: what is timed is compiling.

    Raises:
        MissingDependency, DeviceError, ModelError, TargetError: as :func:`open_engine`.
    """
    del cache
    openvino = library()
    start = time.perf_counter()
    session = open_engine(engine, threads, device=device, precision=precision)
    assert isinstance(session, _OpenVinoSession)
    with session:
        build_s = time.perf_counter() - start
        path = folder / f"{engine.stem}.blob"
        path.write_bytes(session.export())
    return Built((path.name,), f"OpenVINO {openvino.__version__}", session.open_with, build_s)


def _options(supported: Mapping[str, str], threads: int, cache: Path | None) -> dict[str, Any]:
    """Return what is asked of a device, of what it lets one ask."""
    wanted = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Else it quantizes activations of its own accord, in layers of which only the weights are INT8.
        "EXECUTION_MODE_HINT": "ACCURACY",
    }
    options = {key: value for key, value in wanted.items() if supported.get(key) == "RW"}
    return options if cache is None else {**options, "CACHE_DIR": str(cache)}


def _reason(error: RuntimeError) -> str:
    """Return OpenVINO's message without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Exception from ", "Check ")))


class _OpenVinoSession:
    """A :class:`Session` of OpenVINO."""

    def __init__(self, core: Any, model: Any, name: str, device: str, options: dict[str, Any]) -> None:
        self.inputs = tuple(_spec(port, name) for port in model.inputs)
        self.outputs = tuple(_spec(port, name) for port in model.outputs)
        for spec in self.inputs:
            if not all(isinstance(size, int) for size in spec.shape[1:]):
                raise ModelError(f"{name}: only the batch may be dynamic, but input '{spec.name}' is {spec}")
        self._core = core
        self._model = model
        self._name = name
        self._device = device
        self._options = options
        self._dynamic_batch = not device.startswith("NPU")
        self._batched = [spec for spec in self.inputs if spec.shape[:1] == (_BATCH,)]
        self.facts = {"inference_precision": options["INFERENCE_PRECISION_HINT"]}
        self._check = FeedCheck(self.inputs)
        self._output_names = [spec.name for spec in self.outputs]
        self._single = self._open_single()
        # Filling the request's own tensors takes a fraction of the time of handing it new ones.
        self._filled = [(spec.name, self._single.get_tensor(spec.name).data) for spec in self.inputs if self._single]
        self._results = [(spec.name, self._single.get_tensor(spec.name).data) for spec in self.outputs if self._single]
        self._any = None if self._single else self._compile(model)

    def _open_single(self) -> Any:
        """Return a request of the graph at batch 1, or None if sizes in it depend on more than its inputs' sizes."""
        model = self._model.clone()
        try:
            if self._batched:
                model.reshape({spec.name: [1, *spec.shape[1:]] for spec in self._batched})
        except RuntimeError as error:
            raise ModelError(f"{self._name}: it cannot have a batch of 1: {_reason(error)}") from error
        return None if model.is_dynamic() else self._compile(model)

    def _compile(self, model: Any) -> Any:
        """Return a request of this graph; it runs one inference at a time."""
        try:
            compiled = self._core.compile_model(model, self._device, self._options)
            found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            request = compiled.create_infer_request()
        except RuntimeError as error:
            raise ModelError(f"{self._name}: OpenVINO cannot compile it: {_reason(error)}") from error
        precision = self._options["INFERENCE_PRECISION_HINT"]
        if found != precision:
            raise ModelError(f"{self._name}: {self._device} would compute in {found}, not in {precision}")
        return request

    def run(self, feeds: Feeds) -> dict[str, Array]:
        self._check(feeds)
        if self._model is None:
            raise ModelError(f"{self._name}: the engine is closed")
        rows = len(feeds[self._batched[0].name]) if self._batched else 1
        if rows == 0:
            raise ModelError(f"{self._name}: OpenVINO cannot run a batch of no rows")
        if rows > 1 and not self._dynamic_batch:
            return run_rows(self, feeds, 1)
        try:
            return self._run_single(feeds) if rows == 1 and self._single else self._run_any(feeds)
        except RuntimeError as error:
            raise ModelError(f"{self._name}: OpenVINO failed to run it: {_reason(error)}") from error

    def place(self, feeds: Feeds) -> Callable[[], int] | None:
        """Time what OpenVINO says that the filled request's inference took, as its ``benchmark_app`` does."""
        self._check(feeds)
        if self._model is None:
            raise ModelError(f"{self._name}: the engine is closed")
        if self._single is None:  # sizes in it depend on its inputs' values
            return None
        self._fill(feeds)
        request = self._single

        def compute() -> int:
            request.infer(share_outputs=True)
            latency_ms: float = request.latency
            return round(latency_ms * 1e6)

        return compute

    def layers(self) -> tuple[LayerTime, ...]:
        """Return the mean times of the layers over the runs at batch 1, of a session that counts."""
        request: Any = self._single or self._any
        return from_openvino(request.profiling_info, request.get_compiled_model().get_runtime_model())

    def _fill(self, feeds: Feeds) -> None:
        for name, data in self._filled:
            data[...] = feeds[name]

    def _run_single(self, feeds: Feeds) -> dict[str, Array]:
        self._fill(feeds)
        self._single.infer(share_outputs=True)
        # The results are the request's own tensors, which its next run overwrites.
        return {name: data.copy() for name, data in self._results}

    def _run_any(self, feeds: Feeds) -> dict[str, Array]:
        if self._any is None:
            self._any = self._compile(self._model)
        # With one thread, infer() loses an error and returns the results of the run before; wait() raises it. Only a
        # graph of dynamic sizes can fail, so _run_single is spared the 10 µs that this takes.
        self._any.start_async(dict(feeds))
        self._any.wait()
        return dict(zip(self._output_names, self._any.results.values(), strict=True))  # copies

    @property
    def open_with(self) -> dict[str, Any]:
        """What ``Core.import_model`` must be given besides what :meth:`export` returns."""
        return {"device_name": self._device, "config": self._options}

    def export(self) -> bytes:
        """Return the compiled model, at batch 1 where the graph has that."""
        request: Any = self._single or self._any
        stream = io.BytesIO()
        request.get_compiled_model().export_model(stream)
        return stream.getvalue()

    def close(self) -> None:
        self._core = self._model = self._single = self._any = None
        self._filled = self._results = []

    def __enter__(self) -> _OpenVinoSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _spec(port: Any, model: str) -> TensorSpec:
    name, kind, sizes = port.any_name, port.element_type.get_type_name(), port.partial_shape
    if kind not in _DTYPES:
        raise ModelError(f"{model}: '{name}' is of type {kind}, which numpy has none for")
    if sizes.rank.is_dynamic:
        raise ModelError(f"{model}: '{name}' has no fixed number of dimensions")
    shape = tuple(
        (f"{name}.{axis}" if axis else _BATCH) if size.is_dynamic else size.get_length()
        for axis, size in enumerate(sizes)
    )
    return TensorSpec(name, _DTYPES[kind], shape)
