"""Weights that a model stores in integers and turns into floats before it computes: stored as floats instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.compress.graph import copy, drop_unread, open_at, producers, reads
from edgekd.compress.precision import computed_tensors, is_quantized, stored_tensors
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from onnx import ModelProto, NodeProto

    from edgekd.runtime.session import Array

#: Operators that say that what they read or give is quantized.
_CONVERTING = frozenset({"QuantizeLinear", "DequantizeLinear"})


def fold_stored(model: ModelProto) -> list[str]:
    """Store weights as floats that are computed from stored integers of 8 bits or fewer, in place.

    That is what weight-only quantization leaves: DequantizeLinear, or Cast and Mul, on stored tensors; and what
    training with fake quantization does, whose stored floats pass QuantizeLinear and DequantizeLinear. The values are
    those that ONNX Runtime computes of them.

    Returns:
        A sentence for the user; none where there are no such weights.
    """
    graph = model.graph
    computed, made = computed_tensors(graph), producers(graph)
    if any(is_quantized(node.op_type) for node in graph.node if not computed.isdisjoint(node.output)):
        return []  # of activations, too: such a model is no float network
    integers = {name for name, tensor in stored_tensors(graph).items() if tensor.data_type in _integers()}
    read = {name for node in graph.node if not computed.isdisjoint(node.output) for name in reads(node)}
    read |= {output.name for output in graph.output}
    folded = [name for name in made if name in read - computed and _is_dequantized(name, made, integers)]
    values = _compute(model, folded)
    for name, array in values.items():
        graph.node.remove(made[name])
        graph.initializer.append(need("onnx", "build").numpy_helper.from_array(array, name))
    drop_unread(graph)
    if not values:
        return []
    return [
        f"{len(values)} of its weights are stored in 8 bits or fewer and computed with in float: they are taken as the "
        "floats that they stand for, and quantized again; --as-is keeps the file as it is"
    ]


def _integers() -> tuple[int, ...]:
    types = need("onnx", "build").TensorProto
    return types.INT8, types.UINT8, types.INT4, types.UINT4


def _is_dequantized(name: str, made: Mapping[str, NodeProto], integers: AbstractSet[str]) -> bool:
    """Whether a constant is made of stored integers, or of stored numbers that are rounded."""
    ahead, seen = [name], {name}
    while ahead:
        node = made.get(ahead.pop())
        if node is None:
            continue
        if node.op_type in _CONVERTING or not integers.isdisjoint(node.input):
            return True
        ahead += [source for source in reads(node) if source not in seen]
        seen.update(reads(node))
    return False


def _compute(model: ModelProto, names: list[str]) -> dict[str, Array]:
    """Return the values of constants of floats among these, as ONNX Runtime computes them node by node."""
    if not names:
        return {}
    constants = copy(model)
    constants.graph.ClearField("input")
    session = open_at(constants, names)
    found = dict(zip(names, session.run(names, {}), strict=True))
    return {name: array for name, array in found.items() if array.dtype.kind == "f"}
