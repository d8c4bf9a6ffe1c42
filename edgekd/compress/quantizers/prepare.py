"""What every quantizer needs: a graph that was checked and cleaned up, and one error where it cannot take it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekd.errors import ModelError
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

#: The float graph that is quantized.
PREPARED = "prepared.onnx"


def prepare(model: Path, work: Path) -> Path:
    """Write a float graph, checked and with its constants folded, into the folder ``work``; return the file.

    What the libraries raise is to be caught by :func:`refusals`.
    """
    onnx = need("onnx", "build")
    ort = need("onnxruntime.quantization", "build")
    prepared = work / PREPARED
    onnx.checker.check_model(onnx.load(str(model)), full_check=True)  # ONNX Runtime's tools assume as much
    ort.shape_inference.quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    return prepared


@contextmanager
def refusals(model: Path, quantizer: str, *own: ModuleType) -> Iterator[None]:
    """Raise what the libraries raise at a graph that they cannot take as one ModelError.

    Args:
        model: what the error names.
        quantizer: who cannot quantize it, in words.
        own: modules with further exceptions. Those of ONNX Runtime share no base class, nor do NNCF's.
    """
    state = need("onnxruntime.capi.onnxruntime_pybind11_state", "build")
    of_onnx = (need("onnx.checker", "build").ValidationError, need("onnx.shape_inference", "build").InferenceError)
    malformed = need("google.protobuf.message", "build").DecodeError
    known = (*(kind for module in (state, *own) for kind in _exceptions(module)), *of_onnx, malformed)
    try:
        yield
    except (*known, RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{model}: {quantizer} cannot quantize it: {reason}") from error


def _exceptions(module: ModuleType) -> tuple[type[Exception], ...]:
    return tuple(x for x in vars(module).values() if isinstance(x, type) and issubclass(x, Exception))
