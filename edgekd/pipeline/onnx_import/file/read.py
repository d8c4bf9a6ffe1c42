"""Read a user's ONNX model, refuse one that no build can start from, and convert the others to one form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import all_nodes
from edgekd.compress.precision import is_quantized
from edgekd.errors import ModelError, TaskError, nearest
from edgekd.files import need
from edgekd.pipeline.onnx_import.file.fixed import fold
from edgekd.pipeline.onnx_import.file.integrity import require_size, require_text, require_types, stored_tensors
from edgekd.pipeline.onnx_import.file.normalize import normalize
from edgekd.pipeline.onnx_import.file.single import make_single
from edgekd.pipeline.onnx_import.file.stored import fold_stored
from edgekd.pipeline.onnx_import.file.trial import require_end
from edgekd.pipeline.onnx_import.graph import CONTROL_FLOW, keep_tensors
from edgekd.runtime.backends.onnxruntime import open_engine

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

#: Q/DQ with one scale for each channel begins with this opset, which belongs to ONNX 1.8 and its IR version 7.
_OPSET, _IR_VERSION = 13, 7

#: Oldest opset that ONNX Runtime runs.
_OLDEST = 7

#: Domains of which ONNX Runtime has some operators; of other domains it has none.
_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})


def read_model(
    path: Path, keep: Collection[str] = (), notes: list[str] | None = None, *, as_is: bool = False
) -> ModelProto:
    """Read a model for inference.

    Args:
        path: File of the model; its external data, if any, lies beside it.
        keep: Names of tensors that the result must still have.
        notes: Sentences for the user on what was made float are added here.
        as_is: Whether it may be quantized, and stays in its own precision and opset. Otherwise weights that are stored
            in integers for float arithmetic become float, and arithmetic in float16 becomes float32.

    Returns:
        A ``ModelProto`` that computes the same: opset 13 or later, functions inlined, weights of ``Constant`` nodes as
        initializers, and none of these among the inputs. ``If`` and ``Loop`` are gone where ONNX Runtime can fold them.

    Raises:
        ModelError: The model cannot be read, has a loop that does not end, is quantized already, is a training graph,
            cannot be converted to opset 13, or has operators that ONNX Runtime does not know.
        TaskError: The model has no tensor of a name in ``keep``.
    """
    model = _load(path)
    _require_inference(model, path)
    if _opset(model) < _OLDEST:
        raise _old(
            path, _opset(model), f"ONNX Runtime runs {_OLDEST} and later, and could not tell whether it is right"
        )
    if model.functions:
        model = need("onnx.inliner", "build").inline_local_functions(model)
    if not as_is:
        said = [*fold_stored(model), *make_single(model)]
        if notes is not None:
            notes += said
        _require_float(model, path)
    _require_tensors(model, keep)
    keep_tensors(model.graph)
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in stored]:  # as IR versions before 4 ask for
        model.graph.input.remove(value)
    if not model.graph.input:
        raise ModelError(f"{path}: has no inputs, so it computes the same whatever the samples are")
    require_end(model, path, {})
    model.ir_version = max(model.ir_version, _IR_VERSION)
    _require_known_operators(model, path)
    if any(node.op_type in CONTROL_FLOW for node in model.graph.node):
        model = fold(model, keep)
    model = model if as_is else _converted(model, path)
    _lift_constants(model.graph)
    return model


def weight_files(path: Path) -> list[Path]:
    """Return the existing files beside a model in which it keeps its weights.

    A file that is no model has none: :func:`read_model` says what is wrong with it.
    """
    onnx = need("onnx", "build")
    outside = onnx.external_data_helper
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
        tensors = filter(outside.uses_external_data, stored_tensors(model))
        names = {outside.ExternalDataInfo(tensor).location for tensor in tensors}
    except (need("google.protobuf.message", "build").DecodeError, OSError, ValueError):
        return []
    return [path.parent / name for name in sorted(names) if _is_beside(path, name)]


def _is_beside(path: Path, name: str) -> bool:
    """Whether a name is of a file in a model's own folder or below it, where weights may lie."""
    file = path.parent / name
    return not Path(name).is_absolute() and ".." not in Path(name).parts and file.is_file() and not file.is_symlink()


def _load(path: Path) -> ModelProto:
    onnx = need("onnx", "build")
    malformed = need("google.protobuf.message", "build").DecodeError
    try:
        model: ModelProto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except malformed as error:
        raise ModelError(f"{path}: is not an ONNX model, or only a part of one") from error
    require_text(model, path)
    if not model.graph.node:
        raise ModelError(f"{path}: is not an ONNX model: there is no graph in it")
    require_types(model, path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"{path}: keeps its weights in files of their own, and one cannot be read: {_first_line(error)}; "
            "put them beside the model, under the names that they were exported with"
        ) from error
    require_size(model, path)
    normalize(model, path)
    try:
        onnx.checker.check_model(model)
    except _refusals() as error:
        raise ModelError(f"{path}: is not valid ONNX: {_first_line(error)}") from error
    return model


def _refusals() -> tuple[type[Exception], ...]:
    """Return the exceptions by which ONNX refuses a model, which share no base class."""
    onnx = need("onnx", "build")
    return onnx.checker.ValidationError, need("onnx.shape_inference", "build").InferenceError


def _require_float(model: ModelProto, path: Path) -> None:
    operators = [node.op_type for node in all_nodes(model.graph) if is_quantized(node.op_type)]
    if operators:
        kinds = ", ".join(sorted(set(operators)))
        raise ModelError(
            f"{path}: is quantized already ({len(operators)} nodes: {kinds}); give the float model it is from, or "
            "--as-is (as_is in [model]) to check, profile and bundle it as it is"
        )


def _require_inference(model: ModelProto, path: Path) -> None:
    constants = dict(_constants(model.graph))
    training_node = next((node for node in all_nodes(model.graph) if _trains(node, constants)), None)
    if training_node is not None or model.training_info:
        what = (
            f"node '{training_node.name}' ({training_node.op_type}) is in training mode"
            if training_node
            else "it has training steps"
        )
        raise ModelError(f"{path}: {what}; export the model for inference, after model.eval()")


def _trains(node: NodeProto, constants: dict[str, NDArray[np.generic]]) -> bool:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "BatchNormalization":  # before opset 14 it trains where its running statistics are outputs
        return bool(attributes.get("training_mode")) or len([name for name in node.output if name]) > 1
    if node.op_type == "Dropout" and len(node.input) > 2:
        return bool(constants.get(node.input[2], np.False_))
    return str(node.domain) == "ai.onnx.preview.training"


def _require_tensors(model: ModelProto, names: Collection[str]) -> None:
    graph = model.graph
    known = {value.name for value in graph.input} | {name for node in graph.node for name in node.output if name}
    for name in names:
        if name not in known:
            raise TaskError(f"taps: the model has no tensor '{name}'{nearest(name, known)}")


def _require_known_operators(model: ModelProto, path: Path) -> None:
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in all_nodes(model.graph) if n.domain not in _KNOWN_DOMAINS})
    try:
        open_engine(model.SerializeToString(), name=str(path)).close()
    except ModelError as error:
        if not foreign:
            raise
        raise ModelError(
            f"{path}: has operators that ONNX Runtime does not know: {', '.join(foreign)}; export the model with "
            "ONNX's own operators, or with a function of them for each"
        ) from error


def _converted(model: ModelProto, path: Path) -> ModelProto:
    opset = _opset(model)
    if opset >= _OPSET:
        return model
    onnx = need("onnx", "build")
    convert = need("onnx.version_converter", "build")
    if control := sorted({node.op_type for node in model.graph.node if node.op_type in CONTROL_FLOW}):
        # ONNX's converter leaves the graphs inside as they are, where an operator may mean something else by then.
        raise _old(path, opset, f"it has control flow ({', '.join(control)})")
    try:
        converted: ModelProto = convert.convert_version(model, _OPSET)
        onnx.checker.check_model(converted, full_check=True)
    except (convert.ConvertError, RuntimeError, *_refusals()) as error:
        raise _old(path, opset, _first_line(error)) from error
    return converted


def _opset(model: ModelProto) -> int:
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), _OPSET)


def _old(path: Path, opset: int, reason: str) -> ModelError:
    return ModelError(
        f"{path}: is of opset {opset}, INT8 needs {_OPSET} or later, and it cannot be converted here: {reason}; export "
        f"it again with opset {_OPSET} or later"
    )


def _lift_constants(graph: GraphProto) -> None:
    """Turn the tensors of ``Constant`` nodes into initializers, in place: quantizers take only these for weights."""
    numpy_helper = need("onnx", "build").numpy_helper
    lifted = dict(_constants(graph))
    kept = [node for node in graph.node if node.op_type != "Constant" or node.output[0] not in lifted]
    graph.ClearField("node")
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in lifted.items())


def _constants(graph: GraphProto) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield the values of ``Constant`` nodes, except strings and sparse tensors, which are never weights."""
    for node in graph.node:
        attribute = next(iter(node.attribute), None)
        if node.op_type != "Constant" or attribute is None:
            continue
        match attribute.name:
            case "value":
                yield node.output[0], _array(attribute.t)
            case "value_float":
                yield node.output[0], np.array(attribute.f, np.float32)
            case "value_floats":
                yield node.output[0], np.array(attribute.floats, np.float32)
            case "value_int":
                yield node.output[0], np.array(attribute.i, np.int64)
            case "value_ints":
                yield node.output[0], np.array(attribute.ints, np.int64)


def _array(tensor: TensorProto) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = need("onnx", "build").numpy_helper.to_array(tensor)
    except ValueError as error:
        raise ModelError(f"the constant '{tensor.name}' of the model does not have the shape that it states") from error
    return array


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
