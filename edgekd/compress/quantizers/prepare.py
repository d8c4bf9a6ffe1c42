"""What every quantizer needs: a graph that is checked and simplified, and one error for a graph that it cannot take."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.compress.masks import survey
from edgekd.errors import ModelError
from edgekd.files import need, quiet
from edgekd.stages.artifacts import PREPARED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

    from edgekd.compress.masks import Masked
    from edgekd.compress.quantizers.quantizer import Quantizer
    from edgekd.compress.ranges import CalibrationSamples
    from edgekd.config.target import Scheme


def prepare(model: Path, work: Path) -> Path:
    """Write a float graph, checked and with its constants folded, into the folder ``work``, and return the file.

    The caller catches what the libraries raise by :func:`refusals`.
    """
    onnx = need("onnx", "build")
    ort = need("onnxruntime.quantization", "build")
    prepared = work / PREPARED
    onnx.checker.check_model(onnx.load(str(model)), full_check=True)  # ONNX Runtime's tools assume as much
    ort.shape_inference.quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    return prepared


@dataclass(frozen=True)
class QuantizedGraph:
    """A QDQ graph as a quantizer wrote it, its weights rounded to the nearest level.

    Attributes:
        path: Its file.
        masked: The tensors of the float graph that must not be rounded; see :mod:`edgekd.compress.masks`.
    """

    path: Path
    masked: Mapping[str, Masked]


def write_quantized(
    quantizer: Quantizer, model: Path, samples: CalibrationSamples, scheme: Scheme, work: Path
) -> QuantizedGraph:
    """Write the QDQ graph of a float graph.

    Args:
        quantizer: The library that writes it.
        model: The float graph.
        samples: The samples that ranges are found on, and how.
        scheme: How the target wants INT8.
        work: An existing folder for the files; the float graph with its constants folded is left there too.

    Raises:
        ModelError: The quantizer cannot take the graph, or NaN or an overflow reaches an output of it.
    """
    with quiet(), refusals(model, quantizer.title, quantizer.error_modules()):
        prepared = prepare(model, work)
        masked = survey(prepared, samples)
        return QuantizedGraph(quantizer.write(prepared, samples, scheme, work), masked)


@contextmanager
def refusals(model: Path, title: str, error_modules: Sequence[ModuleType] = ()) -> Iterator[None]:
    """Raise what libraries raise at a graph that they cannot take as one ModelError.

    Args:
        model: The file that the error names.
        title: What the error calls the library that cannot take it.
        error_modules: Modules with further exceptions. Those of ONNX Runtime share no base class, nor do NNCF's.
    """
    state = need("onnxruntime.capi.onnxruntime_pybind11_state", "build")
    of_onnx = (need("onnx.checker", "build").ValidationError, need("onnx.shape_inference", "build").InferenceError)
    malformed = need("google.protobuf.message", "build").DecodeError
    known = (*(kind for module in (state, *error_modules) for kind in _exceptions(module)), *of_onnx, malformed)
    try:
        yield
    except (*known, RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{model}: {title} cannot quantize it: {reason}") from error


def _exceptions(module: ModuleType) -> tuple[type[Exception], ...]:
    return tuple(x for x in vars(module).values() if isinstance(x, type) and issubclass(x, Exception))
