"""Weights of 8 or 4 bits in blocks, each with its scale: ONNX Runtime's MatMulNBits, where memory bounds the time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from edgekd.compress.graph import drop_unread, initializers, save
from edgekd.compress.quantizers.levels import closest_levels
from edgekd.compress.quantizers.names import Names
from edgekd.compress.quantizers.quantizer import ONNX_RUNTIME, Quantizer
from edgekd.compress.stored_layers import is_stored_matrix, is_transposed, read_matrix
from edgekd.files import need

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from onnx import NodeProto, TensorProto

    from edgekd.compress.activations.ranges import CalibrationSamples
    from edgekd.compress.work import GraphWork
    from edgekd.config.target import Scheme
    from edgekd.runtime.session import Array

#: Weights that share a scale, by the bits of each. Smaller blocks are closer, and take longer: of 8 bits a block of 32
#: gains 2 dB and costs a fifth of the speed, of 4 bits it gains as much and costs a tenth.
_BLOCK = {8: 128, 4: 32}
#: How ONNX Runtime computes: 4 rounds each block of an activation to INT8 by itself. With 0 to 3 it unpacks weights to
#: float first, which is slower than a float network where weights have 8 bits.
_ACCURACY_LEVEL = 4
#: Bytes of float matrices below which caches hold them all, and memory does not bound the time.
_FEWEST_BYTES = 1 << 20
#: Rows that each weight may be used for, by its bits: with more, arithmetic takes longer than reading weights.
_MOST_ROWS = {8: 8, 4: 16}


def write(
    bits: int, prepared: Path, _samples: CalibrationSamples, _scheme: Scheme, work: Path, floats: Collection[str]
) -> Path:
    """Write a float graph whose stored matrices have few bits, and return the file.

    MatMul and Gemm nodes become MatMulNBits. Activations between the layers stay float.

    Args:
        bits: Bits of a weight, 8 or 4.
        prepared: The float graph, its constants folded.
        _samples: Not read: no range is stored.
        _scheme: Not read: there is one form of MatMulNBits.
        work: A folder for the result.
        floats: Names of the nodes that stay float.
    """
    onnx = need("onnx", "build")
    model = onnx.load(str(prepared))
    graph, names, stored = model.graph, Names(model.graph), initializers(model.graph)
    packed: dict[tuple[str, bool], tuple[str, str]] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.name in floats or not is_stored_matrix(node, stored):
            nodes.append(node)
            continue
        key = node.input[1], is_transposed(node)
        matrix = read_matrix(node, stored)
        if key not in packed:
            tensors = _pack(matrix, bits, names, node.input[1])
            graph.initializer.extend(tensors)
            packed[key] = tensors[0].name, tensors[1].name
        nodes += _rewritten(node, matrix.shape, bits, packed[key], names)
    graph.ClearField("node")
    graph.node.extend(nodes)
    drop_unread(graph)
    save(model, work / "weights.onnx")
    return work / "weights.onnx"


def _rewritten(
    node: NodeProto, shape: tuple[int, ...], bits: int, packed: tuple[str, str], names: Names
) -> list[NodeProto]:
    """Return the MatMulNBits of a MatMul or Gemm, which has its name, and the addition of a bias."""
    make, has_bias = need("onnx", "build").helper.make_node, len(node.input) > 2
    result = names.tensor(f"{node.output[0]}_product") if has_bias else node.output[0]
    inputs, outputs = shape
    multiply = make(
        "MatMulNBits",
        [node.input[0], *packed],
        [result],
        node.name,
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=_BLOCK[bits],
        accuracy_level=_ACCURACY_LEVEL,
    )
    if not has_bias:
        return [multiply]
    return [multiply, make("Add", [result, node.input[2]], list(node.output), names.node(result))]


def _pack(matrix: Array, bits: int, names: Names, name: str) -> tuple[TensorProto, TensorProto]:
    """Return the levels [outputs, blocks, bytes] of a matrix [inputs, outputs], and the scales [outputs, blocks].

    A level is stored as the unsigned number that is 2^(bits-1) larger; of two in a byte the first has the lower bits
    (ONNX Runtime, docs/ContribOperators.md, com.microsoft.MatMulNBits).
    """
    block = _BLOCK[bits]
    padded = np.pad(matrix.T, ((0, 0), (0, -matrix.shape[0] % block)))
    levels, scales = closest_levels(padded.reshape(matrix.shape[1], -1, block), bits)
    unsigned = (levels.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 4:
        unsigned = unsigned[..., ::2] | unsigned[..., 1::2] << 4
    store = need("onnx", "build").numpy_helper.from_array
    return store(unsigned, names.tensor(f"{name}_levels")), store(scales[..., 0], names.tensor(f"{name}_scales"))


def _unsuitable(bits: int, work: GraphWork) -> str | None:
    """Explain why fewer bits of weights cannot make a graph faster; None where they may."""
    if work.matrix_bytes < _FEWEST_BYTES:
        return f"its matrices are of {work.matrix_bytes / 1e6:.2g} MB, which caches hold"
    if work.rows > _MOST_ROWS[bits]:
        return f"each weight is used {work.rows:.0f} times in an inference, so that memory does not bound the time"
    return work.few_products()


QUANTIZERS = tuple(
    Quantizer(
        f"weights{bits}",
        f"edgekd's {bits}-bit weights",
        partial(write, bits),
        packages=("onnx", "onnxruntime"),
        pairs=False,
        runtimes=ONNX_RUNTIME,
        unsuitable=partial(_unsuitable, bits),
    )
    for bits in _BLOCK
)
