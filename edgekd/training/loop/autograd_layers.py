"""Find layers by their position on the autograd graph, which does not depend on how a network names its modules."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch.autograd.graph import Node

    from edgekd.config.recipe import Tap

#: Layers whose weight makes new channels.
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
#: Layers that normalise by statistics, which exported graphs fold into the weights before them.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

#: Nodes of the autograd graph that multiply activations by each other: scaled_dot_product_attention, matmul, einsum.
_PRODUCTS = ("ScaledDotProduct", "BmmBackward", "BaddbmmBackward")


def output_width(layer: nn.Module) -> int:
    """Return the number of output channels of one of the :data:`WEIGHTED` layers."""
    return int(cast("int", layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels))


def matrix(layer: nn.Module) -> Tensor:
    """Return a layer's weights as [out, n, kernel], in float64 on the processor.

    Its n columns are the input channels and, where the layer has a bias and does not work in slices (``groups``), one
    more for a constant 1. Between slices there are zeros.
    """
    weight = cast("Tensor", layer.weight).detach().double().cpu()
    slices = _slices(layer)
    weight = weight.reshape(slices, weight.shape[0] // slices, weight.shape[1], -1)
    if getattr(layer, "transposed", False):  # torch has [in, out / groups, ...] for these
        weight = weight.transpose(1, 2)
    _, out, inputs, kernel = weight.shape
    dense = weight.new_zeros(slices, out, slices, inputs, kernel)
    for number in range(slices):
        dense[number, :, number] = weight[number]
    dense = dense.view(slices * out, slices * inputs, kernel)
    if not has_constant(layer):
        return dense
    constant = torch.zeros(len(dense), 1, kernel, dtype=dense.dtype)
    constant[:, 0, 0] = cast("Tensor", layer.bias).detach().double().cpu()
    return torch.cat([dense, constant], 1)


def set_matrix(layer: nn.Module, dense: Tensor) -> None:
    """Set a layer's weights, in place, from a matrix such as :func:`matrix` returns."""
    weight = cast("Tensor", layer.weight)
    slices = _slices(layer)
    with torch.no_grad():
        if has_constant(layer):
            cast("Tensor", layer.bias).copy_(dense[:, -1].sum(1))
            dense = dense[:, :-1]
        out, inputs, kernel = dense.shape
        blocks = dense.reshape(slices, out // slices, slices, inputs // slices, kernel)
        kept = torch.stack([blocks[number, :, number] for number in range(slices)])
        if getattr(layer, "transposed", False):
            kept = kept.transpose(1, 2)
        weight.copy_(kept.reshape(weight.shape))


def same_slice(layer: nn.Module) -> Tensor:
    """Return whether any output reads both of two columns of :func:`matrix`, as 1 or 0 [n, n]."""
    slices, columns = _slices(layer), matrix(layer).shape[1]
    return (
        torch.eye(slices, dtype=torch.float64)
        .repeat_interleave(columns // slices, 0)
        .repeat_interleave(columns // slices, 1)
    )


def has_constant(layer: nn.Module) -> bool:
    """Whether a layer's matrix has a column for a constant."""
    return layer.bias is not None and _slices(layer) == 1


def _slices(layer: nn.Module) -> int:
    return int(getattr(layer, "groups", 1))


def width_defining_layers(model: nn.Module, taps: Mapping[str, Tap], inputs: Sequence[Tensor]) -> list[nn.Module]:
    """Return the layers whose output channels are the channels of an embedding or of an output.

    They are searched from each of those outputs backwards, never past a layer that makes new channels, so a tap may
    also name a container or an activation. Parameters must be trainable.
    """
    with TappedModel(model, taps) as tapped:
        answers, embeddings = tapped(list(inputs))
    return last_layers((*answers.values(), *embeddings.values()), model)


def last_layers(outputs: Iterable[Tensor], model: nn.Module) -> list[nn.Module]:
    """Return the layers whose output channels are the channels of some tensors."""
    return list(_behind([output.grad_fn for output in outputs], model, through=False))


def attention_layers(model: nn.Module, taps: Mapping[str, Tap], inputs: Sequence[Tensor]) -> list[nn.Module]:
    """Return the layers that make queries, keys and values, or any other factors of a product of activations.

    A view divides their channels into heads, which a dependency graph does not know. Were some channels removed, others
    would move from one head into the next, and the network would still run. Parameters must be trainable.
    """
    with TappedModel(model, taps) as tapped:
        answers, embeddings = tapped(list(inputs))
    ends = [output.grad_fn for output in (*answers.values(), *embeddings.values())]
    layers: set[nn.Module] = set()
    for node in _nodes(ends):
        if type(node).__name__.startswith(_PRODUCTS):
            factors = [_behind([below], model, through=False) for below, _ in node.next_functions if below is not None]
            # Where no layer makes one of two factors it is a weight, as in an einsum with a parameter.
            if all(factors) or len(factors) > 2:
                layers = layers.union(*factors)
    return list(layers)


def encoder_layers(model: nn.Module, taps: Mapping[str, Tap], inputs: Sequence[Tensor]) -> dict[nn.Module, str]:
    """Return the modality of each layer that computes the embedding of that modality alone.

    Layers that compute several embeddings, and those after the embeddings, are in no modality's encoder. Parameters
    must be trainable.
    """
    with TappedModel(model, taps) as tapped:
        _, embeddings = tapped(list(inputs))
    behind = {modality: _behind([z.grad_fn], model, through=True) for modality, z in embeddings.items()}
    passed = [layer for layers in behind.values() for layer in layers]
    return {layer: modality for modality, layers in behind.items() for layer in layers if passed.count(layer) == 1}


def _behind(ends: Iterable[Node | None], model: nn.Module, through: bool) -> set[nn.Module]:
    """Return the layers before some nodes of the graph: all of them, or only the last on each path."""
    owner: dict[int, nn.Module] = {id(m.weight): m for m in model.modules() if isinstance(m, WEIGHTED)}
    layers: set[nn.Module] = set()

    def is_passed(node: Node) -> bool:
        layer = _layer_of(node, owner)
        if layer is not None:
            layers.add(layer)
        return layer is None or through

    for _ in _nodes(ends, is_passed):
        pass
    return layers


def _nodes(ends: Iterable[Node | None], is_passed: Callable[[Node], bool] = lambda _: True) -> Iterator[Node]:
    """Yield some nodes of the graph and those before them, but none before a node that is not to be passed."""
    pending = list(ends)
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if is_passed(node):
            pending += [below for below, _ in node.next_functions]


def _layer_of(node: Node, owner: Mapping[int, nn.Module]) -> nn.Module | None:
    """Return the layer whose weight, as it is or transposed, is an input of this node."""
    for below, _ in node.next_functions:
        source = below.next_functions[0][0] if below is not None and type(below).__name__ == "TBackward0" else below
        variable = getattr(source, "variable", None)
        if variable is not None and id(variable) in owner:
            return owner[id(variable)]
    return None


@contextmanager
def parameters_trainable(model: nn.Module) -> Iterator[None]:
    """Make all parameters trainable within the context: torch-pruning, too, reads the autograd graph.

    Afterwards they are as before by their names, since pruning replaces parameters by new ones.
    """
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def train_unfrozen(model: nn.Module) -> None:
    """Put a network in training mode, except BatchNorm in its frozen parts, which keeps its running statistics.

    A part is frozen where it has parameters and none of them is trainable; BatchNorm without scale and shift is frozen
    with the part that it lies in.
    """
    model.train()
    for part in model.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            for norm in part.modules():
                if isinstance(norm, NORMS):
                    norm.eval()


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Make BatchNorm use and keep its running statistics in training too; its scale and shift are still learned."""

    def freeze(norm: nn.Module, _inputs: object) -> None:
        norm.eval()  # at each call: training mode comes back with every epoch

    handles = [m.register_forward_pre_hook(freeze) for m in model.modules() if isinstance(m, NORMS)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
