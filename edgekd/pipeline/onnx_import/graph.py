"""Adding outputs and nodes to ONNX graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import all_nodes, reads, rename
from edgekd.errors import ModelError
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from onnx import GraphProto, ModelProto, ValueInfoProto


#: Operators that contain graphs of their own.
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})

#: Operators whose result depends on the size of a tensor and not on its values.
SIZES = frozenset({"Shape", "Size"})

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})


def add_outputs(model: ModelProto, tensors: Collection[str]) -> ModelProto:
    """Return a model with these tensors as further outputs; ONNX Runtime infers their types."""
    onnx = need("onnx", "build")
    extended: ModelProto = onnx.ModelProto()
    extended.CopyFrom(model)
    outputs = {output.name for output in model.graph.output}
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in outputs)
    return extended


def copy_values(values: Iterable[ValueInfoProto]) -> list[ValueInfoProto]:
    """Return copies of what a graph states about inputs or outputs, which stay when those are cleared."""
    make = need("onnx", "build").ValueInfoProto.FromString
    return [make(value.SerializeToString()) for value in values]


def behind_weights(graph: GraphProto) -> set[str]:
    """Return the tensors that layers with weights compute, and those computed of them; not their sizes."""
    behind: set[str] = set()
    for node in graph.node:
        if node.op_type not in SIZES and (node.op_type in _WEIGHTED or not behind.isdisjoint(reads(node))):
            behind.update(node.output)
    return behind


def keep_tensors(graph: GraphProto) -> None:
    """Remove outputs that are no tensors, such as a classifier's list of maps, in place: numpy has no type for them."""
    kept = [output for output in graph.output if output.type.HasField("tensor_type")]
    graph.ClearField("output")
    graph.output.extend(kept)


def added_axes(shape: Sequence[int]) -> list[int]:
    """Return the dimensions that an answer gets, so as to have a row for each sample: one for rows, one for numbers."""
    rows = [] if shape[:1] == (1,) else [0]
    return [*rows, 1] if len(shape) + len(rows) == 1 else rows


class Extension:
    """Adds nodes to a model's graph, in place.

    Args:
        model: The model.

    Attributes:
        graph: Its graph.
    """

    def __init__(self, model: ModelProto) -> None:
        self._onnx = need("onnx", "build")
        self.graph = model.graph
        self._opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
        self._names = {name for node in all_nodes(self.graph) for name in (*node.input, *node.output)}
        self._names.update(item.name for item in (*self.graph.input, *self.graph.output, *self.graph.initializer))
        self._fixed = {item.name for item in (*self.graph.input, *self.graph.initializer)}
        self._renamed: dict[str, str] = {}

    def unique(self, stem: str) -> str:
        """Return a name that nothing in the graph has yet, which begins with ``stem``."""
        name = stem
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def integers(self, stem: str, values: Sequence[int]) -> str:
        """Store a vector of integers as an initializer, and return its name."""
        name = self.unique(stem)
        array = np.array(values, np.int64)
        self.graph.initializer.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def node(
        self, operator: str, inputs: Sequence[str], output: str, first: bool = False, **attributes: object
    ) -> None:
        """Add a node at the end, or before all others where it is to be the first."""
        node = self._onnx.helper.make_node(
            operator, inputs, [output], name=self.unique(f"{output}_{operator}"), **attributes
        )
        self.graph.node.insert(0 if first else len(self.graph.node), node)

    def unsqueeze(self, tensor: str, axis: int, output: str) -> None:
        """Add a node that inserts a dimension of size 1 into a tensor."""
        self._with_axes("Unsqueeze", tensor, axis, output, first=False)

    def squeeze_first(self, tensor: str, output: str) -> None:
        """Add a node before all others that takes the first dimension, of size 1, off a tensor."""
        self._with_axes("Squeeze", tensor, 0, output, first=True)

    def _with_axes(self, operator: str, tensor: str, axis: int, output: str, first: bool) -> None:
        if self._opset < 13:  # as a model may be that stays as it is
            self.node(operator, [tensor], output, first=first, axes=[axis])
        else:
            self.node(operator, [tensor, self.integers(f"{output}_axes", [axis])], output, first=first)

    def mean(self, tensor: str, axes: Sequence[int], output: str) -> None:
        """Add a node that averages a tensor over some axes, which the output does not have."""
        if self._opset < 18:
            self.node("ReduceMean", [tensor], output, axes=axes, keepdims=0)
        else:
            self.node("ReduceMean", [tensor, self.integers(f"{output}_axes", axes)], output, keepdims=0)

    def named(self, tensor: str) -> str:
        """Return the present name of a tensor, by its name in the model."""
        return self._renamed.get(tensor, tensor)

    def call(self, tensor: str, output: str) -> None:
        """Give a tensor the name of an output; a tensor that must keep its own name is copied."""
        if tensor in self._fixed:
            self.node("Identity", [tensor], output)
        else:
            self._rename(tensor, output)
            self._fixed.add(output)

    def keep(self, tensor: str) -> bool:
        """Let a tensor that a node computes keep its name from here on; return False for an input or a constant."""
        if tensor in self._fixed:
            return False
        self._fixed.add(tensor)
        return True

    def vacate(self, name: str) -> None:
        """Rename the tensor that has this name in the graph, so that an output can have the name.

        Raises:
            ModelError: It is the name of an input, which users know.
        """
        if any(value.name == name for value in self.graph.input):
            raise ModelError(
                f"the model's input '{name}' has a name that edgekd gives an output; export it with another"
            )
        if name in self._names:
            self._rename(name, self.unique(f"{name}_of_model"))
        self._names.add(name)

    def _rename(self, old: str, new: str) -> None:
        rename(self.graph, old, new)
        for item in self.graph.initializer:
            item.name = new if item.name == old else item.name
        self._renamed[next((first for first, now in self._renamed.items() if now == old), old)] = new
