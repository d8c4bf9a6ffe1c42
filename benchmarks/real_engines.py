"""Engines as their makers' documentation opens them, each with one thread: ONNX Runtime, OpenVINO, edgekd's bundles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from peers.quantize import Samples
from side_by_side import ROWS, THREADS

from edgekd.runtime.backends.telemetry import no_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edgekd.runtime.session import Array, Feeds


@dataclass(frozen=True)
class Engine:
    """An open engine.

    Attributes:
        call: Runs one inference.
        outputs: The names of what it returns, in order.
        ranks: How many dimensions each input has.
    """

    call: Callable[[Feeds], Any]
    outputs: tuple[str, ...]
    ranks: dict[str, int]

    def __call__(self, feeds: Feeds) -> Any:
        """Return the outputs of one inference, in order."""
        return self.call(feeds)


def open_file(path: Path) -> Engine:
    """Open ONNX in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = THREADS, 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = tuple(output.name for output in session.get_outputs())
    ranks = {item.name: len(item.shape) for item in session.get_inputs()}
    return Engine(lambda feeds: session.run(None, feeds), names, ranks)


def open_bundle(folder: Path) -> Engine:
    """Open a bundle of edgekd, released or not, in the library that it is for; inputs go unchecked, as peers' do."""
    import edgekd

    bundle = edgekd.load(folder, threads=THREADS, allow_rejected=True, check_finite=False)
    names = tuple(spec.name for spec in bundle.outputs)
    ranks = {spec.name: len(spec.shape) for spec in bundle.inputs}
    return Engine(lambda feeds: list(bundle.run(feeds).values()), names, ranks)


def open_openvino(path: Path, samples: Path) -> Engine:
    """Open OpenVINO's ``.xml``, or ONNX, in OpenVINO on a processor, for inputs of the samples' sizes."""
    with no_telemetry():
        import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    ranks = {port.any_name: len(port.partial_shape) for port in model.inputs}
    sizes = {name: x.shape for name, x in Samples(samples, ranks)[0].items()}
    model.reshape({port: list(sizes[port.any_name]) for port in model.inputs})
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    names = tuple(port.any_name for port in model.outputs)
    # The fastest way that we found: its own tensors are filled in place, and its results copied, for the next inference
    # overwrites them.
    inputs = {port.any_name: request.get_tensor(port).data for port in request.model_inputs}
    outputs = [request.get_tensor(port).data for port in request.model_outputs]

    def call(feeds: Feeds) -> list[Array]:
        for name, data in inputs.items():
            data[...] = feeds[name]
        request.infer(share_outputs=True)
        return [data.copy() for data in outputs]

    return Engine(call, names, ranks)


def read_feeds(samples: Path, engine: Any) -> list[Feeds]:
    """Return the first samples one by one, as an open engine takes them."""
    found = Samples(samples, engine.ranks)
    return [found[row] for row in range(min(ROWS, len(found)))]


def run_all(opener: Callable[[], Engine], samples: Path, wanted: Mapping[str, str]) -> dict[str, Array]:
    """Run all samples one by one, and return the wanted outputs of all: for each [N, ...].

    An output whose first dimension is a batch of 1 loses it for the samples'; any other keeps its dimensions.
    """
    engine = opener()
    rows = [dict(zip(engine.outputs, engine(feeds), strict=True)) for feeds in Samples(samples, engine.ranks)]
    return {name: _join([np.asarray(row[name]) for row in rows]) for name in wanted}


def _join(rows: list[Array]) -> Array:
    joined = np.concatenate(rows) if rows[0].ndim and rows[0].shape[0] == 1 else np.stack(rows)
    return joined.astype(np.float32)
