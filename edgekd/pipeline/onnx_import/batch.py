"""Free the batch of a model that was exported with a fixed one, such as that of the exporter's example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import WEIGHT_BEARING, copy, drop_unread, initializers, producers, sort_nodes
from edgekd.errors import ModelError
from edgekd.files import need
from edgekd.pipeline.onnx_import.graph import Extension
from edgekd.pipeline.onnx_import.observe import observing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto, NodeProto, ValueInfoProto

    from edgekd.pipeline.onnx_import.samples import NpzSamples
    from edgekd.runtime.session import Array

#: Largest |freed - fixed| that is allowed, as a share of the output's largest magnitude.
_TOLERANCE = 1e-3

#: Inputs of operators that hold a size for each dimension of the result.
_SIZES_AT = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}

#: Operators that repeat a row of one size for all rows of the other input.
_BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Where", "Min", "Max"})


def held_batch(model: ModelProto) -> int:
    """Return the batch, of more than one, that a model's inputs and outputs are fixed at; 0 where there is none."""
    first = {tuple(_sizes(value)[:1]) for value in (*model.graph.input, *model.graph.output)}
    sizes = next(iter(first)) if len(first) == 1 else ()
    return max(sizes) if sizes and max(sizes) > 1 else 0


def free_batch(model: ModelProto, size: int, samples: NpzSamples, path: Path) -> ModelProto:
    """Return a model that takes any number of samples at a time, and gives for each what it gives in a full batch.

    Sizes that are stored for the batch of Reshape, Expand and ConstantOfShape follow the input's, and so do tensors
    that are stored once for each sample, all alike, as initial states are.

    Args:
        model: The model, which is not changed.
        size: The batch that it is fixed at.
        samples: Samples to compare both with.
        path: File of the model, for errors.

    Raises:
        ModelError: It gives something else for other batches, or none at all.
    """
    freed = copy(model)
    _Freedom(freed, size).write()
    count = len(samples.ids)
    rows = [np.arange(start, start + size) % count for start in range(0, min(count, 2 * size), size)]
    names = [value.name for value in model.graph.output]
    try:
        with observing(model, names) as fixed, observing(freed, names) as free:
            for block in rows:
                feeds = {name: x[block] for name, x in samples.inputs.items()}
                expected = fixed.run(feeds)
                for cut in (1, size - 1, size):
                    _require_same(expected, free.run({name: x[:cut] for name, x in feeds.items()}), cut, size)
    except ModelError as error:
        shapes = {name: ", ".join(map(str, ["samples", size, *x.shape[1:]])) for name, x in samples.inputs.items()}
        raise ModelError(
            f"{path}: is exported for a batch of {size}, and cannot be made to take others ({error}); export it with a "
            "dynamic batch, or with one of 1, or give whole batches as samples: "
            + ", ".join(f"'{name}' as [{shape}]" for name, shape in shapes.items())
        ) from error
    return freed


def _require_same(expected: Mapping[str, Array], found: Mapping[str, Array], cut: int, size: int) -> None:
    for name, x in expected.items():
        y = found[name]
        rows = len(x) // size * cut if x.ndim else 0
        if not rows or x[:rows].shape != y.shape:
            raise ModelError(f"its output '{name}' is {list(y.shape)} for {cut} samples")
        finite = np.isfinite(x[:rows])
        limit = _TOLERANCE * float(np.abs(x[:rows][finite]).max(initial=0))
        if not np.allclose(x[:rows], y, rtol=0, atol=limit, equal_nan=True):
            raise ModelError(f"its output '{name}' depends on the other samples of the batch, or on its size")


def _sizes(value: ValueInfoProto) -> list[int]:
    return [size.dim_value for size in value.type.tensor_type.shape.dim]


class _Freedom:
    """Rewrites what a graph stores of its batch, in place.

    Args:
        model: The model.
        size: The batch.
    """

    def __init__(self, model: ModelProto, size: int) -> None:
        self._onnx = need("onnx", "build")
        self._model, self._size = model, size
        known = self._onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self._shapes = {value.name: _sizes(value) for value in (*known.value_info, *known.input, *known.output)}
        self._stored = initializers(model.graph)
        self._extension = Extension(model)
        self._batch = ""

    def write(self) -> None:
        graph = self._model.graph
        computed = {*producers(graph), *(value.name for value in graph.input)}
        for node in list(graph.node):
            index = _SIZES_AT.get(node.op_type)
            for place, name in enumerate(node.input):
                if name not in self._stored:
                    continue
                if place == index:
                    node.input[place] = self._freed_sizes(node, name)
                elif index is None and not computed.isdisjoint(node.input):
                    node.input[place] = self._freed_rows(node, name)
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        graph.ClearField("value_info")
        sort_nodes(graph)
        drop_unread(graph)

    def _freed_sizes(self, node: NodeProto, name: str) -> str:
        """Return the stored sizes of a node's result with that of its batch free."""
        sizes = self._array(name).tolist()
        shape = self._shapes.get(node.output[0], [])
        axis = _batch_axis(sizes, self._size)
        if axis is None:
            return name
        if node.op_type != "Reshape":
            parts = [self._extension.integers(f"{name}_{at}", [size]) for at, size in enumerate(sizes)]
            return self._joined(name, [self._batch_size() if at == axis else part for at, part in enumerate(parts)])
        if len(shape) == len(sizes) and all(size > 0 for size in shape):
            sizes = list(shape)  # there may be but one that is left to be found
        if -1 in sizes:
            return name
        return self._extension.integers(name, [*sizes[:axis], -1, *sizes[axis + 1 :]])

    def _freed_rows(self, node: NodeProto, name: str) -> str:
        """Return what is stored once for each sample, all alike, with as many rows as there are samples."""
        if node.op_type in WEIGHT_BEARING or list(self._stored[name].dims).count(self._size) != 1:
            return name
        array = self._array(name)
        axis = array.shape.index(self._size)
        row = array.take([0], axis)
        if array.ndim < 2 or not np.array_equal(array, np.broadcast_to(row, array.shape)):
            return name
        stored = self._extension.unique(f"{name}_row")
        self._model.graph.initializer.append(self._onnx.numpy_helper.from_array(row, stored))
        if node.op_type in _BROADCAST:
            return stored
        parts = [self._extension.integers(f"{name}_{at}", [size]) for at, size in enumerate(array.shape)]
        sizes = self._joined(name, [self._batch_size() if at == axis else part for at, part in enumerate(parts)])
        expanded = self._extension.unique(f"{name}_rows")
        self._extension.node("Expand", [stored, sizes], expanded)
        return expanded

    def _joined(self, name: str, parts: Sequence[str]) -> str:
        joined = self._extension.unique(f"{name}_sizes")
        self._extension.node("Concat", parts, joined, axis=0)
        return joined

    def _batch_size(self) -> str:
        """Return the name of the number of samples, a vector of one."""
        if not self._batch:
            first = self._model.graph.input[0].name
            shape, self._batch = self._extension.unique("batch_shape"), self._extension.unique("batch_size")
            self._extension.node("Shape", [first], shape)
            bounds = [self._extension.integers(f"{shape}_{key}", [value]) for key, value in (("from", 0), ("to", 1))]
            self._extension.node("Slice", [shape, *bounds], self._batch)
        return self._batch

    def _array(self, name: str) -> Array:
        array: Array = self._onnx.numpy_helper.to_array(self._stored[name])
        return array


def _batch_axis(sizes: Sequence[int], batch: int) -> int | None:
    """Return which of some sizes is the batch's: the first where it is a multiple of it, else the only one like it."""
    if sizes and sizes[0] > 0 and sizes[0] % batch == 0:
        return 0
    return sizes.index(batch) if list(sizes).count(batch) == 1 else None
