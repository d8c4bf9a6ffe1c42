"""Stage: INT8 by ONNX Runtime's quantizer, as QDQ, in the scheme that the target states."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.compress.calibrate import Samples, tensor_ranges
from edgekd.compress.graph import drop_outputs, save, unquantize_outputs
from edgekd.errors import ModelError
from edgekd.files import need, quiet

if TYPE_CHECKING:
    from edgekd.target import Calibration, Scheme

#: Files of the stage: with the embeddings, to check; without, to deploy.
ENGINE, DEPLOY = "engine.onnx", "deploy.onnx"


@dataclass(frozen=True)
class Quantized:
    """Result: ``engine.onnx`` and ``deploy.onnx``.

    Attributes:
        quantized_nodes: how many weight-bearing nodes compute in INT8.
        weight_nodes: how many weight-bearing nodes there are.
        sizes: bytes of each file.
    """

    quantized_nodes: int
    weight_nodes: int
    sizes: dict[str, int]


def run(model: Path, samples: Path, scheme: Scheme, calibration: Calibration, folder: Path) -> Quantized:
    """Quantize ``model`` into ``folder``.

    Args:
        model: float ONNX with ``logits`` and ``embedding.<modality>`` outputs.
        samples: ``.npz`` of the calibration split.
        scheme: how the target wants INT8.
        calibration: how ranges are found.
        folder: where the result goes.

    Raises:
        ModelError: ONNX Runtime cannot quantize the graph, or nothing in it could be quantized.
    """
    onnx = need("onnx", "build")
    with tempfile.TemporaryDirectory(dir=folder) as temporary, quiet():
        try:
            quantized = _quantize(model, Samples(samples, calibration), scheme, Path(temporary))
            graph = onnx.load(str(quantized))
        except _failures() as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{model}: ONNX Runtime cannot quantize it: {reason}") from error
    unquantize_outputs(graph)
    done, total = _count(graph)
    if done == 0:
        operators = ", ".join(scheme.operators)
        raise ModelError(f"{model}: nothing in it could be quantized; the scheme quantizes {operators}")
    save(graph, folder / ENGINE)
    drop_outputs(folder / ENGINE, ("logits",), folder / DEPLOY)
    return Quantized(done, total, {name: (folder / name).stat().st_size for name in (ENGINE, DEPLOY)})


def _quantize(model: Path, samples: Samples, scheme: Scheme, work: Path) -> Path:
    ort = need("onnxruntime.quantization", "build")
    onnx = need("onnx", "build")
    onnx.checker.check_model(onnx.load(str(model)), full_check=True)  # ONNX Runtime's tools assume as much
    prepared, quantized, cache = work / "prepared.onnx", work / "quantized.onnx", work / "ranges.json"
    ort.shape_inference.quant_pre_process(str(model), str(prepared))
    ranges = tensor_ranges(prepared, samples, scheme, work / "calibrated.onnx")
    ort.calibrate.save_tensors_data(ranges, cache)
    ort.quantize_static(
        str(prepared),
        str(quantized),
        None,
        calibration_cache_path=str(cache),
        calibrate_method=ranges.calibration_method,
        **_arguments(ort, scheme),
    )
    return quantized


def _failures() -> tuple[type[Exception], ...]:
    """Return what the libraries raise at a graph that they cannot take; ONNX Runtime's errors share no base class."""
    state = need("onnxruntime.capi.onnxruntime_pybind11_state", "build")
    of_runtime = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented)
    of_onnx = (need("onnx.checker", "build").ValidationError, need("onnx.shape_inference", "build").InferenceError)
    malformed = need("google.protobuf.message", "build").DecodeError
    return (*of_runtime, state.RuntimeException, *of_onnx, malformed, RuntimeError, ValueError, TypeError)


def _arguments(ort: Any, scheme: Scheme) -> dict[str, Any]:
    types = {"uint8": ort.QuantType.QUInt8, "int8": ort.QuantType.QInt8}
    return {
        "quant_format": ort.QuantFormat.QDQ,
        "op_types_to_quantize": scheme.operators,
        "per_channel": scheme.per_channel,
        "reduce_range": scheme.reduce_range,
        "activation_type": types[scheme.activations],
        "weight_type": ort.QuantType.QInt8,
        "extra_options": {
            "ActivationSymmetric": scheme.symmetric_activations,
            "WeightSymmetric": True,
            "QuantizeBias": scheme.bias == "int32",
        },
    }


def _count(graph: Any) -> tuple[int, int]:
    """Return how many Conv, Gemm and MatMul nodes read dequantized weights, and how many there are."""
    producer = {name: node.op_type for node in graph.graph.node for name in node.output}
    weighty = [node for node in graph.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    return sum(producer.get(node.input[1]) == "DequantizeLinear" for node in weighty), len(weighty)
