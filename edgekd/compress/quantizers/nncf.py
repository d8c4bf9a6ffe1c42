"""INT8 by NNCF, OpenVINO's quantizer, on its ONNX backend: the result stays ONNX, as QDQ."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from edgekd.compress.graph import save
from edgekd.compress.quantizers.quantizer import Quantizer
from edgekd.compress.quantizers.unsigned import make_unsigned
from edgekd.files import need
from edgekd.runtime.backends.telemetry import no_telemetry

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path
    from types import ModuleType

    from edgekd.compress.activations.ranges import CalibrationSamples
    from edgekd.config.target import Scheme


def write(prepared: Path, samples: CalibrationSamples, scheme: Scheme, work: Path, floats: Collection[str]) -> Path:
    """Write a float graph as INT8, weights rounded to the nearest level, and return the file.

    Ranges are the extremes over all samples, whatever ranges their calibration names: NNCF's default is an average
    over samples, which clips heavy tails, and its bias correction undoes the gain. NNCF itself decides the type of
    each activation (uint8 where none is negative, else int8), of which int8 becomes uint8 where the scheme wants that,
    and leaves biases float.

    Args:
        prepared: The float graph, its constants folded.
        samples: The samples that ranges are found on, in chunks; the chunks' size does not change the result.
        scheme: Which operators compute in INT8, whether zero points are free, and the range of weights.
        work: A folder for the result and the files on the way.
        floats: Names of the nodes that stay float.

    Raises:
        MissingDependency: NNCF, ONNX or ONNX Runtime is not installed.
    """
    nncf = _import()
    quantized = work / "nncf.onnx"
    with redirect_stdout(io.StringIO()):  # NNCF draws progress bars, and stdout may be a program's.
        graph = need("onnx", "build").load(str(prepared))
        ignored = {node.name for node in graph.graph.node if node.op_type not in scheme.operators}.union(floats)
        scope = nncf.IgnoredScope(names=sorted(ignored), validate=False)
        dataset = nncf.Dataset(samples)
        written = nncf.quantize(graph, dataset, ignored_scope=scope, **_arguments(nncf, samples, scheme))
        if scheme.activations == "uint8":
            make_unsigned(written.graph)
        save(written, quantized)
    return quantized


def _import() -> ModuleType:
    with no_telemetry():
        nncf: ModuleType = need("nncf", "build")
    return nncf


def _arguments(nncf: ModuleType, samples: CalibrationSamples, scheme: Scheme) -> dict[str, object]:
    advanced = need("nncf.quantization.advanced_parameters", "build")
    extremes = need("nncf.quantization.range_estimator", "build").RangeEstimatorParametersSet.MINMAX
    fix = advanced.OverflowFix.ENABLE if scheme.reduce_range else advanced.OverflowFix.DISABLE
    return {
        "preset": nncf.QuantizationPreset.PERFORMANCE
        if scheme.symmetric_activations
        else nncf.QuantizationPreset.MIXED,
        "target_device": nncf.TargetDevice.CPU,
        "subset_size": samples.calibration.samples,  # counts chunks, of which there are no more than samples
        "advanced_parameters": advanced.AdvancedQuantizationParameters(
            overflow_fix=fix,
            disable_bias_correction=True,
            weights_quantization_params=advanced.QuantizationParameters(per_channel=scheme.per_channel),
            activations_range_estimator_params=extremes,
        ),
    }


QUANTIZER = Quantizer("nncf", "NNCF", write, ("onnx", "onnxruntime", "nncf"), lambda: (_import().errors,))
