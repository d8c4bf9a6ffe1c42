"""How often blame ranks first what was broken on purpose, by each figure that could rank, on 8 and on 400 samples.

A shipped task's student is quantized as a build does. Then one layer, or one branch, is broken in the QDQ graph: its
activations clip, or their steps are too coarse, or its weights share the one scale that an outlier asks for. Of several
strengths it is the mildest that does clear harm on the test split: the divergence is above the gate's limit, and above
three times that of the whole INT8 network. Blame looks at calibration samples, and, where these are too few, at some of
the test split too. A rank that several parts share counts as the share of one of them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from common import arguments, export, parse, write_result

import edgekd
from edgekd.compress import quantize
from edgekd.compress.blame import blame
from edgekd.compress.graph import copy, initializers
from edgekd.compress.partial import Examiner, SampleFacts
from edgekd.compress.qdq_map import find_sites
from edgekd.compress.variants import CandidateSpec
from edgekd.gram.answers import MAX_DIVERGENCE, OutputKind
from edgekd.gram.blame import rank
from edgekd.stages.artifacts import CALIBRATION, PREPARED, QDQ, TEST, onnx_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from edgekd.gram.blame import Scope
    from edgekd.runtime.session import Array

TASKS = ("digits", "gestures", "av-digits")
TARGET = "cpu"
#: Ways to break a part, each with its kind of tensor and its strengths, the mildest first.
WAYS = {
    "clipped": ("activation", (1 / 2, 1 / 4, 1 / 10, 1 / 20)),
    "coarse": ("activation", (8, 16, 32, 64)),
    "outlier": ("weight", (8, 16, 32, 64)),
}
COUNTS = (8, 400)
GOAL = 0.9
KIND = OutputKind("classes")
#: The harm of a broken network is at least this many times that of the whole one, and above the gate's limit.
CLEAR = 5.0


@dataclass(frozen=True)
class Place:
    """A layer or a branch, and the tensors that are its own."""

    scope: Scope
    name: str
    tensors: frozenset[str]


def places(examiner: Examiner) -> Iterator[Place]:
    """Yield every layer and every branch; what two layers read is in neither of them."""
    tensors = examiner.board.tensors
    for layer in dict.fromkeys(layer for item in tensors for layer in item.layers):
        yield Place("layer", layer, examiner.tensors_of([layer]))
    for branch in dict.fromkeys(item.branch for item in tensors):
        yield Place("branch", branch, frozenset(item.tensor for item in tensors if item.branch == branch))


def break_graph(
    qdq: onnx.ModelProto, floats: onnx.ModelProto, tensors: Collection[str], strength: float
) -> onnx.ModelProto:
    """Return the graph with the steps of activations times ``strength``, and weights of one scale, times as large."""
    broken = copy(qdq)
    sites, stored = find_sites(broken, floats), initializers(broken.graph)

    def store(name: str, value: Array) -> str:
        broken.graph.initializer.append(onnx.numpy_helper.from_array(value, f"{name}:broken"))
        return f"{name}:broken"

    for tensor in tensors:
        site = sites[tensor]
        old = {node.input[1] for pair in site.pairs for node in pair if node}
        scales = {name: onnx.numpy_helper.to_array(stored[name]) for name in old}
        if site.kind == "activation":
            new = {name: store(f"{tensor}:{name}", scale * np.float32(strength)) for name, scale in scales.items()}
            for pair in site.pairs:
                for node in filter(None, pair):
                    node.input[1] = new[node.input[1]]
            continue
        for dequantize, _ in site.pairs:
            scale, levels = (onnx.numpy_helper.to_array(stored[dequantize.input[index]]) for index in (1, 0))
            axis = next((item.i for item in dequantize.attribute if item.name == "axis"), 1)
            shape = [-1 if index == axis else 1 for index in range(levels.ndim)] if scale.ndim else []
            one = np.full_like(scale, scale.max() * strength)
            rounded = np.round(levels * (scale / one).reshape(shape)).astype(levels.dtype)
            dequantize.input[0] = store(dequantize.input[0], rounded)
            dequantize.input[1] = store(dequantize.input[1], one)
    return broken


def harmful(
    qdq: onnx.ModelProto, floats: onnx.ModelProto, place: Place, examiner: Examiner, test: Sequence[Mapping[str, Array]]
) -> Iterator[tuple[str, float, float, onnx.ModelProto | None]]:
    """Yield for each way to break a place its strength, its harm, and the graph; None where no strength does harm."""
    kinds = {item.tensor: item.kind for item in examiner.board.tensors}
    whole = Examiner(qdq, floats, test, SampleFacts(kind=KIND)).measure().divergence.value
    limit = CLEAR * whole
    for way, (kind, strengths) in WAYS.items():
        tensors = [tensor for tensor in place.tensors if kinds[tensor] == kind]
        if not tensors:
            continue
        harm, strength = 0.0, 0.0
        for strength in strengths:
            broken = break_graph(qdq, floats, tensors, strength)
            harm = Examiner(broken, floats, test, SampleFacts(kind=KIND)).measure().divergence.value
            if harm > limit:
                yield way, strength, harm, broken
                break
        else:
            yield way, strength, harm, None
