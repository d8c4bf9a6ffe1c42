"""What comes behind the numbers that can be compared: NonMaxSuppression, a mask. The engine ends before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import WEIGHT_BEARING, layer_name, producers, reads, rename, save
from edgekd.errors import ModelError, TaskError
from edgekd.files import need
from edgekd.pipeline.onnx_import.graph import Extension, added_axes, behind_weights, copy_values
from edgekd.pipeline.onnx_import.observe import observing
from edgekd.pipeline.onnx_import.sizes import SUPPRESSION, Sizes, data_sizes
from edgekd.runtime.manifest import POSTPROCESS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

    from edgekd.pipeline.onnx_import.samples import NpzSamples
    from edgekd.runtime.session import Array

#: The most samples on which sizes that data may decide are looked at.
_LOOKED_AT = 64

#: The most samples on which infinite outputs are looked for, and the most numbers of a tensor that a mask is.
_MASKS_LOOKED_AT, _LARGEST_MASK = 16, 1 << 20

#: What an engine ends before, in messages.
_WHY = "what cannot be compared (a size or an order that data decide, or infinities of a mask)"

#: Operators whose result holds the numbers of their input, in order. The tail has them: nothing is to be given twice.
_SAME_NUMBERS = frozenset({"Identity", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Tail:
    """The part of a model that the engine leaves out.

    Attributes:
        model: It as a model of its own: what the engine gives, and inputs of the model, become the other outputs.
        given: Its inputs that the engine gives, each in the shape that the user's model has it in for one sample.
        outputs: Its outputs: those of the model that depend on it.
    """

    model: ModelProto
    given: tuple[str, ...]
    outputs: tuple[str, ...]


def cut_tail(
    model: ModelProto, wanted: Collection[str], taps: Collection[str], samples: NpzSamples, notes: list[str]
) -> Tail | None:
    """Let a model end, in place, before what makes outputs of a size that data decide, chooses among boxes, or masks.

    Outputs of the model are then the tensors of floats that the tail reads, and those outputs that do not depend on it.

    Args:
        model: A model whose inputs have a batch dimension.
        wanted: The outputs that the user named; none for all.
        taps: The taps that the user named.
        samples: Samples to run the model with.
        notes: A sentence for the user is added here.

    Returns:
        What was cut off; None where there is nothing to cut.

    Raises:
        ModelError: No layer with weights is left before it.
        TaskError: An output or a tap that the user named would be cut off.
    """
    graph, own = model.graph, [value.name for value in model.graph.output]
    outputs = [name for name in own if name in wanted] if wanted and set(wanted) <= set(own) else own
    first = _first_nodes(model, outputs, data_sizes(graph), samples)
    behind = _behind(graph, first)
    lost = [name for name in own if name in behind]
    if not set(outputs) & set(lost):
        return None
    where = ", ".join(map(_title, first[:3]))
    if asked := sorted({*wanted, *taps} & behind):
        raise TaskError(
            f"'{asked[0]}' comes behind {where}, with which {_WHY} begins: the engine ends before that; name outputs "
            "and taps that come before it, or none"
        )
    floats = _floats(model)
    given, nodes = _border(graph, lost, behind, floats.keys() & behind_weights(graph))
    if not given:
        raise ModelError(
            f"with {where} {_WHY} begins, and no layer with weights comes before that: there is nothing "
            "that INT8 could help"
        )
    part = _part(model, nodes, [floats[name] for name in given], lost)
    kept = copy_values(value for value in graph.output if value.name not in behind)
    known = {value.name for value in kept}
    graph.ClearField("output")
    graph.output.extend([*kept, *(floats[name] for name in given if name not in known)])
    said = f"the engine ends before {where}, with which {_WHY} begins: it gives"
    if wanted and not set(given) <= set(wanted):
        notes.append(f"{said} {', '.join(wanted)}; what comes behind, to {', '.join(lost)}, needs {', '.join(given)}")
        return None
    notes.append(
        f"{said} {', '.join(value.name for value in graph.output)}. What comes behind, to {', '.join(lost)}, is "
        f"{POSTPROCESS} in the bundle, which Bundle.postprocess() runs"
    )
    return Tail(part, tuple(given), tuple(lost))


def _first_nodes(model: ModelProto, outputs: Sequence[str], sizes: Sizes, samples: NpzSamples) -> list[NodeProto]:
    """Return the nodes with which the tail begins; none where the model has no tail."""
    graph = model.graph
    first = [node for node in graph.node if node.op_type == SUPPRESSION and not sizes.data.isdisjoint(reads(node))]
    first += _masking_nodes(model, outputs, samples)
    behind = _behind(graph, first)
    free = [name for name in sizes.open if name not in behind]
    if set(outputs).isdisjoint(free):
        return first
    varying = _varying(model, free, samples)
    before = _before(graph, varying.intersection(outputs))
    return first + [
        node
        for node in graph.node
        if varying.intersection(node.output) and before.intersection(node.output) and varying.isdisjoint(reads(node))
    ]


def _masking_nodes(model: ModelProto, outputs: Iterable[str], samples: NpzSamples) -> list[NodeProto]:
    """Return the nodes that put infinities into outputs, as a mask does; none where a layer with weights does so."""
    made = producers(model.graph)
    first: dict[str, NodeProto] = {}
    ahead = _infinite(model, outputs, samples) if _may_be_infinite(model, samples) else set[str]()
    while ahead:
        nodes = {node.output[0]: node for node in (made[name] for name in ahead)}
        broken = _infinite(model, {name for node in nodes.values() for name in reads(node) if name in made}, samples)
        first |= {name: node for name, node in nodes.items() if broken.isdisjoint(reads(node))}
        ahead = broken
    return [] if any(node.op_type in WEIGHT_BEARING for node in first.values()) else list(first.values())


def _may_be_infinite(model: ModelProto, samples: NpzSamples) -> bool:
    """Whether a model stores or is given infinities, or takes logarithms."""
    to_array = need("onnx", "build").numpy_helper.to_array
    stored = (to_array(tensor) for tensor in model.graph.initializer if _count(tensor) <= _LARGEST_MASK)
    floats = (x for x in (*stored, *samples.inputs.values()) if x.dtype.kind == "f")
    return any(node.op_type == "Log" for node in model.graph.node) or any(np.isinf(x).any() for x in floats)


def _count(tensor: TensorProto) -> int:
    return math.prod(tensor.dims)


def _infinite(model: ModelProto, tensors: Iterable[str], samples: NpzSamples) -> set[str]:
    """Return those tensors of floats that are infinite somewhere, for one of some samples."""
    typed = _floats(model)
    names = [name for name in tensors if name in typed]
    if not names:
        return set()
    found: set[str] = set()
    with observing(model, names) as session:
        for row in range(min(_MASKS_LOOKED_AT, len(samples.ids))):
            found.update(name for name, x in session.run(samples.row(row)).items() if np.isinf(x).any())
    return found


def _varying(model: ModelProto, tensors: Iterable[str], samples: NpzSamples) -> set[str]:
    """Return those tensors whose sizes differ between samples that are run one by one."""
    typed = _tensors(model)
    numbers = [name for name in tensors if name in typed]
    if not numbers:
        return set()
    shapes: dict[str, set[tuple[int, ...]]] = {name: set() for name in numbers}
    with observing(model, numbers) as session:
        for row in range(min(_LOOKED_AT, len(samples.ids))):
            for name, x in session.run(samples.row(row)).items():
                shapes[name].add(x.shape)
    return {name for name, seen in shapes.items() if len(seen) > 1}


def _behind(graph: GraphProto, first: Iterable[NodeProto]) -> set[str]:
    """Return the tensors that some nodes compute, and all that are computed of those."""
    behind = {name for node in first for name in node.output}
    for node in graph.node:
        if not behind.isdisjoint(reads(node)):
            behind.update(node.output)
    return behind - {""}


def _before(graph: GraphProto, tensors: Iterable[str]) -> set[str]:
    """Return some tensors, and all that they are computed of."""
    before = set(tensors)
    for node in reversed(graph.node):
        if not before.isdisjoint(node.output):
            before.update(reads(node))
    return before


def _tensors(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Return what is known of those tensors in a model that have a type of numbers."""
    onnx = need("onnx", "build")
    unlike = (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING)
    known = onnx.shape_inference.infer_shapes(model).graph
    values = (*known.value_info, *known.output)
    return {value.name: value for value in values if value.type.tensor_type.elem_type not in unlike}


def _floats(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Return what is known of the tensors of floats in a model."""
    types = need("onnx", "build").TensorProto
    floats = (types.FLOAT, types.FLOAT16)
    return {name: value for name, value in _tensors(model).items() if value.type.tensor_type.elem_type in floats}


def _border(
    graph: GraphProto, lost: Iterable[str], behind: set[str], answers: Collection[str]
) -> tuple[list[str], list[NodeProto]]:
    """Return what the engine gives to a tail, and the tail's nodes.

    Args:
        graph: The whole graph.
        lost: The outputs that the tail gives.
        behind: Tensors that only the tail can compute.
        answers: Tensors that an engine may give. What the tail reads of others, such as indices or constants, it
            computes itself, of those that come before.
    """
    made, wanted = producers(graph), set(lost)
    same = {node.output[0] for node in graph.node if node.op_type in _SAME_NUMBERS}
    nodes: list[NodeProto] = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            nodes.insert(0, node)
            wanted.update(name for name in reads(node) if name in behind | same or name not in answers)
    own = {name for node in nodes for name in node.output}
    given = dict.fromkeys(name for node in nodes for name in reads(node) if name in made and name not in own)
    return list(given), nodes


def _part(
    model: ModelProto, nodes: Sequence[NodeProto], given: Sequence[ValueInfoProto], outputs: Collection[str]
) -> ModelProto:
    """Return some nodes of a model as a model of its own; its inputs are what it is given, and those of the model."""
    onnx = need("onnx", "build")
    read = {name for node in nodes for name in reads(node)}
    part: ModelProto = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = model.graph.name
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in read)
    part.graph.input.extend(given)
    part.graph.input.extend(value for value in model.graph.input if value.name in read)
    part.graph.output.extend(value for value in model.graph.output if value.name in outputs)
    return part


def write_tail(tail: Tail, example: Mapping[str, Array], path: Path) -> None:
    """Write a tail so that it takes what the engine gives for one sample.

    Args:
        tail: The tail; its model is changed in place.
        example: What the tail is given of the engine, as the user's model computes it for one sample.
        path: File to write.
    """
    extension = Extension(tail.model)
    for value in list(tail.model.graph.input):
        if value.name not in tail.given:
            continue
        shape = example[value.name].shape
        added = added_axes(shape)
        if added:
            inner = extension.unique(f"{value.name}_inner")
            rename(tail.model.graph, value.name, inner)
            axes = extension.integers(f"{inner}_axes", added)
            extension.node("Squeeze", [value.name, axes], inner, first=True)
        sizes = value.type.tensor_type.shape.dim
        del sizes[:]
        for _ in range(len(shape) + len(added)):
            sizes.add()
    save(tail.model, path)


def _title(node: NodeProto) -> str:
    return f"'{layer_name(node)}' ({node.op_type})"
