"""Damage a float graph on purpose, by known amounts, to see whether the drift of its Gram gives the alarm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekd.compress.graph import WEIGHT_BEARING, copy
from edgekd.compress.qdq_map import inputs_behind
from edgekd.errors import ModelError, nearest
from edgekd.files import need
from edgekd.gram.blame import FUSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    from edgekd.runtime.session import Array

#: The place of a perturbation of every weight.
NETWORK = "network"

Kind = Literal["rounding", "pruning", "noise"]

#: Bits of rounded weights; shares of zeroed channels; noise as a share of a tensor's standard deviation. From harmless
#: to fatal in even steps of their logarithm, since no one knows beforehand which strength costs how much.
_BITS = (8, 7, 6, 5, 4, 3, 2)
_SHARES = (0.02, 0.04, 0.08, 0.12, 0.17, 0.25, 0.35, 0.5, 0.7)
_NOISES = tuple(float(level) for level in np.geomspace(0.01, 1.0, 13).round(4))


@dataclass(frozen=True)
class Perturbation:
    """One way to damage a graph's weights.

    Attributes:
        kind: "rounding" of each output channel's weights to levels evenly spaced between -max|w| and max|w|;
            "pruning", which zeroes the output channels of smallest L2 norm in each layer; "noise", Gaussian, added to
            the weights.
        strength: Bits of rounding; share of the channels pruned; standard deviation of the noise as a share of each
            tensor's own.
        where: "network" for all weights; a graph input for those that work on this modality alone; "fusion" for those
            where several meet.
        seed: Seed of the noise.
    """

    kind: Kind
    strength: float
    where: str = NETWORK
    seed: int = 0


def perturbations(modalities: Sequence[str], repeats: int = 8, seed: int = 0) -> tuple[Perturbation, ...]:
    """Return a grid from harmless to fatal: over the whole network, each branch alone and the fusion alone.

    Args:
        modalities: Names of the graph's inputs.
        repeats: Number of draws of each strength of noise over the whole network; elsewhere a quarter of it.
        seed: Seed of the first draw.
    """
    fewer = max(1, repeats // 4)
    places = [(NETWORK, repeats), *((name, fewer) for name in modalities), (FUSION, fewer)]
    return tuple(perturbation for where, draws in places for perturbation in _grid(where, range(seed, seed + draws)))


def perturbations_of(model: ModelProto) -> tuple[Perturbation, ...]:
    """Return the perturbations of the grid for which a float graph has weights.

    Where all weights belong to one branch, or to the fusion, that place is the whole network, which is damaged once.
    """
    layers = _layers(model.graph)
    branches = {layer.branch for layer in layers}
    there = {NETWORK, *branches} if len(branches) > 1 else {NETWORK}
    grid = perturbations([value.name for value in model.graph.input])
    return tuple(perturbation for perturbation in grid if perturbation.where in there)


def _grid(where: str, seeds: range) -> Iterator[Perturbation]:
    yield from (Perturbation("rounding", bits, where) for bits in _BITS)
    yield from (Perturbation("pruning", share, where) for share in _SHARES)
    yield from (Perturbation("noise", level, where, seed) for level in _NOISES for seed in seeds)


def perturb(model: ModelProto, perturbation: Perturbation) -> ModelProto:
    """Return a float graph with damaged weights.

    Weights are those of Conv, ConvTranspose, Gemm and MatMul nodes, stored as initializers or in Constant nodes.
    Pruning spares the layers that make the graph's outputs, whose width a network must keep.

    Args:
        model: The float graph, which is not changed.
        perturbation: The kind, strength and place of the damage.

    Raises:
        ModelError: The graph stores no such weights, or has no such place.
    """
    damaged = copy(model)
    layers = _layers(damaged.graph)
    if not layers:
        raise ModelError(
            f"the graph stores no float weights of {', '.join(WEIGHT_BEARING)}, so there is nothing to perturb"
        )
    places = {NETWORK, *(layer.branch for layer in layers)}
    if perturbation.where not in places:
        raise ModelError(f"no weights belong to '{perturbation.where}'{nearest(perturbation.where, places)}")
    chosen = [layer for layer in layers if perturbation.where in (NETWORK, layer.branch)]
    random = np.random.default_rng(perturbation.seed)
    for layer in chosen:
        if perturbation.kind == "rounding":
            layer.weight.write(_rounded(layer.weight.values, layer.axis, int(perturbation.strength)))
        elif perturbation.kind == "noise":
            weights = layer.weight.values
            layer.weight.write(weights + perturbation.strength * weights.std() * random.standard_normal(weights.shape))
        elif not layer.last:
            _zero_channels(layer, perturbation.strength)
    return damaged


@dataclass(frozen=True)
class _Stored:
    """A stored tensor, and its values in double precision."""

    proto: TensorProto
    values: Array

    def write(self, values: Array) -> None:
        """Replace the values; the type and the shape stay."""
        numpy_helper = need("onnx.numpy_helper", "build")
        dtype = numpy_helper.to_array(self.proto).dtype
        self.proto.CopyFrom(numpy_helper.from_array(values.astype(dtype), self.proto.name))


@dataclass(frozen=True)
class _PerturbedLayer:
    """A weight-bearing node.

    Attributes:
        weight: Its weights.
        bias: Its own bias [channels]; None where there is none.
        axis: Axis of the weights' output channels.
        branch: The only graph input that it is computed from; "fusion" where there are several.
        last: Whether its channels are those of a graph output.
    """

    weight: _Stored
    bias: _Stored | None
    axis: int
    branch: str
    last: bool


def _layers(graph: GraphProto) -> list[_PerturbedLayer]:
    """Return the weight-bearing nodes whose weights are stored, one for each stored tensor."""
    stored = _stored(graph)
    behind, last = inputs_behind(graph), _writers_of_outputs(graph)
    found: dict[str, _PerturbedLayer] = {}
    for node in graph.node:
        factors = node.input[:2] if node.op_type in WEIGHT_BEARING else []
        weights = [name for name in factors if name in stored and stored[name].values.ndim > 1]
        if not weights:
            continue
        axis = _channel_axis(node, weights[0])
        bias = stored.get(node.input[2]) if len(node.input) > 2 else None
        sources = behind[node.output[0]]
        branch = next(iter(sources)) if len(sources) == 1 else FUSION
        known = found.get(weights[0])
        if known:  # shared by several nodes, which belong to a branch only where all of them do
            branch = branch if branch == known.branch else FUSION
        is_last = node.output[0] in last or bool(known and known.last)
        found[weights[0]] = _PerturbedLayer(stored[weights[0]], bias, axis, branch, is_last)
    return list(found.values())


def _stored(graph: GraphProto) -> dict[str, _Stored]:
    """Return the float tensors that the graph stores."""
    protos = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            protos[node.output[0]] = node.attribute[0].t
    arrays = {name: need("onnx.numpy_helper", "build").to_array(proto) for name, proto in protos.items()}
    return {
        name: _Stored(protos[name], array.astype(np.float64))
        for name, array in arrays.items()
        if np.issubdtype(array.dtype, np.floating)
    }


def _channel_axis(node: NodeProto, weight: str) -> int:
    """Return the axis of the output channels; of a grouped ConvTranspose that of each group's channels."""
    if node.op_type == "MatMul":
        return -1 if node.input[1] == weight else -2
    if node.op_type == "Gemm":
        value = need("onnx.helper", "build").get_attribute_value
        attributes = {item.name: value(item) for item in node.attribute}
        if node.input[1] == weight:
            return 0 if attributes.get("transB") else 1
        return 1 if attributes.get("transA") else 0
    return 1 if node.op_type == "ConvTranspose" else 0


def _writers_of_outputs(graph: GraphProto) -> set[str]:
    """Return the outputs of the weight-bearing nodes that no other such node separates from a graph output."""
    reached = {output.name for output in graph.output}
    last = set()
    for node in reversed(graph.node):
        if reached.isdisjoint(node.output):
            continue
        if node.op_type in WEIGHT_BEARING:
            last.update(node.output)
        else:
            reached.update(node.input)
    return last


def _rounded(weights: Array, axis: int, bits: int) -> Array:
    others = tuple(index for index in range(weights.ndim) if index != axis % weights.ndim)
    step = np.abs(weights).max(others, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.where(step > 0, np.round(weights / np.where(step > 0, step, 1)) * step, weights)


def _zero_channels(layer: _PerturbedLayer, share: float) -> None:
    channels = np.moveaxis(layer.weight.values.copy(), layer.axis, 0)
    norms = np.linalg.norm(channels.reshape(len(channels), -1), axis=1)
    smallest = np.argsort(norms, kind="stable")[: round(share * len(channels))]
    channels[smallest] = 0
    layer.weight.write(np.moveaxis(channels, 0, layer.axis))
    if layer.bias is not None and layer.bias.values.shape[-1:] == (len(channels),):
        bias = layer.bias.values.copy()
        bias[..., smallest] = 0
        layer.bias.write(bias)
