"""Make a network one that torch's exporter can write, without a change to what it computes.

The exporter runs a network on tensors without values. Some of torch's own modules ask for values all the same, or are
written with operators that ONNX does not have; within :func:`exportable` they are written otherwise.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from edgekd.training.export.sequences import padded_sequences, run_packed, run_projected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

#: Hooks that compute a weight before each run, by the name of their class: ``torch.nn.utils.weight_norm`` and
#: ``spectral_norm`` as they were before there were parametrizations.
_WEIGHT_HOOKS = ("WeightNorm", "SpectralNorm")


@contextmanager
def exportable(model: nn.Module) -> Iterator[None]:
    """Within the context a network in evaluation mode can be exported; afterwards it is as before.

    - Weights that are computed (``weight_norm``, ``spectral_norm`` and any other parametrization) are constants.
    - ``nn.TransformerEncoder`` does not look whether its mask is a causal one, which only makes it faster.
    - Packed sequences are padded ones, and recurrent layers run them as such.
    - An LSTM with ``proj_size`` is written step by step.
    - ``scaled_dot_product_attention`` without heads has one, and an adaptive maximum is one of each part.
    """
    with ExitStack() as stack:
        for layer in list(model.modules()):
            if parametrize.is_parametrized(layer):
                stack.enter_context(_folded(layer))
            _enter_hooked(stack, layer)
            if isinstance(layer, nn.RNNBase) and "forward" not in vars(layer):
                stack.enter_context(_replaced(layer, "forward", partial(_run_recurrent, layer, layer.forward)))
        stack.enter_context(_replaced(transformer, "_detect_is_causal_mask", _as_told))
        stack.enter_context(padded_sequences())
        stack.enter_context(_Functions())
        yield


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Give an object another attribute within the context."""
    own = vars(owner)
    kept = own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if kept is None:
            delattr(owner, name)
        else:
            setattr(owner, name, kept)


def _as_told(_mask: Tensor | None, is_causal: bool | None = None, _size: int | None = None, **_named: object) -> bool:
    """Return what the caller says of a mask. Where they say nothing, the mask itself is applied, whatever it is."""
    return is_causal is True


def _run_recurrent(layer: nn.RNNBase, forward: Callable[..., object], given: object, state: Any = None) -> object:
    """Run a recurrent layer."""
    if isinstance(given, PackedSequence):
        return run_packed(layer, given, state)
    if layer.proj_size:
        return run_projected(cast("nn.LSTM", layer), cast("Tensor", given), state)
    return forward(given, state)


class _Functions(TorchFunctionMode):
    """Computes functions otherwise that the exporter does not know."""

    def __torch_function__(
        self, function: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call one of torch's functions."""
        written = _WRITTEN.get(function)
        return (written or function)(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **named: Any
) -> Any:
    """Compute attention; where it is over [B, T, D] it gets the one head that the exporter asks for."""
    attend = nn.functional.scaled_dot_product_attention
    if any(x.dim() != 3 for x in (query, key, value)):
        return attend(query, key, value, attn_mask, *more, **named)
    mask = attn_mask.unsqueeze(1) if attn_mask is not None and attn_mask.dim() == 3 else attn_mask
    return attend(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1), mask, *more, **named).squeeze(1)


def _adaptive_maximum(dims: int, whole: Callable[..., Any]) -> Callable[..., Any]:
    """Return an adaptive maximum over the last dimensions, of any output size; with indices it is torch's own."""

    def pool(x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        if return_indices:
            return whole(x, output_size, True)
        sizes = [output_size] * dims if isinstance(output_size, int) else list(output_size)
        for dim, size in zip(range(x.dim() - dims, x.dim()), sizes, strict=True):
            length = x.shape[dim]
            count = length if size is None else size
            bins = [(place * length // count, -(-(place + 1) * length // count)) for place in range(count)]
            x = torch.stack([x.narrow(dim, start, end - start).amax(dim) for start, end in bins], dim)
        return x

    return pool


_WRITTEN: dict[object, Callable[..., Any]] = {
    nn.functional.scaled_dot_product_attention: _attention,
    nn.functional.adaptive_max_pool1d: _adaptive_maximum(1, nn.functional.adaptive_max_pool1d),
    nn.functional.adaptive_max_pool2d: _adaptive_maximum(2, nn.functional.adaptive_max_pool2d),
}


@contextmanager
def _folded(layer: nn.Module) -> Iterator[None]:
    """Make a layer's parametrized tensors plain parameters within the context."""
    with torch.no_grad():
        values = {name: getattr(layer, name).clone() for name in cast("nn.ModuleDict", layer.parametrizations)}
    kind, parametrizations = layer.__class__, layer.parametrizations
    layer.__class__ = kind.__mro__[1]  # the class as it was before torch gave it properties
    del layer.parametrizations
    for name, value in values.items():
        layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
    try:
        yield
    finally:
        for name in values:
            delattr(layer, name)
        layer.__class__ = kind
        layer.parametrizations = parametrizations


def _enter_hooked(stack: ExitStack, layer: nn.Module) -> None:
    """Make the weights that hooks compute constants: the hooks run now, and not in the export."""
    hooks = layer._forward_pre_hooks
    for key, hook in list(hooks.items()):
        if type(hook).__name__ in _WEIGHT_HOOKS and type(hook).__module__.startswith("torch.nn.utils"):
            stack.enter_context(_constant(layer, key, cast("Callable[[nn.Module, object], None]", hook)))


@contextmanager
def _constant(layer: nn.Module, key: int, hook: Callable[[nn.Module, object], None]) -> Iterator[None]:
    name = cast("str", hook.name)  # type: ignore[attr-defined]
    with torch.no_grad():
        hook(layer, ())
        value = getattr(layer, name).clone()
    hooks = layer._forward_pre_hooks
    order = list(hooks)
    del hooks[key]
    computed = vars(layer).pop(name)
    layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
    try:
        yield
    finally:
        delattr(layer, name)
        vars(layer)[name] = computed
        hooks[key] = hook
        for each in order:  # the last that was put in is the last that runs
            hooks[each] = hooks.pop(each)
