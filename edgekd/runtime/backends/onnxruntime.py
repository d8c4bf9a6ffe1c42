"""ONNX Runtime, on the processor."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ModelError
from edgekd.files import need, scratch_folder
from edgekd.runtime.feeds import FeedCheck
from edgekd.runtime.measure.layers import from_ort_trace
from edgekd.runtime.session import Array, Feeds, Session, TensorSpec, engine_label, readable_names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType, TracebackType

    from onnxruntime import InferenceSession, NodeArg, SessionOptions

    from edgekd.runtime.measure.results import LayerTime

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


#: First runs under the profiler that are left out: memory and caches have not yet settled.
_UNSETTLED = 10


def library() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        MissingDependency: it is not installed.
    """
    return need("onnxruntime", "runtime")


def hardware(fused: bool = True) -> dict[str, str]:  # noqa: ARG001
    """Return what besides the processor decides what an engine does here: nothing."""
    return {}


def absent(fused: bool = True) -> None:
    """Return the reason why no engine can run on this machine: there is none, since there is always a processor."""


def open_engine(
    engine: Path | bytes, threads: int = 1, name: str | None = None, *, fused: bool = True, arena: bool = True
) -> Session:
    """Open an ONNX model for the processor.

    Args:
        engine: The file, or its content.
        threads: The number of threads of one inference.
        name: The engine's name in errors; by default the file's path.
        fused: Whether ONNX Runtime's optimizers may rewrite the graph. Without them it computes node by node what the
            file says, as ONNX defines each node; INT8 then takes about as long as float.
        arena: Whether it keeps memory for the next inference, and takes that in ever larger pieces. Without, some
            networks need half of the memory, and up to a quarter more time.

    Raises:
        MissingDependency: ONNX Runtime is not installed.
        ModelError: the model cannot be opened.
        ValueError: ``threads`` is below 1, where ONNX Runtime would silently take every core.
    """
    options = _options(threads, fused)
    options.enable_cpu_mem_arena = arena
    return _open(engine, options, name)


def layer_times(engine: Path, threads: int, rows: Sequence[Feeds], *, fused: bool = True) -> tuple[LayerTime, ...]:
    """Run an engine once for each of ``rows`` under ONNX Runtime's profiler; return the time of each node.

    The profiler rounds the time of each run to whole us, and makes every node some us slower.

    Raises:
        MissingDependency: ONNX Runtime is not installed.
        ModelError: the model cannot be opened, or does not take the rows.
    """
    options = _options(threads, fused)
    with scratch_folder() as scratch:
        options.enable_profiling = True
        options.profile_file_prefix = str(scratch / "trace")
        with _open(engine, options, None) as session:
            for row in rows:
                session.run(row)
            trace = session.end_profiling()
        return from_ort_trace(Path(trace), len(rows), min(_UNSETTLED, len(rows) - 1))


def _options(threads: int, fused: bool) -> SessionOptions:
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    onnxruntime = library()
    options = onnxruntime.SessionOptions()
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # failures are raised
    return options


def _open(engine: Path | bytes, options: SessionOptions, name: str | None) -> _OrtSession:
    onnxruntime = library()
    name = engine_label(engine, name)
    failures = _failures(onnxruntime)
    try:
        session = onnxruntime.InferenceSession(
            str(engine) if isinstance(engine, Path) else engine, options, providers=["CPUExecutionProvider"]
        )
    except failures as error:
        raise ModelError(f"{name}: ONNX Runtime cannot open it: {error}") from error
    with readable_names(name):
        return _OrtSession(onnxruntime, session, name, failures)


def _failures(onnxruntime: ModuleType) -> tuple[type[Exception], ...]:
    """Return ONNX Runtime's own exceptions, which share no base class."""
    exported = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    return RuntimeError, *(item for item in exported if isinstance(item, type) and issubclass(item, Exception))


class _OrtSession:
    """A :class:`Session` of ONNX Runtime."""

    def __init__(
        self, onnxruntime: ModuleType, session: InferenceSession, name: str, failures: tuple[type[Exception], ...]
    ) -> None:
        self._onnxruntime = onnxruntime
        self._session = session
        # Beneath its wrapper, where there is one, which would check the feeds once more.
        self._run = getattr(session, "_sess", session).run
        self._name = name
        self._failures = failures
        self.inputs = tuple(_spec(item, name) for item in session.get_inputs())
        self.outputs = tuple(_spec(item, name) for item in session.get_outputs())
        self.facts: dict[str, str] = {}
        self._check = FeedCheck(self.inputs)
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        self._check(feeds)
        run = self._run  # another thread may close the session; this one then finishes
        if run is None:
            raise ModelError(f"{self._name}: the engine is closed")
        try:
            results = run(self._output_names, feeds, None)
        except self._failures as error:
            raise ModelError(f"{self._name}: ONNX Runtime failed to run it: {error}") from error
        return dict(zip(self._output_names, results))  # noqa: B905 - as many as were asked for; strict costs time

    def bind_inputs(self, feeds: Feeds) -> Callable[[], int]:
        """Bind inputs and outputs by IO binding; see :class:`~edgekd.runtime.session.ComputeTimer`."""
        results = self.run(feeds)  # for the outputs' shapes
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.array(array))
        for name, array in results.items():
            binding.bind_ortvalue_output(name, self._onnxruntime.OrtValue.ortvalue_from_numpy(array))
        run, clock = self._session.run_with_iobinding, time.perf_counter_ns

        def compute() -> int:
            start = clock()
            run(binding)
            return clock() - start

        return compute

    def end_profiling(self) -> str:
        """Stop the profiler and return the file that it wrote."""
        path: str = self._session.end_profiling()
        return path

    def close(self) -> None:
        self._session = self._run = None

    def __enter__(self) -> _OrtSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _spec(item: NodeArg, model: str) -> TensorSpec:
    if item.type not in _DTYPES:
        raise ModelError(f"{model}: '{item.name}' is a {item.type}, which numpy has no type for")
    # A dimension without a name is like no other, so it gets a name of its own.
    shape = tuple(f"{item.name}.{axis}" if size is None else size for axis, size in enumerate(item.shape))
    return TensorSpec(item.name, _DTYPES[item.type], shape)
