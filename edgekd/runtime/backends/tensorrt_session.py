"""A session of TensorRT: one engine with its execution context and memory on the GPU.

*Not verified on hardware.*
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import ModelError
from edgekd.runtime.backends.tensorrt_library import deserialize, make
from edgekd.runtime.backends.tensorrt_log import Journal, without_collector
from edgekd.runtime.feeds import FeedCheck
from edgekd.runtime.session import Array, Feeds, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType, TracebackType

    from tensorrt import ICudaEngine, IProfiler

    from edgekd.runtime.backends.cuda import Gpu


class TensorRTSession:
    """A :class:`Session` of TensorRT: one engine, one context, one stream, and memory for its largest batch."""

    @without_collector()
    def __init__(self, trt: ModuleType, gpu: Gpu, content: bytes, name: str, title: str, facts: dict[str, str]) -> None:
        self._trt = trt
        self._profiler: IProfiler | None = None
        self._sources: dict[str, Array] = {}
        self._gpu: Gpu | None = gpu
        self._name = name
        self._title = title
        self._journal = Journal(trt)
        self._runtime = make(trt.Runtime, self._journal, title)
        self._engine = deserialize(self._runtime, content, self._journal, name, title)
        # What its activations take of the GPU's memory, which a process's resident memory says nothing of.
        self.facts = {**facts, "device_memory": f"{self._engine.device_memory_size_v2 / 1e6:.2f} MB"}
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._error(f"cannot start it: {self._journal.reason()}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        specs = {tensor: _spec(trt, self._engine, tensor, name) for tensor in names}
        inputs = [t for t in names if self._engine.get_tensor_mode(t) == trt.TensorIOMode.INPUT]
        self.inputs = tuple(specs[tensor] for tensor in inputs)
        self.outputs = tuple(specs[tensor] for tensor in names if tensor not in inputs)
        self._check = FeedCheck(self.inputs)
        self._largest = {tensor: self._largest_shape(tensor) for tensor in inputs}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._set_shapes(self._largest)
        self._addresses = {spec.name: self._allocate(gpu, spec) for spec in (*self.inputs, *self.outputs)}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run the engine; see :meth:`~edgekd.runtime.session.Session.run`."""
        self._check(feeds)
        gpu = self._gpu
        if gpu is None:
            raise ModelError(f"{self._name}: the engine is closed")
        for name, largest in self._largest.items():
            if feeds[name].shape > largest:  # all but the first dimension are equal
                raise ModelError(f"{self._name}: input '{name}' has {len(feeds[name])} samples, the engine takes "
                                 f"{largest[0]} at a time: build it with a larger max_batch")  # fmt: skip
        gpu.activate()
        self._upload(gpu, feeds)
        self._execute(gpu)
        results = {spec.name: np.empty(self._shape(spec.name), spec.dtype) for spec in self.outputs}
        for name, array in results.items():
            gpu.download(array, self._addresses[name])
        gpu.synchronize()
        return results

    def bind_inputs(self, feeds: Feeds) -> Callable[[], int]:
        """Time the engine between two CUDA events; see :class:`~edgekd.runtime.session.ComputeTimer`."""
        self._check(feeds)
        gpu = self._gpu
        if gpu is None:
            raise ModelError(f"{self._name}: the engine is closed")
        gpu.activate()
        self._upload(gpu, feeds)

        def compute() -> int:
            gpu.mark(0)
            self._execute(gpu)
            gpu.mark(1)
            gpu.synchronize()
            return gpu.between_ns()

        return compute

    def profile_layers(self, report: Callable[[str, float], None]) -> None:
        """Call ``report(name, ms)`` for each layer in each run from here on."""
        profiler = self._trt.IProfiler

        class Profiler(profiler):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                profiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                report(layer_name, ms)

        self._context.profiler = self._profiler = Profiler()  # TensorRT keeps no reference of its own

    def _upload(self, gpu: Gpu, feeds: Feeds) -> None:
        self._set_shapes({name: array.shape for name, array in feeds.items()})
        self._sources = {name: np.ascontiguousarray(array) for name, array in feeds.items()}  # until they are copied
        for name, array in self._sources.items():
            gpu.upload(self._addresses[name], array)

    def _execute(self, gpu: Gpu) -> None:
        with without_collector():
            started = self._context.execute_async_v3(gpu.stream)
        if not started:
            raise self._error(f"failed to run it: {self._journal.reason()}")

    def close(self) -> None:
        """Free the engine and its memory on the GPU."""
        if self._gpu is not None:
            self._context = self._engine = self._runtime = None  # each before what it was made from
            self._profiler = None
            self._gpu.close()
            self._gpu = None

    def __enter__(self) -> TensorRTSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _largest_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._engine.get_tensor_shape(name))
        if -1 not in shape:
            return shape
        _, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        return tuple(largest)

    def _set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape and not self._context.set_input_shape(name, shape):
                raise self._error(f"refuses input '{name}' of shape {list(shape)}: {self._journal.reason()}")
            self._shapes[name] = shape

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        if -1 in shape:
            raise self._error(f"cannot tell the shape of '{name}' before it runs: write the network without that")
        return shape

    def _allocate(self, gpu: Gpu, spec: TensorSpec) -> int:
        address = gpu.allocate(prod(self._shape(spec.name)) * np.dtype(spec.dtype).itemsize)
        if not self._context.set_tensor_address(spec.name, address):
            raise self._error(f"refuses memory for '{spec.name}': {self._journal.reason()}")
        return address

    def _error(self, text: str) -> ModelError:
        return ModelError(f"{self._name}: {self._title} {text}")


def _spec(trt: ModuleType, engine: ICudaEngine, tensor: str, model: str) -> TensorSpec:
    kind = engine.get_tensor_dtype(tensor)
    try:
        dtype = np.dtype(trt.nptype(kind)).name
    except TypeError as error:
        raise ModelError(f"{model}: '{tensor}' is a {kind.name}, which numpy has no type for") from error
    # edgekd leaves only the batch open, which is the same for all tensors.
    sizes = enumerate(engine.get_tensor_shape(tensor))
    shape = tuple(size if size >= 0 else f"{tensor}.{axis}" if axis else "batch" for axis, size in sizes)
    return TensorSpec(tensor, dtype, shape)
