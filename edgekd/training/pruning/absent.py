"""Run a network with some values absent. NaN marks them, so it is the network itself that says where they go.

NaN passes through elementwise functions, and through every way of reordering values, as a value would. What remains is
to say what a layer makes of it that reads several values at once: it reads an absent one as zero, and what it makes of
absent values alone is absent, too. A norm, a mean or a softmax over channels is one over those that are there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Torch's operators as they are dispatched; torch has no types for them.
Operator = Any


class AbsentValues(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of a hook of torch's
    """Within the context, NaN is an absent value, and what torch draws at random is 0.5.

    The latter lets two networks of different widths be compared in training mode, dropout and all.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, function: Operator, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute one of torch's operators."""
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name == "native_dropout":
            return args[0], torch.ones_like(args[0], dtype=torch.bool)
        if name in _RANDOM:
            return function(*args, **kwargs).fill_(0.5)
        rule = _RULES.get(name)
        if rule is None or not any(isinstance(x, Tensor) and _has_absent(x) for x in args):
            return function(*args, **kwargs)
        return rule(function, args, kwargs)


def _has_absent(x: Tensor) -> bool:
    return x.is_floating_point() and bool(x.isnan().any())


def _filled(x: Tensor, value: float = 0.0) -> Tensor:
    return x.masked_fill(x.isnan(), value)


def _present(x: Tensor) -> Tensor:
    return (~x.isnan()).to(x.dtype)


def _without(x: Tensor, absent: Tensor) -> Tensor:
    return x.masked_fill(absent, torch.nan)


def _product(first: int) -> Callable[[Operator, Sequence[Any], Mapping[str, Any]], Any]:
    """Return the rule of a product of matrices, of which the factors are two arguments from ``first`` on."""

    def rule(function: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        left, right = args[first], args[first + 1]
        product = function(*args[:first], _filled(left), _filled(right), *args[first + 2 :], **kwargs)
        return _without(product, torch.matmul(_present(left), _present(right)) == 0)

    return rule


def _convolution(function: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, weight, _, *rest = args
    ones = torch.ones_like(weight)
    # Where a kernel sees nothing but padding nothing is absent.
    absent = (function(_present(x), ones, None, *rest) == 0) & (function(1 - _present(x), ones, None, *rest) > 0)
    return _without(function(_filled(x), *args[1:], **kwargs), absent)


def _recurrence(function: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return function(_filled(args[0]), *args[1:], **kwargs)


def _extreme(neutral: float) -> Callable[[Operator, Sequence[Any], Mapping[str, Any]], Any]:
    """Return the rule of a maximum (``neutral`` is -inf) or a minimum (inf), which may come with its index."""

    def rule(function: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        result = function(_filled(args[0], neutral), *args[1:], **kwargs)
        extreme = result if isinstance(result, Tensor) else result[0]
        extreme = _without(extreme, extreme == neutral)
        return extreme if isinstance(result, Tensor) else (extreme, *result[1:])

    return rule


def _sum(function: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Compute a sum or a norm, either of which is 0 of the values that are there only where there are none."""
    result = function(_filled(args[0]), *args[1:], **kwargs)
    return _without(result, function(_present(args[0]), *args[1:], **kwargs) == 0)


def _mean(function: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    # Of both means the number of values is the same, and 0 / 0 is absent.
    return function(_filled(args[0]), *args[1:], **kwargs) / function(_present(args[0]), *args[1:], **kwargs)


def _softmax(function: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return _without(function(_filled(args[0], -torch.inf), *args[1:], **kwargs), args[0].isnan())


def _variance(
    _function: Operator,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    x, dims = args[0], list(args[1]) if len(args) > 1 and args[1] is not None else list(range(args[0].dim()))
    squares, count = _squares(x, dims)
    correction = kwargs.get("correction")
    variance = squares / (count - (1 if correction is None else correction)).clamp_min(0)
    return variance if kwargs.get("keepdim", False) else variance.squeeze(dims)


def _deviation(function: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return _variance(function, args, kwargs).sqrt()


def _squares(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Return the sum of squared distances to the mean of what is there, and how many there are; dims are kept."""
    return (x - x.nanmean(dims, keepdim=True)).square().nansum(dims, keepdim=True), _present(x).sum(dims, keepdim=True)


def _normalized(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    squares, count = _squares(x, dims)
    mean, scale = x.nanmean(dims, keepdim=True), (squares / count + eps).rsqrt()
    return (x - mean) * scale, mean, scale


def _layer_norm(_function: Operator, args: Sequence[Any], _kwargs: Mapping[str, Any]) -> Any:
    x, shape, weight, bias, eps = args
    y, mean, scale = _normalized(x, list(range(-len(shape), 0)), eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias), mean, scale


def _rms_norm(_function: Operator, args: Sequence[Any], _kwargs: Mapping[str, Any]) -> Any:
    x, shape, weight, eps = args
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scale = (x.square().nanmean(list(range(-len(shape), 0)), keepdim=True) + eps).rsqrt()
    return (x * scale if weight is None else x * scale * weight), scale


def _group_norm(_function: Operator, args: Sequence[Any], _kwargs: Mapping[str, Any]) -> Any:
    x, weight, bias, samples, channels, _, groups, eps = args
    y, mean, scale = _normalized(x.reshape(samples, groups, -1), [2], eps)
    shape = (1, channels, *[1] * (x.dim() - 2))
    y = y.reshape(x.shape)
    y = y if weight is None else y * weight.view(shape)
    return (y if bias is None else y + bias.view(shape)), mean.squeeze(2), scale.squeeze(2)


_RANDOM = {"bernoulli", "bernoulli_", "rand", "rand_like", "randn", "randn_like", "uniform_", "normal_"}

_RULES: dict[str, Callable[[Operator, Sequence[Any], Mapping[str, Any]], Any]] = {
    "convolution": _convolution,
    **dict.fromkeys(("mm", "bmm"), _product(0)),
    **dict.fromkeys(("addmm", "baddbmm"), _product(1)),
    **dict.fromkeys(("mkldnn_rnn_layer", "_cudnn_rnn"), _recurrence),
    **dict.fromkeys(("sum", "linalg_vector_norm"), _sum),
    **dict.fromkeys(("max", "amax"), _extreme(-torch.inf)),
    **dict.fromkeys(("min", "amin"), _extreme(torch.inf)),
    **dict.fromkeys(("_softmax", "_log_softmax"), _softmax),
    "mean": _mean,
    "var": _variance,
    "std": _deviation,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
}
