"""What is done to each float network of the alarm study: damage, fake quantization, real pruning, real INT8."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from alarm_cases import OPSET
from onnx import helper, numpy_helper
from peers.quantize import QUANTIZERS, Samples

import edgekd
from edgekd.compress import quantize
from edgekd.compress.graph import copy, unquantize_outputs
from edgekd.compress.perturb import NETWORK, Perturbation, perturb, perturbations
from edgekd.compress.variants import CandidateSpec
from edgekd.config.target import load_calibration
from edgekd.errors import EdgekdError
from edgekd.files import quiet
from edgekd.gram.blame import FUSION
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.runtime.session import run_rows, write_arrays
from edgekd.stages.artifacts import PROBE_GRAPH
from edgekd.training.export.onnx import ExportNetwork, write_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alarm_cases import Array, Case
    from onnx import ModelProto
    from torch import nn

#: One in so many of the grid on a branch or the fusion.
_EVERY = 3
_FAKE = tuple(product((8, 5, 4), (8, 6, 5, 4), (200, 4)))
_CUTS = tuple(product(("gram", "magnitude"), (0.7, 0.45, 0.25), (1, 4)))
_CALIBRATIONS = ("minmax", "gram", "percentile")
_PEERS = (
    ("ONNX Runtime", "default", 200), ("ONNX Runtime", "best", 200), ("ONNX Runtime", "best, float outputs", 200),
    ("NNCF", "default", 200), ("NNCF", "best", 200), ("ONNX Runtime", "default", 4), ("NNCF", "default", 4),
)  # fmt: skip
#: Operators whose outputs fake quantization rounds.
_ROUNDED = frozenset({"Add", "BatchNormalization", "Concat", "Conv", "Gemm", "MatMul", "ReduceMean", "Relu"})


@dataclass(frozen=True)
class Variant:
    """One compressed or damaged network.

    Attributes:
        family: "damage", "fake", "pruned" or "int8".
        where: The place of damage; "network" for all else.
        name: What was done.
        graph: The network, with all outputs.
    """

    family: str
    where: str
    name: str
    graph: bytes


def export_float(case: Case, path: Path) -> ModelProto:
    """Write the float network."""
    return _export(case, case.model, path)


def _export(case: Case, model: nn.Module, path: Path) -> ModelProto:
    inputs = {name: x[:2] for name, x in case.splits["train"].inputs.items()}
    write_onnx(ExportNetwork(model, case.taps), inputs, OPSET, path)
    return onnx.load(str(path))


def variants(case: Case, model: ModelProto, work: Path, *, quick: bool) -> Iterator[Variant]:
    """Yield all variants of one float network.

    Args:
        case: The network.
        model: Its graph, which lies in ``work`` as ``float.onnx``.
        work: A folder.
        quick: Whether one of each family is enough.
    """
    some = slice(0, 1) if quick else slice(None)
    grid = _grid(list(case.feeds("val")), fusion=case.kind != "embedding")
    for done in grid[:: 6 if quick else 1]:
        name = f"{done.kind} {done.strength:g}"
        yield Variant("damage", done.where, name, perturb(model, done).SerializeToString())
    feeds = case.feeds("calibration")
    for weights, activations, samples in _FAKE[some]:
        graph = perturb(model, Perturbation("rounding", weights))
        rounded = round_activations(graph, {name: x[:samples] for name, x in feeds.items()}, activations)
        yield Variant("fake", NETWORK, f"w{weights} a{activations} of {samples}", rounded.SerializeToString())
    for importance, macs, epochs in _CUTS[some]:
        small = case.prune(importance, macs, epochs)
        graph = _export(case, small, work / "pruned.onnx")
        yield Variant("pruned", NETWORK, f"{importance} {macs:g} {epochs}", graph.SerializeToString())
    yield from _int8(case, work, some)


def _grid(modalities: list[str], *, fusion: bool) -> list[Perturbation]:
    whole = perturbations(modalities, repeats=1)
    places = [NETWORK, *modalities, *([FUSION] if fusion else [])]
    found = []
    for place in places:
        at = [each for each in whole if each.where == place]
        found += at if place == NETWORK else at[::_EVERY]
    return found


def round_activations(model: ModelProto, feeds: dict[str, Array], bits: int) -> ModelProto:
    """Return a graph whose activations are rounded to levels between the extremes that some samples show."""
    graph = copy(model)
    outputs = [name for node in graph.graph.node if node.op_type in _ROUNDED for name in node.output[:1]]
    outputs = [name for name in outputs if name != "logits"]
    shown = copy(model)
    known = {value.name for value in shown.graph.output}
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs if name not in known)
    with open_engine(shown.SerializeToString(), fused=False) as session:
        found = run_rows(session, feeds, 256)
    nodes = []
    for node in graph.graph.node:
        nodes.append(node)
        if node.output[0] in outputs and found[node.output[0]].dtype == np.float32:  # and not a shape
            nodes += _rounding(graph, node, found[node.output[0]], bits)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph


def _rounding(model: ModelProto, node: Any, seen: Array, bits: int) -> list[Any]:
    """Let a node write under another name, and return the nodes that round that to its old one."""
    name, raw = node.output[0], f"{node.output[0]}.raw"
    node.output[0] = raw
    low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
    step = (high - low) / (2**bits - 1) or 1.0
    numbers = {"step": step, "low": round(low / step), "high": round(low / step) + 2**bits - 1}
    for key, value in numbers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{name}.{key}"))
    return [
        helper.make_node("Div", [raw, f"{name}.step"], [f"{name}.divided"]),
        helper.make_node("Round", [f"{name}.divided"], [f"{name}.rounded"]),
        helper.make_node("Clip", [f"{name}.rounded", f"{name}.low", f"{name}.high"], [f"{name}.clipped"]),
        helper.make_node("Mul", [f"{name}.clipped", f"{name}.step"], [name]),
    ]


def _int8(case: Case, work: Path, some: slice) -> Iterator[Variant]:
    floats, samples = work / "float.onnx", work / "calibration.npz"
    feeds = case.feeds("calibration")
    write_arrays(samples, {"ids": case.ids("calibration"), **{f"input.{name}": x for name, x in feeds.items()}})
    scheme = edgekd.load_target("cpu").scheme
    for name in _CALIBRATIONS[some]:
        spec = CandidateSpec("int8", "qdq")
        try:
            quantize.run(spec, floats, samples, scheme, load_calibration(name), work)
        except EdgekdError as error:
            print(f"{case.seed_of}: edgekd {name}: {error}", file=sys.stderr)
            continue
        yield Variant("int8", NETWORK, f"edgekd {name}", (work / spec.name / PROBE_GRAPH).read_bytes())
    for peer, setting, count in _PEERS[some]:
        few = work / "few.npz"
        write_arrays(few, {name: x[:count] for name, x in feeds.items()})
        result = work / "peer.onnx"
        with TemporaryDirectory() as scratch:
            try:
                with quiet(), redirect_stdout(io.StringIO()):
                    QUANTIZERS[peer](floats, Samples(few), result, Path(scratch), setting)
            except (RuntimeError, ValueError) as error:  # what a peer refuses is no variant
                print(f"{case.seed_of}: {peer} {setting}: {error}", file=sys.stderr)
                continue
        graph = onnx.load(str(result))
        unquantize_outputs(graph)
        yield Variant("int8", NETWORK, f"{peer} {setting}, {count}", graph.SerializeToString())
