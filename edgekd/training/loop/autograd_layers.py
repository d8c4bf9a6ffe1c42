"""Which layers lie where, found on the autograd graph: it knows a user's network whatever its modules are called."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from edgekd.training.taps.taps import TappedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from edgekd.config.recipe import Tap

#: Layers whose weight makes new channels.
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
#: Normalisation by statistics, which graphs fold into the weights before it.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

#: Nodes of the autograd graph that multiply activations by each other: scaled_dot_product_attention, matmul, einsum.
_PRODUCTS = ("ScaledDotProduct", "BmmBackward", "BaddbmmBackward")


def output_width(layer: nn.Module) -> int:
    """Return how many channels one of the :data:`WEIGHTED` gives."""
    return int(cast("Any", layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels))


def matrix(layer: nn.Module) -> Tensor:
    """Return a layer's weights as [out, n, kernel], in float64 on the processor.

    Its n columns are the input channels, and where it has a bias and does not work in slices (``groups``) one more for
    a constant 1. Between slices there are zeros.
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
    """Give a layer the weights of a matrix like :func:`matrix`'s, in place."""
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
    """Return for each two columns of :func:`matrix` whether outputs exist that read both, as 1 or 0 [n, n]."""
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
    return int(cast("Any", getattr(layer, "groups", 1)))


def width_defining_layers(model: nn.Module, taps: Mapping[str, Tap], inputs: Sequence[Tensor]) -> list[nn.Module]:
    """Return the layers whose output channels are the channels of an embedding or of the logits.

    Found from each of those outputs backwards, never past a layer that makes new channels. So a tap may name any
    module, a container or an activation too. Parameters must be trainable.
    """
    with TappedModel(model, taps) as tapped:
        logits, embeddings = tapped(list(inputs))
    ends = [output.grad_fn for output in (logits, *embeddings.values())]
    return list(_behind(ends, model, through=False))


def attention_layers(model: nn.Module, taps: Mapping[str, Tap], inputs: Sequence[Tensor]) -> list[nn.Module]:
    """Return the layers that make queries, keys and values, or any other factors of a product of activations.

    A view divides their channels into heads, of which a dependency graph knows nothing: without some channels, others
    would slide from one head into the next, and the network would still run. Parameters must be trainable.
    """
    with TappedModel(model, taps) as tapped:
        logits, embeddings = tapped(list(inputs))
    ends = [output.grad_fn for output in (logits, *embeddings.values())]
    products = [node for node in _nodes(ends) if type(node).__name__.startswith(_PRODUCTS)]
    factors = [below for node in products for below, _ in node.next_functions]
    return list(_behind(factors, model, through=False))


def encoder_layers(model: nn.Module, taps: Mapping[str, Tap], inputs: Sequence[Tensor]) -> dict[nn.Module, str]:
    """Return for each layer that one modality's embedding alone is computed by, which modality that is.

    Layers that several embeddings pass through, and those after them, are in no modality's encoder. Parameters must be
    trainable.
    """
    with TappedModel(model, taps) as tapped:
        _, embeddings = tapped(list(inputs))
    behind = {modality: _behind([z.grad_fn], model, through=True) for modality, z in embeddings.items()}
    passed = [layer for layers in behind.values() for layer in layers]
    return {layer: modality for modality, layers in behind.items() for layer in layers if passed.count(layer) == 1}


def _behind(ends: Iterable[Any], model: nn.Module, through: bool) -> set[nn.Module]:
    """Return the layers before some nodes of the graph: all, or where not ``through`` the last on each way."""
    owner: dict[int, nn.Module] = {id(m.weight): m for m in model.modules() if isinstance(m, WEIGHTED)}
    found: set[nn.Module] = set()

    def is_passed(node: Any) -> bool:
        layer = _layer_of(node, owner)
        if layer is not None:
            found.add(layer)
        return layer is None or through

    for _ in _nodes(ends, is_passed):
        pass
    return found


def _nodes(ends: Iterable[Any], is_passed: Callable[[Any], bool] = lambda _: True) -> Iterator[Any]:
    """Go through some nodes of the graph and all before them, but never past one that is not to be passed."""
    pending = list(ends)
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if is_passed(node):
            pending += [below for below, _ in node.next_functions]


def _layer_of(node: Any, owner: Mapping[int, nn.Module]) -> nn.Module | None:
    """Return the layer whose weight goes straight (or transposed) into this node."""
    for below, _ in node.next_functions:
        source = below.next_functions[0][0] if below is not None and type(below).__name__ == "TBackward0" else below
        variable = getattr(source, "variable", None)
        if variable is not None and id(variable) in owner:
            return owner[id(variable)]
    return None


@contextmanager
def parameters_trainable(model: nn.Module) -> Iterator[None]:
    """Let gradients flow for as long as it holds: torch-pruning, too, reads the autograd graph.

    Told apart by name, since pruning puts new parameters in the place of the old ones.
    """
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def train_unfrozen(model: nn.Module) -> None:
    """Put a network in training mode, but for BatchNorm in its frozen parts, which keeps its running statistics.

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
    """Let BatchNorm keep its running statistics, and use them in training too; its scale and shift go on learning."""

    def freeze(norm: nn.Module, _inputs: Any) -> None:
        norm.eval()  # at each call: training mode comes back with every epoch

    handles = [m.register_forward_pre_hook(freeze) for m in model.modules() if isinstance(m, NORMS)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
