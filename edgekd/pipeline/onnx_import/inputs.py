"""Inputs of an imported model: each gets a batch dimension first, of size 1 where the model takes no more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.compress.graph import rename
from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.pipeline.onnx_import.graph import Extension
from edgekd.runtime.session import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto, ValueInfoProto

    from edgekd.runtime.session import Array

#: Numpy's name for each of ONNX's types of numbers that it has one for.
_DTYPES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT16": "float16",
    "BOOL": "bool",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


def input_specs(model: ModelProto, path: Path) -> tuple[TensorSpec, ...]:
    """Return the specs of a model's inputs, and remove the names of free sizes from the model, in place.

    Exporters give one name, "?" or the like, to sizes that differ.

    Raises:
        ModelError: An input has no shape, or a type that numpy lacks.
    """
    for value in model.graph.input:
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                f"{path}: input '{value.name}' has no shape, not even a number of dimensions; export it with one"
            )
        for size in value.type.tensor_type.shape.dim:
            if size.dim_value <= 0:
                size.Clear()
    return tuple(_spec(value, path) for value in model.graph.input)


def _spec(value: ValueInfoProto, path: Path) -> TensorSpec:
    kind = value.type.tensor_type
    types = need("onnx", "build").TensorProto.DataType
    name = types.Name(kind.elem_type) if value.type.HasField("tensor_type") else value.type.WhichOneof("value")
    if name not in _DTYPES:
        raise ModelError(f"{path}: input '{value.name}' is of the type {name}, which numpy has none for")
    sizes = (size.dim_value or f"{value.name}.{axis}" for axis, size in enumerate(kind.shape.dim))
    return TensorSpec(value.name, _DTYPES[name], tuple(sizes))


def states(model: ModelProto) -> list[str]:
    """Return the inputs that look like a state: an output other than the first has the same type and fixed sizes."""
    given = [_kind(value) for value in model.graph.output[1:]]
    inputs = [value.name for value in model.graph.input if _kind(value) in given]
    return inputs if len(model.graph.input) > 1 else []


def _kind(value: ValueInfoProto) -> tuple[int, list[int]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, [size.dim_value for size in tensor.shape.dim]


def with_batch(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return specs whose first dimension is a batch of any size."""
    return tuple(replace(spec, shape=("batch", *spec.shape[1:])) for spec in specs)


def unbatched(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> list[str]:
    """Return the inputs without a batch dimension: the array of their samples has one dimension more."""
    return [spec.name for spec in specs if inputs[spec.name].ndim > len(spec.shape)]


def batch_inputs(model: ModelProto, without: Collection[str], inputs: Mapping[str, Array]) -> None:
    """Give every input a batch dimension first, in place; inputs ``without`` one then take one sample at a time."""
    extension = Extension(model)
    for value in model.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if value.name in without:
            inner = extension.unique(f"{value.name}_sample")
            rename(model.graph, value.name, inner)
            extension.squeeze_first(value.name, inner)
            del sizes[:]
            for size in (1, *inputs[value.name].shape[1:]):
                sizes.add().dim_value = size
        elif sizes[0].dim_value != 1:
            sizes[0].dim_param = "batch"
    if any(value.type.tensor_type.shape.dim[0].dim_value == 1 for value in model.graph.input):
        fix_batch(model)


def fix_batch(model: ModelProto) -> None:
    """Fix the batch dimension of every input to one sample, in place."""
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1


def takes_batches(model: ModelProto) -> bool:
    """Whether the inputs take any number of samples at a time."""
    return not any(value.type.tensor_type.shape.dim[0].dim_value for value in model.graph.input)


def state_shape(path: Path, spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of one sample's state in an ``.npz``, where the file does not have it: it begins at zero.

    As of any input, the first size is the batch where it is free or 1. The one other size that the model leaves open,
    where there is one, is the batch too, as in ``[2, batch, 128]``.

    Raises:
        ModelError: More sizes are open, so that nothing tells how large the state is.
    """
    first = spec.shape[:1]
    batched = first == (1,) or (bool(first) and isinstance(first[0], str))
    sizes = spec.shape[1:] if batched else spec.shape
    left_open = sum(isinstance(size, str) for size in sizes)
    if left_open > (0 if batched and first != (1,) else 1):
        raise ModelError(
            f"{path}: has no array for the state '{spec.name}', {spec}, and the model leaves its sizes open, so what "
            "it begins with is not known: give what it holds before each sample, or export the model with fixed sizes"
        )
    return tuple(1 if isinstance(size, str) else size for size in sizes)
