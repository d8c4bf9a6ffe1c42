"""A session of OpenVINO: the graph at batch 1, and with a dynamic batch as soon as one is asked for."""

from __future__ import annotations

import io
import re
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

from edgekd.errors import ModelError
from edgekd.runtime.backends.batch_sizes import MOST_SIZES, BatchSizes
from edgekd.runtime.feeds import FeedCheck
from edgekd.runtime.measure.layers import from_openvino
from edgekd.runtime.session import Array, Feeds, TensorSpec, readable_names, run_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from openvino import ConstOutput, Core, InferRequest, Model

    from edgekd.files import JsonObject
    from edgekd.runtime.measure.results import LayerTime

#: OpenVINO's properties, by their names.
Properties: TypeAlias = "dict[str, str | int | bool]"

#: OpenVINO forgets the names of dynamic dimensions; a leading one is the batch.
_BATCH = "batch"

_DTYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "boolean": "bool",
    **{f"{sign}{bits}": f"{kind}{bits}" for sign, kind in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
}


#: A node that OpenVINO's reader refuses, and what it says of those that only follow such a one.
_REFUSED = re.compile(r"While validating ONNX node '<Node\((\w+)\): ([^>]*)>':\s*([^\n]*)")
_FOLLOWS = "Unsupported input type dynamic"

#: What to do about a reason. The first that fits counts.
_ADVICE = (
    (r"must be static", "it takes this operator for a fixed number of samples alone: compute it in the app, before the "
     "network, or write it with layers, e.g. a spectrum as an nn.Conv1d"),
)  # fmt: skip


def error_text(error: RuntimeError) -> str:
    """Return OpenVINO's message without positions in its sources; of nodes that it cannot read, the first cause."""
    refused = [found.groups() for found in _REFUSED.finditer(str(error)) if found[3].strip() != _FOLLOWS]
    if refused:
        operator, name, reason = refused[0]
        advice = next((f"; {advice}" for pattern, advice in _ADVICE if re.search(pattern, reason)), "")
        return f"node '{name}' ({operator}): {reason.strip().rstrip('.')}{advice}"
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Exception from ", "Check ")))


class OpenVinoSession:
    """A :class:`~edgekd.runtime.session.Session` of OpenVINO.

    Args:
        core: OpenVINO's core.
        model: The graph.
        name: The engine's name in errors.
        device: The device that computes.
        options: The properties that the graph is compiled with.

    Raises:
        ModelError: the graph cannot be compiled, or has dynamic dimensions besides the batch.
    """

    def __init__(self, core: Core, model: Model, name: str, device: str, options: Properties) -> None:
        with readable_names(name):
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
        self.facts: dict[str, str] = {"inference_precision": str(options["INFERENCE_PRECISION_HINT"])}
        self._check = FeedCheck(self.inputs)
        self._sizes = BatchSizes([spec.name for spec in self._batched])
        self._output_names = [spec.name for spec in self.outputs]
        self._single = self._open_single()
        # Filling the request's own tensors takes a fraction of the time of handing it new ones.
        self._filled = [(spec.name, self._single.get_tensor(spec.name).data) for spec in self.inputs if self._single]
        self._results = [(spec.name, self._single.get_tensor(spec.name).data) for spec in self.outputs if self._single]
        self._any = None if self._single else self._compile_any(model)

    def _open_single(self) -> InferRequest | None:
        """Return a request of the graph at batch 1, or None if sizes in it depend on more than its inputs' sizes."""
        model = self._model.clone()
        try:
            if self._batched:
                model.reshape({spec.name: [1, *spec.shape[1:]] for spec in self._batched})
        except RuntimeError as error:
            raise ModelError(f"{self._name}: it cannot have a batch of 1: {error_text(error)}") from error
        return None if model.is_dynamic() else self._compile(model, self._options)

    def _compile_any(self, model: Model) -> InferRequest:
        """Return a request of the graph whose sizes are dynamic, which keeps the kernels of the last few sizes.

        On a processor OpenVINO would keep 5,000 of each kind of operator, each with its buffers: gigabytes, where every
        batch is of another size.
        """
        kinds = Counter(node.get_type_name() for node in model.get_ops() if node.get_type_name() != "Constant")
        capacity = MOST_SIZES * max(kinds.values())
        bounds: Properties = {"CPU_RUNTIME_CACHE_CAPACITY": capacity} if self._device == "CPU" else {}
        return self._compile(model, {**self._options, **bounds})

    def _compile(self, model: Model, options: Properties) -> InferRequest:
        """Return a request of this graph; it runs one inference at a time."""
        try:
            compiled = self._core.compile_model(model, self._device, options)
            actual = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            request = compiled.create_infer_request()
        except RuntimeError as error:
            raise ModelError(f"{self._name}: OpenVINO cannot compile it: {error_text(error)}") from error
        precision = self._options["INFERENCE_PRECISION_HINT"]
        if actual != precision:
            raise ModelError(f"{self._name}: {self._device} would compute in {actual}, not in {precision}")
        return request

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run the engine; see :meth:`~edgekd.runtime.session.Session.run`."""
        self._check(feeds)
        if self._model is None:
            raise ModelError(f"{self._name}: the engine is closed")
        rows = len(feeds[self._batched[0].name]) if self._batched else 1
        if rows == 0:
            raise ModelError(f"{self._name}: OpenVINO cannot run a batch of no rows")
        if rows > 1 and not self._dynamic_batch:
            return run_rows(self, feeds, 1)
        try:
            single = self._single if rows == 1 else None
            return self._run_single(single, feeds) if single else self._sizes.run(self._run_any, feeds, rows)
        except RuntimeError as error:
            raise ModelError(f"{self._name}: OpenVINO failed to run it: {error_text(error)}") from error

    def bind_inputs(self, feeds: Feeds) -> Callable[[], int] | None:
        """Return a function that runs the filled request and returns the time that OpenVINO measured of it."""
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
        request = self._request()
        return from_openvino(request.profiling_info, request.get_compiled_model().get_runtime_model())

    def _request(self) -> InferRequest:
        request = self._single or self._any
        if request is None:
            raise ModelError(f"{self._name}: the engine is closed")
        return request

    def _fill(self, feeds: Feeds) -> None:
        for name, data in self._filled:
            data[...] = feeds[name]

    def _run_single(self, request: InferRequest, feeds: Feeds) -> dict[str, Array]:
        self._fill(feeds)
        request.infer(share_outputs=True)
        # The results are the request's own tensors, which its next run overwrites.
        return {name: data.copy() for name, data in self._results}

    def _run_any(self, feeds: Feeds) -> dict[str, Array]:
        if self._any is None:
            self._any = self._compile_any(self._model)
        # With one thread, infer() loses an error and returns the results of the run before; wait() raises it. Only a
        # graph of dynamic sizes can fail, so _run_single is spared the 10 µs that this takes.
        self._any.start_async(dict(feeds))
        self._any.wait()
        return dict(zip(self._output_names, self._any.results.values(), strict=True))  # copies

    @property
    def open_with(self) -> JsonObject:
        """The arguments that ``Core.import_model`` must be given besides the content of :meth:`export`."""
        return {"device_name": self._device, "config": self._options}

    def export(self) -> bytes:
        """Return the compiled model, at batch 1 where the graph has that."""
        request = self._request()
        stream = io.BytesIO()
        request.get_compiled_model().export_model(stream)
        return stream.getvalue()

    def close(self) -> None:
        """Free the engine."""
        self._core = self._model = self._single = self._any = None
        self._filled = self._results = []

    def __enter__(self) -> OpenVinoSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _spec(port: ConstOutput, model: str) -> TensorSpec:
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
