"""INT8 by ONNX Runtime's quantizer, in the scheme of a target and with ranges of edgekd's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.compress.activations.ranges import CalibrationSamples, find_ranges
from edgekd.compress.quantizers.quantizer import Quantizer
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path
    from types import ModuleType

    from edgekd.config.target import Scheme


def write(prepared: Path, samples: CalibrationSamples, scheme: Scheme, work: Path, floats: Collection[str]) -> Path:
    """Write a float graph as INT8, weights rounded to the nearest level, and return the file.

    Args:
        prepared: The float graph, its constants folded.
        samples: The samples that ranges are found on, and how.
        scheme: How the target wants INT8.
        work: A folder for the result and the files on the way.
        floats: Names of the nodes that stay float.

    Raises:
        ModelError: NaN or an overflow reaches an output of the graph.
    """
    ort = need("onnxruntime.quantization", "build")
    quantized, cache = work / "quantized.onnx", work / "ranges.json"
    ranges = find_ranges(prepared, samples, scheme)
    ort.calibrate.save_tensors_data(ranges, cache)
    ort.quantize_static(
        str(prepared),
        str(quantized),
        None,
        calibration_cache_path=str(cache),
        calibrate_method=ranges.calibration_method,
        nodes_to_exclude=sorted(floats),
        **_arguments(ort, scheme, _weights_of_one_scale(prepared)),
    )
    return quantized


def _weights_of_one_scale(prepared: Path) -> list[str]:
    """Return the weights of grouped ConvTranspose nodes.

    ONNX has one axis of scales for each tensor, and along the one of their output channels all groups share a scale:
    the channels of one group only, which ONNX Runtime's quantizer takes for those of the whole bias.
    """
    onnx = need("onnx", "build")
    graph = onnx.load(str(prepared)).graph
    stored = {tensor.name for tensor in graph.initializer}
    nodes = (node for node in graph.node if node.op_type == "ConvTranspose" and node.input[1] in stored)
    get = onnx.helper.get_node_attr_value
    return [
        node.input[1] for node in nodes if any(x.name == "group" for x in node.attribute) and get(node, "group") > 1
    ]


def _arguments(ort: ModuleType, scheme: Scheme, of_one_scale: Sequence[str]) -> dict[str, object]:
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
            "TensorQuantOverrides": {name: [{"symmetric": True}] for name in of_one_scale},
        },
    }


QUANTIZER = Quantizer("qdq", "ONNX Runtime", write, ("onnx", "onnxruntime"))
