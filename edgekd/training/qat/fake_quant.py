"""Fake quantization: a network computes as its INT8 graph will, while its weights stay float and are still trained.

The weight and the input of every layer with weights are rounded to the levels that ONNX Runtime's quantizer writes,
and the gradient passes the rounding as if it were not there (straight-through: Jacob et al., "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", arXiv 1712.05877, section 3). What else INT8 graphs
round stays float here: tensors that no layer with weights reads, and biases, which have 32 bits.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgekd.training.loop.autograd_layers import NORMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.hooks import RemovableHandle

    from edgekd.config.target import Scheme

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
#: Layers with weights, and the ONNX operators that they become.
_OPERATORS: tuple[tuple[tuple[type[nn.Module], ...], frozenset[str]], ...] = (
    ((nn.Linear,), frozenset({"Gemm", "MatMul"})),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), frozenset({"Conv"})),
    (_TRANSPOSED, frozenset({"ConvTranspose"})),
)

#: Levels of activations, by type and symmetry, and the largest of weights, by ``reduce_range``: those of
#: ``get_qmin_qmax_for_qType`` in onnxruntime/quantization/quant_utils.py.
_LEVELS = {
    ("uint8", False): (0, 255),
    ("uint8", True): (0, 255),
    ("int8", False): (-128, 127),
    ("int8", True): (-127, 127),
}
_LARGEST_WEIGHT = {True: 64, False: 127}


class FakeQuantized:
    """A network under fake quantization; :func:`fake_quantized` makes it."""

    def __init__(self, roundings: list[_Rounding]) -> None:
        self._roundings = roundings

    def calibrate(self, run: Callable[[], object]) -> None:
        """Set the range of every layer's input to the smallest and largest value that it takes in ``run``.

        Args:
            run: Calls the network on samples, in evaluation mode. The network is float meanwhile, like a graph that is
                calibrated.
        """
        for rounding in self._roundings:
            rounding.begin_measuring()
        run()
        for rounding in self._roundings:
            rounding.end_measuring()


@contextmanager
def fake_quantized(model: nn.Module, scheme: Scheme) -> Iterator[FakeQuantized]:
    """Round a network's weights and their layers' inputs within the context; afterwards its weights are float again.

    Layers are ``nn.Linear``, ``nn.Conv*`` and ``nn.ConvTranspose*`` whose operator the scheme quantizes. One whose
    weight is not a parameter of its own (weight norm computes it) stays float; so does an input that no calibration has
    seen.

    Args:
        model: The network, on its device. It is changed in place: its state holds the ranges meanwhile. BatchNorm must
            be in evaluation mode, since graphs fold its running statistics.
        scheme: Levels of weights and activations, and which operators are quantized.
    """
    layers = [layer for layer in model.modules() if _is_quantized(layer, scheme)]
    roundings: list[_Rounding] = []
    handles: list[RemovableHandle] = []
    for layer in layers:
        rounding = _Rounding(layer, scheme)
        parametrize.register_parametrization(layer, "weight", rounding)
        handles += [layer.register_forward_pre_hook(rounding.of_input), layer.register_forward_hook(rounding.watch)]
        roundings.append(rounding)

    def pair(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for rounding in roundings:
            rounding.pair(norm, inputs[0])

    handles += [norm.register_forward_pre_hook(pair) for norm in model.modules() if _is_folded(norm)]
    try:
        yield FakeQuantized(roundings)
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def _is_quantized(layer: nn.Module, scheme: Scheme) -> bool:
    own = dict(layer.named_parameters(recurse=False))
    return "weight" in own and any(
        isinstance(layer, kinds) and not operators.isdisjoint(scheme.operators) for kinds, operators in _OPERATORS
    )


def _is_folded(norm: nn.Module) -> bool:
    return isinstance(norm, NORMS) and norm.running_var is not None


class _Rounding(nn.Module):
    """Rounds the weight of one layer, as its parametrization, and the layer's input.

    As a parametrization it is a part of the network, so the range of the input is in the network's state.
    """

    low: Tensor
    high: Tensor

    def __init__(self, layer: nn.Module, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.axis = int(isinstance(layer, _TRANSPOSED))  # of the output channels in the weight
        shared = isinstance(layer, _TRANSPOSED) and layer.groups > 1  # along that axis all groups would share a scale
        self.per_channel = scheme.per_channel and not shared
        self.measuring = False
        device = next(layer.parameters()).device
        self.register_buffer("low", torch.tensor(torch.inf, device=device))
        self.register_buffer("high", torch.tensor(-torch.inf, device=device))
        self._output: Tensor | None = None
        self._gain: Callable[[], Tensor] | None = None

    def begin_measuring(self) -> None:
        """Empty the range; from now on each input widens it, and nothing is rounded."""
        self.low.fill_(torch.inf)
        self.high.fill_(-torch.inf)
        self.measuring = True

    def end_measuring(self) -> None:
        """Keep the range; from now on inputs and weights are rounded."""
        self.measuring, self._output = False, None

    def watch(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        """Remember the layer's output until it is known whether a norm reads it."""
        self._output = output if self.measuring else None

    def pair(self, norm: nn.Module, x: Tensor) -> None:
        """Take ``norm`` as the layer's own if its input ``x`` is the layer's output."""
        if x is self._output:
            self._gain = partial(_gain, norm)

    def of_input(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Round a layer's input, or widen the range by it."""
        x = inputs[0].float()
        if self.measuring:
            self.low.copy_(torch.minimum(self.low, x.detach().amin()))
            self.high.copy_(torch.maximum(self.high, x.detach().amax()))
            return None
        if self.low > self.high:
            return None
        smallest, largest = _LEVELS[self.scheme.activations, self.scheme.symmetric_activations]
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)  # 0 must be a level
        if self.scheme.symmetric_activations:
            high = torch.maximum(-low, high)
            low = -high
        scale = _scale(high - low, largest - smallest)
        zero = (smallest - low / scale).round().to(torch.int32)
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero, smallest, largest)
        return (rounded.to(inputs[0].dtype), *inputs[1:])

    def forward(self, weight: Tensor) -> Tensor:
        """Round a weight, symmetrically, with one scale for each output channel or one for all."""
        if self.measuring:
            return weight
        largest = _LARGEST_WEIGHT[self.scheme.reduce_range]
        if self.per_channel:
            scale = _scale(weight.detach().abs().transpose(0, self.axis).flatten(1).amax(1), largest)
            zeros = torch.zeros_like(scale, dtype=torch.int32)
            return torch.fake_quantize_per_channel_affine(weight, scale, zeros, self.axis, -largest, largest)
        gain = self._shaped_gain(weight)
        folded = weight * gain
        scale = _scale(folded.detach().abs().amax(), largest)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_tensor_affine(folded, scale, zero, -largest, largest) / gain

    def _shaped_gain(self, weight: Tensor) -> Tensor:
        """Return the norm's gain of each output channel in the weight's shape; 1 where there is no norm.

        Where all channels have one scale, it is that of the folded weight. (One scale for each channel absorbs the
        gain.)
        """
        shape = [size if dim == self.axis else 1 for dim, size in enumerate(weight.shape)]
        return weight.new_ones(shape) if self._gain is None else self._gain().reshape(shape)


def _gain(norm: nn.Module) -> Tensor:
    """Return the factor [C] of a BatchNorm in evaluation mode on each channel, without its sign and never 0."""
    norm = cast("nn.BatchNorm1d", norm)
    assert norm.running_var is not None  # see `_is_folded`
    weight = cast("Tensor | None", norm.weight)
    gain = (norm.running_var + norm.eps).rsqrt() * (1 if weight is None else weight)
    positive: Tensor = gain.detach().abs().clamp_min(_TINY)
    return positive


_TINY = torch.finfo(torch.float32).tiny


def _scale(extent: Tensor, levels: int) -> Tensor:
    """Return the distance between two levels; where all values are 0 it is arbitrary."""
    return (extent / levels).clamp_min(_TINY)
