"""Inputs and sizes that never change: branches that they decide are decided once, when the model is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import all_nodes, copy
from edgekd.errors import ModelError, TaskError, nearest
from edgekd.files import need, quiet, scratch_folder
from edgekd.gram.npz import INPUT_PREFIX
from edgekd.pipeline.onnx_import.graph import CONTROL_FLOW, add_outputs
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.session import open_arrays

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from onnx import ModelProto, ValueInfoProto

    from edgekd.pipeline.onnx_import.samples import NpzSamples
    from edgekd.runtime.session import Array


def fold(model: ModelProto, keep: Collection[str]) -> ModelProto:
    """Return the model after ONNX Runtime's basic optimisations, which fold what depends on constants alone."""
    onnx, ort = need("onnx", "build"), need("onnxruntime", "build")
    outputs = [output.name for output in model.graph.output]
    with scratch_folder() as folder, quiet():
        path = folder / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        ort.InferenceSession(add_outputs(model, keep).SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded: ModelProto = onnx.load(str(path))
    for output in [output for output in folded.graph.output if output.name not in outputs]:
        folded.graph.output.remove(output)
    used = {node.domain for node in all_nodes(folded.graph)}
    for domain in [item for item in folded.opset_import if item.domain and item.domain not in used]:
        folded.opset_import.remove(domain)
    return folded


def fixed_values(model: ModelProto, fixed: Mapping[str, float], path: Path) -> dict[str, Array]:
    """Return the array of each input that never changes; a size that the model leaves open is 1.

    Args:
        model: The model.
        fixed: The number that each such input is, everywhere in it.
        path: File of the model, for errors.

    Raises:
        TaskError: The model has no such input.
        ModelError: The input is no tensor of numbers, has no shape, or its type cannot hold the number.
    """
    inputs = {value.name: value for value in model.graph.input}
    values = {}
    for name, number in fixed.items():
        if name not in inputs:
            raise TaskError(f"fix {name}={number:g}: the model has no input '{name}'{nearest(name, inputs)}")
        values[name] = _filled(inputs[name], number, path)
    if fixed and len(fixed) == len(inputs):
        raise ModelError(f"{path}: every input is fixed, so there is nothing left to feed")
    return values


def _filled(value: ValueInfoProto, number: float, path: Path) -> Array:
    tensor = value.type.tensor_type
    where = f"{path}: fix {value.name}={number:g}: the input"
    if not tensor.HasField("shape"):
        raise ModelError(f"{where} has no shape; export the model with one")
    dtype = np.dtype(need("onnx", "build").helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if dtype.kind not in "biuf":
        raise ModelError(f"{where} is of {dtype}, and can be fixed to no number")
    with np.errstate(over="ignore", invalid="ignore"):
        filled = np.full([max(size.dim_value, 1) for size in tensor.shape.dim], number, np.float64).astype(dtype)
    if not np.isfinite(filled.astype(np.float64)).all() or (dtype.kind != "f" and (filled != number).any()):
        raise ModelError(f"{where} is {dtype}, which cannot hold {number:g}")
    return filled


def fix_inputs(model: ModelProto, values: Mapping[str, Array], keep: Collection[str]) -> ModelProto:
    """Return a model in which these inputs are constants, and the branches that they decide are folded.

    Args:
        model: The model, which is changed.
        values: The array of each such input.
        keep: Names of tensors that the result must still have.
    """
    if not values:
        return model
    numpy_helper = need("onnx", "build").numpy_helper
    for value in [value for value in model.graph.input if value.name in values]:
        model.graph.input.remove(value)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in values.items())
    return fold(model, keep) if _control(model) else model


def settle_branches(model: ModelProto, samples: NpzSamples, keep: Collection[str], notes: list[str]) -> ModelProto:
    """Return a model without those branches that the sizes of its inputs decide, for the sizes that the samples have.

    A model with control flow runs one sample at a time already. It stays as it is where its sizes decide nothing, or
    where it does not open with them.

    Args:
        model: A model whose inputs have a batch dimension.
        samples: The samples.
        keep: Names of tensors that the result must still have.
        notes: Sentences for the user on what was decided, and on what could be, are added here.
    """
    before = _control(model)
    if not before:
        return model
    sized = copy(model)
    for value in sized.graph.input:
        sizes = value.type.tensor_type.shape.dim
        for dimension, size in zip(sizes, (1, *samples.inputs[value.name].shape[1:]), strict=True):
            dimension.dim_value = size
    try:
        open_engine(sized.SerializeToString(), name="the model").close()
        folded = fold(sized, keep)
    except ModelError:  # a branch that is not taken may not take these sizes
        folded = sized
    after = _control(folded)
    if len(after) < len(before):
        shapes = ", ".join(f"{name} {list(x.shape[1:])}" for name, x in samples.inputs.items() if x.ndim > 1)
        notes.append(
            f"{len(before) - len(after)} of {len(before)} nodes of control flow are decided by the sizes of the inputs "
            f"and folded: the engine takes samples of these sizes alone, {shapes}"
        )
    if after:
        notes.extend(_could_be_fixed(after, samples))
    return folded if len(after) < len(before) else model


def _could_be_fixed(control: Collection[str], samples: NpzSamples) -> list[str]:
    """Return a sentence on inputs that are the same everywhere; such may be what decides."""
    inputs = {name: x for name, x in samples.inputs.items() if name not in samples.carried and x.size}
    same = {name: x.flat[0] for name, x in inputs.items() if (x == x.flat[0]).all()}
    if not same:
        return []
    options = " ".join(f"--fix {name}={value:g}" for name, value in same.items())
    return [
        f"the model has control flow ({', '.join(sorted(set(control)))}), and input {', '.join(same)} is the same in "
        f"all samples: {options} makes it a constant where it never changes, and folds what it decides"
    ]


def require_fixed(path: Path, values: Mapping[str, Array]) -> None:
    """Check that samples that have an array for an input that never changes agree.

    Raises:
        ModelError: A sample has another value.
    """
    with open_arrays(path) as arrays:
        for name, value in values.items():
            key = next((key for key in (INPUT_PREFIX + name, name) if key in arrays), None)
            if key is None:
                continue
            other = np.argwhere(arrays[key] != value.flat[0])
            if len(other):
                found = arrays[key][tuple(other[0])]
                raise ModelError(f"{path}: input '{name}' is {found} in sample {other[0][0]}, and not {value.flat[0]}, "
                                 "to which it was to be fixed")  # fmt: skip


def _control(model: ModelProto) -> list[str]:
    return [str(node.op_type) for node in all_nodes(model.graph) if node.op_type in CONTROL_FLOW]
