"""One quantizer on one float network, in a process of its own: ``quantize.py PEER SETTING MODEL SAMPLES RESULT``.

It runs in the Python that has the peer installed, with edgekd's checkout on ``PYTHONPATH``. Each peer is called as its
own documentation does. "default" is what it does when told nothing but the model and the samples; the others are the
best that its options allow on an x86 processor without VNNI, by its documentation and by what was measured.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before their imports, which report to their makers otherwise.
os.environ["OLIVE_DISABLE_TELEMETRY"] = os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np

from edgekd.runtime.backends.telemetry import no_telemetry
from edgekd.runtime.measure.machine import package_versions, peak_rss_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Feeds = dict[str, np.ndarray[Any, Any]]

_UINT8 = {"per_channel": True, "reduce_range": True, "activation_type": "QUInt8", "weight_type": "QInt8"}
_MAX = {"calibration_method": "max", "high_precision_dtype": "fp32"}
#: What a peer is told, by peer and setting. All but the defaults keep arithmetic on raw inputs float, by their options
#: to leave out nodes: one scale for features of different units is what breaks a network most.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "ONNX Runtime": {
        "default": {},
        "best": _UINT8,
        "best, float outputs": {**_UINT8, "float_outputs": True},
        "dynamic": {"per_channel": True, "reduce_range": True},
    },
    "NNCF": {"default": {}, "best": {"minmax": True}},
    "NNCF in OpenVINO": {"default": {}, "best": {"overflow_fix": True}},
    "Olive": {
        "default": {},
        "best": {
            "per_channel": True,
            "reduce_range": True,
            "activation_type": "uint8",
            "precision": "int8",
            "prepare_qdq_config": False,  # which would drop reduce_range
        },
    },
    # Left to itself it keeps products of a matrix and a vector float, as which it sees each Gemm at batch 1.
    "ModelOpt": {"default": {}, "best": _MAX, "best, all layers": {**_MAX, "enable_gemv_detection_for_trt": False}},
}
DEFAULT, DYNAMIC = "default", "dynamic"
#: The peer whose result is no ONNX, but OpenVINO's own ``.xml`` with ``.bin``.
IN_OPENVINO = "NNCF in OpenVINO"
#: The distributions that a peer's result depends on.
PACKAGES = {
    "ONNX Runtime": ("onnxruntime", "onnx"),
    "NNCF": ("nncf", "onnx"),
    IN_OPENVINO: ("nncf", "openvino"),
    "Olive": ("olive-ai", "onnxruntime", "onnx"),
    "ModelOpt": ("nvidia-modelopt", "onnxruntime", "onnx"),
}


#: Operators that scale or shift what they are given.
_ARITHMETIC = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Sub"})


def input_ranks(model: Path) -> dict[str, int]:
    """Return how many dimensions each input of a network has; what has a value already is no input."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    return {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input if value.name not in constant}


class Samples:
    """Calibration samples one by one, as often as need be; also a reader of ONNX Runtime's kind.

    Args:
        path: ``.npz`` with an array [N, ...] for each input, by name.
        ranks: How many dimensions each input has. An array of one more is of an input without a batch, such as a state,
            and is given without one.
    """

    def __init__(self, path: Path, ranks: dict[str, int]) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self.inputs = {name: arrays[name] for name in ranks}
        self._ranks = ranks
        self._pending = iter(self)

    def __iter__(self) -> Iterator[Feeds]:
        return (self[row] for row in range(len(self)))

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, row: int) -> Feeds:
        rows = {name: x[row : row + 1] for name, x in self.inputs.items()}
        return {name: x.reshape(x.shape[1:]) if x.ndim > self._ranks[name] else x for name, x in rows.items()}

    def get_next(self) -> Feeds | None:
        """Return the next sample; None after the last."""
        return next(self._pending, None)

    def rewind(self) -> None:
        """Begin again."""
        self._pending = iter(self)


def arithmetic_on_inputs(model: Path) -> list[str]:
    """Return the names of the nodes that compute something with a raw input and have no weights to speak of."""
    import onnx

    graph = onnx.load(str(model)).graph
    inputs = {value.name for value in graph.input}
    return [node.name for node in graph.node if inputs.intersection(node.input) and node.op_type in _ARITHMETIC]


#: The first opset in which weights have a scale for each channel (QuantizeLinear's ``axis``).
_PER_CHANNEL_OPSET = 13


def prepare(model: Path, work: Path, per_channel: bool = False) -> Path:
    """Write the network with its constants folded, as ONNX Runtime asks for, and return the file.

    Args:
        model: The float ONNX.
        work: A folder for the result.
        per_channel: Whether it is converted to an opset that knows weights by channel, where it is of an older one.
    """
    import onnx
    import onnx.version_converter
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = work / "prepared.onnx"
    network = onnx.load(str(model))
    opset = next(entry.version for entry in network.opset_import if entry.domain in ("", "ai.onnx"))
    if per_channel and opset < _PER_CHANNEL_OPSET:
        model = work / "converted.onnx"
        onnx.save(onnx.version_converter.convert_version(network, _PER_CHANNEL_OPSET), str(model))
    # Its inference of symbolic shapes, meant for transformers, fails on some networks of other kinds.
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    return prepared


def onnxruntime(model: Path, samples: Samples, result: Path, work: Path, setting: str) -> None:
    """Quantize with ``quantize_static``, or ``quantize_dynamic``, after the pre-processing that they ask for."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    options = dict(SETTINGS["ONNX Runtime"][setting])
    prepared = prepare(model, work, per_channel=options.get("per_channel", False))
    if setting == DYNAMIC:
        quantize_dynamic(str(prepared), str(result), **options)
        return
    if setting != DEFAULT:
        options["nodes_to_exclude"] = arithmetic_on_inputs(prepared)
    if options.pop("float_outputs", False):
        graph = onnx.load(str(prepared)).graph
        makes = {name: node.op_type for node in graph.node for name in node.output}
        made = sorted({makes[output.name] for output in graph.output})
        options["extra_options"] = {"OpTypesToExcludeOutputQuantization": made}
    for key in options.keys() & {"activation_type", "weight_type"}:
        options[key] = QuantType[options[key]]
    quantize_static(str(prepared), str(result), samples, **options)


def nncf(model: Path, samples: Samples, result: Path, work: Path, setting: str) -> None:
    """Quantize with NNCF's ONNX backend."""
    with no_telemetry():
        import nncf
        import onnx
        from nncf.quantization import advanced_parameters as advanced
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # It fails on a Cast of a constant, which is to be folded before.
    prepared, options = prepare(model, work), {}
    if SETTINGS["NNCF"][setting].get("minmax"):
        options["preset"] = nncf.QuantizationPreset.MIXED
        options["ignored_scope"] = nncf.IgnoredScope(names=arithmetic_on_inputs(prepared))
        if has_attention(model):
            options["model_type"] = nncf.ModelType.TRANSFORMER
        options["advanced_parameters"] = advanced.AdvancedQuantizationParameters(
            overflow_fix=advanced.OverflowFix.ENABLE,
            disable_bias_correction=True,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        )
    found = nncf.quantize(onnx.load(str(prepared)), nncf.Dataset(samples), subset_size=len(samples), **options)
    onnx.save(found, str(result))


def nncf_in_openvino(model: Path, samples: Samples, result: Path, _work: Path, setting: str) -> None:
    """Quantize with NNCF's OpenVINO backend, for OpenVINO."""
    with no_telemetry():
        import nncf
        import openvino
        from nncf.quantization import advanced_parameters as advanced

    network, options = openvino.Core().read_model(str(model)), {}
    if SETTINGS[IN_OPENVINO][setting].get("overflow_fix"):
        options["preset"] = nncf.QuantizationPreset.MIXED
        options["advanced_parameters"] = advanced.AdvancedQuantizationParameters(
            overflow_fix=advanced.OverflowFix.ENABLE
        )
        if has_attention(model):
            options["model_type"] = nncf.ModelType.TRANSFORMER
    found = nncf.quantize(network, nncf.Dataset(samples), subset_size=len(samples), **options)
    openvino.save_model(found, str(result), compress_to_fp16=False)


def has_attention(model: Path) -> bool:
    """Return whether a Softmax weighs what a product of matrices then sums, as in a transformer."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    weighed = {name for node in graph.node if node.op_type == "Softmax" for name in node.output}
    return any(node.op_type == "MatMul" and node.input[0] in weighed for node in graph.node)


def olive(model: Path, samples: Samples, result: Path, work: Path, setting: str) -> None:
    """Quantize with the pass ``OnnxStaticQuantization`` of a workflow."""
    import onnx
    from olive import run
    from olive.data.component.dataset import BaseDataset
    from olive.data.registry import Registry

    rows = [({name: x[0] for name, x in row.items()}, 0) for row in samples]  # each with a label, which is not used
    Registry.register_dataset("samples")(lambda **_: BaseDataset(rows))
    quantize: dict[str, Any] = {
        "type": "OnnxStaticQuantization",
        "data_config": "samples",
        **SETTINGS["Olive"][setting],
    }
    if setting != DEFAULT:
        quantize["nodes_to_exclude"] = arithmetic_on_inputs(model)
    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "data_configs": [{"name": "samples", "load_dataset_config": {"type": "samples"}}],
        "passes": {"quantize": quantize},
        "cache_dir": str(work / "cache"),
        "output_dir": str(work / "output"),
    }
    found = run(config).get_best_candidate()
    onnx.save(onnx.load(found.model_path), str(result))  # its weights lie in a file of their own


def modelopt(model: Path, samples: Samples, result: Path, _work: Path, setting: str) -> None:
    """Quantize with ``modelopt.onnx.quantization``."""
    from modelopt.onnx.quantization import quantize

    excluded = [] if setting == DEFAULT else [f"^{re.escape(name)}$" for name in arithmetic_on_inputs(model)]
    options = {**SETTINGS["ModelOpt"][setting], "nodes_to_exclude": excluded}
    quantize(str(model), calibration_data=samples.inputs, output_path=str(result), **options)


QUANTIZERS: dict[str, Callable[..., None]] = {
    "ONNX Runtime": onnxruntime, "NNCF": nncf, IN_OPENVINO: nncf_in_openvino, "Olive": olive, "ModelOpt": modelopt,
}  # fmt: skip


def main() -> None:
    """Quantize, and write what it cost beside the result."""
    peer, setting = sys.argv[1:3]
    model, path, result = map(Path, sys.argv[3:])
    samples = Samples(path, input_ranks(model))
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        QUANTIZERS[peer](model, samples, result, Path(work), setting)
        seconds = time.perf_counter() - start
    cost = {"seconds": seconds, "peak_rss_bytes": peak_rss_bytes(), "versions": package_versions(PACKAGES[peer])}
    result.with_suffix(".json").write_text(json.dumps(cost), encoding="utf-8")


if __name__ == "__main__":
    main()
