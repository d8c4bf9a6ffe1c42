"""Taps of an imported model: where its embeddings are read, and how larger tensors are pooled to vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.compress.graph import reads
from edgekd.pipeline.onnx_import.graph import SIZES, behind_weights

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from onnx import GraphProto

    from edgekd.pipeline.onnx_import.graph import Extension

#: Operators that take channels before positions, and operators that do not change the order of dimensions.
_CHANNELS_FIRST = frozenset(
    {"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "MaxPool", "AveragePool"}
)
_ELEMENTWISE = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip", "Gelu", "Mish",
     "Softplus", "Erf", "Add", "Sub", "Mul", "Div", "Identity", "Dropout", "Cast"}
)  # fmt: skip

#: Largest number of cells along each dimension over which a map of one channel is averaged.
_CELLS = 8


@dataclass(frozen=True)
class TensorTap:
    """Where one modality's embedding is read.

    Attributes:
        tensor: Name of the tensor in the user's model.
        pooling: How it was made a vector, in words.
        width: Width of the embedding.
    """

    tensor: str
    pooling: str
    width: int


def meeting_taps(graph: GraphProto, inputs: Collection[str]) -> dict[str, str]:
    """Find where the data of several inputs first meet.

    Args:
        graph: Graph whose nodes are in topological order.
        inputs: Inputs that are modalities; what is computed from other inputs alone counts as a constant.

    Returns:
        For each of the inputs the last tensor that depends on it alone, which the first node reads that also depends
        on another input. Empty where fewer than two of them meet, or where one does before any layer with weights:
        such an embedding is the input itself, which no quantizer changes.
    """
    origins: dict[str, frozenset[str]] = {name: frozenset([name]) for name in inputs}
    weighted = behind_weights(graph)
    taps: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in SIZES:
            continue
        read = [name for name in reads(node) if name in origins]
        origin = frozenset[str]().union(*(origins[name] for name in read))
        if len(origin) > 1:
            for name in sorted(read, key=lambda name: name not in weighted):  # a condition is read too
                match tuple(origins[name]):
                    case (single,):
                        taps.setdefault(single, name)
        if origin:
            origins |= dict.fromkeys(node.output, origin)
    if len(taps) < 2 or not weighted.issuperset(taps.values()):
        return {}
    return {name: taps[name] for name in inputs if name in taps}


def channels_first(graph: GraphProto, tensor: str) -> bool:
    """Whether a tensor comes, through elementwise operators alone, from one that takes channels before positions."""
    producer = {name: node for node in graph.node for name in node.output}
    node = producer.get(tensor)
    while node is not None and node.op_type in _ELEMENTWISE:
        node = next((producer[name] for name in node.input if name in producer), None)
    return node is not None and node.op_type in _CHANNELS_FIRST


def pool(extension: Extension, tensor: str, shape: Sequence[int], first: bool, output: str) -> str:
    """Add the nodes that pool a tensor to one vector for each sample.

    A tensor [B, D] stays as it is; [B, C, ...] is averaged over all dimensions after the channels, [B, T, D] over the
    tokens. A single channel, such as the map of a segmentation, would leave one number: it is averaged over equal
    cells, at most 8 along each dimension, and flattened; a rest at the far border, smaller than a cell, is left out.

    Args:
        extension: Receives the nodes.
        tensor: Name of the tensor.
        shape: Shape of the tensor for one sample, with the batch dimension.
        first: Whether the channels of a tensor [B, ?, ?] come first.
        output: Name of the result [B, width].

    Returns:
        How the tensor was pooled, in words.
    """
    rank = len(shape)
    if rank == 1:
        extension.unsqueeze(tensor, 1, output)
        return "one number"
    if rank == 2:
        extension.call(tensor, output)
        return "as it is"
    channels = 1 if rank > 3 or first else 2
    positions = [axis for axis in range(1, rank) if axis != channels]
    if shape[channels] > 1:
        extension.mean(tensor, positions, output)
        return f"mean over {'tokens' if channels == 2 else 'positions'}"
    return _average_cells(extension, tensor, [shape[axis] for axis in positions], positions, output)


def _average_cells(
    extension: Extension, tensor: str, sizes: Sequence[int], positions: Sequence[int], output: str
) -> str:
    """Average over cells by Reshape and ReduceMean, which no scheme quantizes, so that the embedding stays exact."""
    cells = [-(-size // _CELLS) for size in sizes]
    counts = [size // cell for size, cell in zip(sizes, cells, strict=True)]
    ends = [count * cell for count, cell in zip(counts, cells, strict=True)]
    cut, parted, averaged = (extension.unique(f"{output}_{what}") for what in ("cut", "parted", "averaged"))
    names = [
        extension.integers(f"{cut}_{key}", values)
        for key, values in (("starts", [0] * len(ends)), ("ends", ends), ("axes", positions))
    ]
    extension.node("Slice", [tensor, *names], cut)
    shape = [0, *(size for pair in zip(counts, cells, strict=True) for size in pair)]
    extension.node("Reshape", [cut, extension.integers(f"{parted}_shape", shape)], parted)
    extension.mean(parted, range(2, len(shape), 2), averaged)
    extension.node("Reshape", [averaged, extension.integers(f"{output}_shape", [0, -1])], output)
    return f"mean over {'x'.join(map(str, counts))} cells"
