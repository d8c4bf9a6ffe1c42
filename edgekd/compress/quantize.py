"""Stage: write the network in every precision that the target has; INT8 as QDQ, in the scheme that it states."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgekd.compress.fp16 import to_half
from edgekd.compress.graph import drop_outputs, save, unquantize_outputs
from edgekd.compress.quantizers import nncf, prepare
from edgekd.compress.range_search import SAMPLES, shrink_ranges
from edgekd.compress.ranges import CalibrationSamples, tensor_ranges
from edgekd.compress.rounding import reconstruct
from edgekd.errors import ModelError, TargetError
from edgekd.files import need, quiet

if TYPE_CHECKING:
    from edgekd.config.target import Calibration, Precision, Quantizer, Scheme, Target

#: Files of the stage: with the embeddings, to check; without, to deploy.
ENGINE, DEPLOY = "engine.onnx", "deploy.onnx"
#: Beside them, of INT8: the float graph that was quantized, and the QDQ graph before anything became FP16.
PREPARED, QDQ = prepare.PREPARED, "qdq.onnx"
#: Samples that weights are reconstructed on: as many as this many bytes hold, but no fewer than that. Each of several
#: passes runs all of them; large ones take long, and have many places to look at.
_BYTES, _FEWEST = 32_000_000, 128
#: Of symmetric INT8 weights, the largest, by ``Scheme.reduce_range``.
_LARGEST = {True: 64, False: 127}


@dataclass(frozen=True)
class CandidateSpec:
    """One way to write the network for a target: a candidate for what ships.

    Attributes:
        precision: what its weights and activations are, e.g. "int8".
        quantizer: who writes INT8; None where nothing is quantized.
    """

    precision: Precision
    quantizer: Quantizer | None

    @property
    def name(self) -> str:
        """Name of the candidate, and of its folder: "int8", "int8-nncf", "float32"."""
        return self.precision if self.quantizer in (None, "qdq") else f"{self.precision}-{self.quantizer}"


@dataclass(frozen=True)
class Candidate:
    """The graphs of one way, ``engine.onnx`` and ``deploy.onnx`` in the folder of its name.

    Attributes:
        name: of its :class:`CandidateSpec`.
        precision: of its :class:`CandidateSpec`.
        quantized_nodes: how many weight-bearing nodes compute in INT8.
        weight_nodes: how many weight-bearing nodes there are.
        sizes: bytes of each file.
    """

    name: str
    precision: str
    quantized_nodes: int
    weight_nodes: int
    sizes: dict[str, int]


def ways(target: Target, precision: Literal["best"] | Precision) -> tuple[CandidateSpec, ...]:
    """Return the candidates for a target, the preferred first.

    Args:
        target: which precisions and quantizers it has.
        precision: what the recipe asks for; "best" for all that the target has.

    Raises:
        TargetError: the target does not have the precision that was asked for.
    """
    if precision != "best" and precision not in target.precisions:
        raise TargetError(
            f"[quantize] precision = '{precision}': target '{target.name}' has {', '.join(target.precisions)} only"
        )
    wanted = target.precisions if precision == "best" else [precision]
    return tuple(
        CandidateSpec(kind, quantizer)
        for kind in wanted
        for quantizer in (target.quantizers if kind == "int8" else [None])
    )


def run(
    way: CandidateSpec, model: Path, samples: Path, scheme: Scheme, calibration: Calibration, folder: Path
) -> Candidate:
    """Write ``model`` in one way into the folder of its name; of INT8 also ``prepared.onnx`` and ``qdq.onnx``.

    Args:
        way: in which precision, and by whom.
        model: float ONNX with ``logits`` and ``embedding.<modality>`` outputs.
        samples: ``.npz`` of the calibration split.
        scheme: how the target wants INT8.
        calibration: how ranges and weights are chosen.
        folder: where the folder goes.

    Raises:
        ModelError: the quantizer cannot take the graph, or nothing in it could be quantized.
    """
    onnx = need("onnx", "build")
    if not way.quantizer:
        return finish(onnx.load(str(model)), way, scheme, folder / way.name)
    with tempfile.TemporaryDirectory(dir=folder) as temporary, quiet():
        chunks = open_samples(model, samples, calibration)
        graph = _quantized(way.quantizer, model, chunks, scheme, Path(temporary))
        if not _count(graph)[0]:
            operators = ", ".join(scheme.operators)
            raise ModelError(f"{model}: nothing in it could be quantized; the scheme quantizes {operators}")
        floats = onnx.load(str(Path(temporary) / PREPARED))
        _improve(graph, floats, chunks, scheme)
        candidate = finish(graph, way, scheme, folder / way.name)
    save(floats, folder / way.name / PREPARED)
    save(graph, folder / way.name / QDQ)
    return candidate


def finish(graph: Any, way: CandidateSpec, scheme: Scheme, place: Path) -> Candidate:
    """Write a graph's two variants, ``engine.onnx`` and ``deploy.onnx``.

    Args:
        graph: float, or QDQ before FP16, with ``logits`` and ``embedding.<modality>`` outputs; it is left as it is.
        way: in which precision, and by whom.
        scheme: whether the rest of INT8 becomes FP16.
        place: the folder, which is made.

    Raises:
        ModelError: the graph cannot be written in FP16.
    """
    done, total = _count(graph)
    if way.precision == "float16" or (way.quantizer and scheme.rest == "float16"):
        engine = to_half(graph)
    else:
        engine = need("onnx", "build").ModelProto()
        engine.CopyFrom(graph)
    engine.graph.ClearField("value_info")  # shapes on the way, which every library infers for itself
    place.mkdir(exist_ok=True)
    save(engine, place / ENGINE)
    drop_outputs(place / ENGINE, ("logits",), place / DEPLOY)
    sizes = {name: (place / name).stat().st_size for name in (ENGINE, DEPLOY)}
    return Candidate(way.name, way.precision, done, total, sizes)


def _quantized(quantizer: Quantizer, model: Path, samples: CalibrationSamples, scheme: Scheme, work: Path) -> Any:
    """Return the QDQ graph, weights rounded to the nearest; the float graph is left in ``work``."""
    onnx = need("onnx", "build")
    if quantizer == "nncf":
        graph = onnx.load(str(nncf.quantize(model, samples, scheme, work)))
    else:
        with prepare.refusals(model, "ONNX Runtime"):
            graph = onnx.load(str(_quantize(model, samples, scheme, work)))
    unquantize_outputs(graph)
    return graph


def _improve(graph: Any, floats: Any, samples: CalibrationSamples, scheme: Scheme) -> None:
    """Choose ranges and weights as the calibration says, in place."""
    if samples.calibration.method == "gram":
        shrink_ranges(graph, floats, samples.fewer(SAMPLES))
    if samples.calibration.rounding == "reconstruct":
        few = samples.fewer(max(_FEWEST, _BYTES // samples.row_bytes))
        reconstruct(graph, floats, few, _LARGEST[scheme.reduce_range])


def _quantize(model: Path, samples: CalibrationSamples, scheme: Scheme, work: Path) -> Path:
    ort = need("onnxruntime.quantization", "build")
    prepared, quantized, cache = prepare.prepare(model, work), work / "quantized.onnx", work / "ranges.json"
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


def open_samples(model: Path, samples: Path, calibration: Calibration) -> CalibrationSamples:
    """Return the samples to calibrate with, one at a time for a graph that takes no more.

    Raises:
        ModelError: the graph cannot be read.
    """
    with prepare.refusals(model, "ONNX Runtime"):
        inputs = need("onnx", "build").load(str(model), load_external_data=False).graph.input
    shapes = (value.type.tensor_type.shape.dim for value in inputs)
    takes_one_row = any(shape[0].dim_value == 1 for shape in shapes if shape)
    return CalibrationSamples(samples, msgspec.structs.replace(calibration, chunk=1) if takes_one_row else calibration)


def _count(graph: Any) -> tuple[int, int]:
    """Return how many Conv, Gemm and MatMul nodes read dequantized weights, and how many there are."""
    producer = {name: node.op_type for node in graph.graph.node for name in node.output}
    weighty = [node for node in graph.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    return sum(producer.get(node.input[1]) == "DequantizeLinear" for node in weighty), len(weighty)
