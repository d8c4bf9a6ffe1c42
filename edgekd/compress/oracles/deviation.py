"""How far an engine's values of a tensor are from ONNX Runtime's, and whether that is more than rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekd.compress.graph import copy, initializers
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from onnx import ModelProto

    from edgekd.runtime.session import Array, Feeds

    Doubles = NDArray[np.float64]

#: The type in which an engine computes.
Arithmetic = Literal["f32", "f16", "bf16"]

#: Largest |difference| of an element, as a share of the largest magnitude about it, that is rounding in any network.
#: Twenty published networks differ by 6e-5 at most between OpenVINO and ONNX Runtime in float32.
_TOLERANCE = {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2}
#: Relative size of the noise by which a network is shaken, to see what it makes of rounding.
_SHAKE = {"f32": 2.0**-20, "f16": 2.0**-11, "bf16": 2.0**-8}
#: What sums add to one rounding: the difference that noise makes may be this many times as large.
_SUMS = 16.0
#: The magnitude about an element is at least this share of the tensor's: boxes in pixels hide no scores beside them,
#: and a channel of almost nothing is not held against its own rounding.
_LEAST = 1e-2

#: The weights of operators, by the number of the input: what is shaken in a graph. Constants elsewhere may be limits.
_WEIGHTS = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (0, 1), "Gather": (0,), "LSTM": (1, 2), "GRU": (1, 2),
    "RNN": (1, 2),
}  # fmt: skip


@dataclass(frozen=True)
class Deviation:
    """How an engine's values of one tensor differ from the exact ones.

    Attributes:
        share: The largest |difference| as a share of the tensor's largest magnitude; infinite where shapes, types or
            what is infinite or NaN differ.
        reason: What differs, as the end of a sentence; "" where nothing does but for rounding.
    """

    share: float
    reason: str


def deviation(
    found: Array, exact: Array, shaken: Sequence[Array] = (), arithmetic: Arithmetic = "f32", least: float = 0.0
) -> Deviation:
    """Compare an engine's values of a tensor with the exact ones.

    An element may differ by the arithmetic's rounding of the largest magnitude in its channel, and by what the network
    makes of noise as small as rounding. What noise changes in whole numbers and truth values is not compared.

    Args:
        found: The engine's values.
        exact: ONNX Runtime's, of the graph as it is written.
        shaken: The same of the network under noise, several times.
        arithmetic: The type in which the engine computes.
        least: The magnitude that the tensor's operator works with, however small its values: 1 of probabilities.
    """
    if found.shape != exact.shape or (found.dtype.kind == "f") != (exact.dtype.kind == "f"):
        return Deviation(math.inf, f"is {found.dtype} {list(found.shape)} instead of {exact.dtype} {list(exact.shape)}")
    shaken = [array for array in shaken if array.shape == exact.shape]
    one, other = exact.astype(np.float64), found.astype(np.float64)
    others = [array.astype(np.float64) for array in shaken]
    if exact.dtype.kind != "f":
        steady = np.logical_and.reduce([array == one for array in others], initial=True)
        return _of_numbers(np.where(steady, other, one), one, np.zeros(1), _TOLERANCE[arithmetic], max(least, 1.0))
    finite = np.isfinite(one)
    steady = np.logical_and.reduce([np.isfinite(array) == finite for array in others], initial=True)
    if (
        not np.array_equal(other[steady & ~finite], one[steady & ~finite], equal_nan=True)
        or not np.isfinite(other[steady & finite]).all()
    ):
        return Deviation(math.inf, "is infinite or NaN in other places")
    compared = steady & finite
    one, other = np.where(compared, one, 0), np.where(compared, other, 0)
    noise = np.zeros(1)
    for array in others:
        with np.errstate(invalid="ignore"):
            noise = np.maximum(noise, _in_channel(np.where(compared, np.abs(array - one), 0)))
    return _of_numbers(other, one, _SUMS * noise, _TOLERANCE[arithmetic], least)


def _of_numbers(other: Doubles, one: Doubles, noise: Doubles, tolerance: float, least: float) -> Deviation:
    difference, largest = np.abs(other - one), max(float(np.abs(one).max(initial=0)), least)
    error = float(difference.max(initial=0))
    share = error / largest if largest else (math.inf if error else 0.0)
    about = np.maximum(_in_channel(np.abs(one)), max(_LEAST * largest, least))
    if (difference <= np.maximum(tolerance * about, noise)).all():
        return Deviation(share, "")
    return Deviation(share, f"is off by {error:.2g}, its largest magnitude is {largest:.2g}")


def _in_channel(magnitudes: Doubles) -> Doubles:
    """Return for each element the largest magnitude in its channel, the second dimension or the last."""
    if not magnitudes.size:
        return magnitudes
    channel = np.full(magnitudes.shape, magnitudes.max())
    for axis in {1, magnitudes.ndim - 1} if magnitudes.ndim > 1 else ():
        others = tuple(index for index in range(magnitudes.ndim) if index != axis)
        channel = np.minimum(channel, magnitudes.max(others, keepdims=True))
    return channel


def shake(model: ModelProto, arithmetic: Arithmetic, seed: int) -> ModelProto:
    """Return a copy of a float graph whose weights have noise of the size of rounding."""
    numpy_helper, shaken = need("onnx", "build").numpy_helper, copy(model)
    stored, random = initializers(shaken.graph), np.random.default_rng(seed)
    names = {
        node.input[index]
        for node in shaken.graph.node
        for index in _WEIGHTS.get(node.op_type, ())
        if index < len(node.input) and node.input[index] in stored
    }
    for name in sorted(names):
        values = numpy_helper.to_array(stored[name])
        if values.dtype.kind == "f" and values.ndim > 1:
            stored[name].CopyFrom(numpy_helper.from_array(_noisy(values, arithmetic, random), name))
    return shaken


def shake_feeds(feeds: Feeds, arithmetic: Arithmetic, seed: int) -> Mapping[str, Array]:
    """Return inputs with noise of the size of rounding; whole numbers, such as masks, stay as they are."""
    random = np.random.default_rng(seed)
    return {
        name: np.where(array == np.round(array), array, _noisy(array, arithmetic, random))
        if array.dtype.kind == "f"
        else array
        for name, array in feeds.items()
    }


def _noisy(values: Array, arithmetic: Arithmetic, random: np.random.Generator) -> Array:
    noise = random.uniform(-1, 1, values.shape) * _SHAKE[arithmetic]
    noisy: Array = (values * (1 + noise)).astype(values.dtype)
    return noisy
