"""What every quantizer needs: a float graph of one form, and one error for a graph that a library cannot take."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from edgekd.compress.activations.extremes import activation_bytes
from edgekd.compress.activations.ranges import CalibrationSamples
from edgekd.compress.graph import drop_unread, save
from edgekd.compress.oracles.identity import first_difference
from edgekd.compress.quantizers.canonical import make_canonical
from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.stages.artifacts import PREPARED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path
    from types import ModuleType

    from onnx import ModelProto

    from edgekd.config.target import Calibration
    from edgekd.runtime.session import Feeds

#: What libraries raise besides their own errors, at a graph that they were not made for.
_PLAIN = (LookupError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError, ArithmeticError)
#: Libraries that are called for every graph.
_LIBRARIES = frozenset({"onnx", "onnxruntime", "google"})

#: Bytes of activations that one chunk of samples may have.
_ACTIVATION_BYTES = 128_000_000

#: The float graph as it was read, without what no output needs.
_READ = "read.onnx"


class QuantizerRefusal(ModelError):
    """A library cannot take a graph.

    Args:
        model: File of the graph.
        title: What messages call the library.
        reason: First line of what it raised.
    """

    def __init__(self, model: Path, title: str, reason: str) -> None:
        super().__init__(f"{model}: {title} cannot quantize it: {reason}")
        self.reason = reason


def prepare(
    model: Path, feeds: Sequence[Feeds], operators: Collection[str], work: Path
) -> tuple[ModelProto, dict[str, str]]:
    """Write a float graph, checked, folded and in one form, into the folder ``work``.

    Where ONNX Runtime's folding of constants changes what the graph computes, it is left out. The caller catches what
    the libraries raise by :func:`refusals`.

    Args:
        model: File of the float graph.
        feeds: Few samples in chunks, on which the graph is compared with what is made of it.
        operators: The operators that are to be quantized.
        work: The folder.

    Returns:
        The graph, and for each node that must stay float the reason, as in
        :func:`~edgekd.compress.quantizers.canonical.make_canonical`.

    Raises:
        ModelError: The graph computes something else without folding too.
    """
    onnx = need("onnx", "build")
    exact = onnx.load(str(model))
    onnx.checker.check_model(exact, full_check=True)  # ONNX Runtime's tools assume as much
    drop_unread(exact.graph)  # about which it warns
    save(exact, work / _READ)
    graph, strange = _rewritten(operators, work, fold=True)
    difference = first_difference(graph, exact, feeds)
    if difference:
        graph, strange = _rewritten(operators, work, fold=False)
        difference = first_difference(graph, exact, feeds)
    if difference is None:
        return graph, strange
    raise ModelError(f"{model}: '{difference.node}' computes something else before INT8: {difference.reason}")


def _rewritten(operators: Collection[str], work: Path, fold: bool) -> tuple[ModelProto, dict[str, str]]:
    onnx = need("onnx", "build")
    pre_process = need("onnxruntime.quantization", "build").shape_inference.quant_pre_process
    with _silence():
        pre_process(str(work / _READ), str(work / PREPARED), skip_symbolic_shape=True, skip_optimization=not fold)
    graph = onnx.load(str(work / PREPARED))
    strange = make_canonical(graph.graph, operators)
    graph = onnx.shape_inference.infer_shapes(graph)
    save(graph, work / PREPARED)
    return graph, strange


@contextmanager
def refusals(
    model: Path, title: str, error_modules: Sequence[ModuleType] = (), packages: Sequence[str] = ()
) -> Iterator[None]:
    """Raise what libraries raise at a graph that they cannot take as one :class:`QuantizerRefusal`.

    What no library has to do with, a defect of edgekd, passes as it is.

    Args:
        model: The file that the error names.
        title: What the error calls the library that cannot take it.
        error_modules: Modules with further exceptions. Those of ONNX Runtime share no base class, nor do NNCF's.
        packages: Further packages whose code raises exceptions of Python.
    """
    state = need("onnxruntime.capi.onnxruntime_pybind11_state", "build")
    of_onnx = (need("onnx.checker", "build").ValidationError, need("onnx.shape_inference", "build").InferenceError)
    malformed = need("google.protobuf.message", "build").DecodeError
    known = (*(kind for module in (state, *error_modules) for kind in _exceptions(module)), *of_onnx, malformed)
    try:
        yield
    except (*known, *_PLAIN) as error:
        if not isinstance(error, known) and _LIBRARIES.union(packages).isdisjoint(_passed(error)):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        kind = "" if isinstance(error, (*known, ValueError, RuntimeError)) else f"{type(error).__name__}: "
        raise QuantizerRefusal(model, title, f"{kind}{reason}") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Silence ONNX Runtime, which logs a traceback of what it cannot fold, and goes on without."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _passed(error: BaseException) -> Iterator[str]:
    """Yield the package of each function that an exception passed."""
    trace = error.__traceback__
    while trace is not None:
        yield str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        trace = trace.tb_next


def _exceptions(module: ModuleType) -> tuple[type[Exception], ...]:
    return tuple(x for x in vars(module).values() if isinstance(x, type) and issubclass(x, Exception))


def open_samples(model: Path, samples: Path, calibration: Calibration) -> CalibrationSamples:
    """Return the calibration samples, as many at a time as memory holds activations of; one for a graph of batch 1.

    Raises:
        ModelError: The graph cannot be read, or does not run.
    """
    with refusals(model, "ONNX Runtime"):
        inputs = need("onnx", "build").load(str(model), load_external_data=False).graph.input
        shapes = (value.type.tensor_type.shape.dim for value in inputs)
        one = CalibrationSamples(samples, msgspec.structs.replace(calibration, chunk=1))
        if any(shape[0].dim_value == 1 for shape in shapes if shape):
            return one
        names = {value.name for value in inputs}
        row = activation_bytes(model, {name: x for name, x in next(iter(one)).items() if name in names})
    chunk = max(1, min(calibration.chunk, _ACTIVATION_BYTES // max(row, 1)))
    return replace(one, calibration=msgspec.structs.replace(calibration, chunk=chunk))
