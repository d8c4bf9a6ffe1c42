"""The peers that quantize a network beside edgekd, each in a process of its own, and what is counted of the result."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from venv import create as create_venv

import numpy as np
import onnx
from peers.quantize import SETTINGS
from watching import watch

import edgekd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnx import GraphProto

    Array = np.ndarray[Any, Any]

FLOAT = "float32"
#: Peer and setting by the contestant's name.
PEERS = {f"{peer}, {setting}": (peer, setting) for peer, settings in SETTINGS.items() for setting in settings}

#: Those that install nothing beside a build's own packages run in this Python, the others in a venv of their own.
_OWN_VENV = ("Olive", "ModelOpt")
_PEERS = ("olive-ai==0.13.0", "requests", "nvidia-modelopt[onnx]==0.47.0", "torch==2.13.0")
#: ModelOpt asks for the build for GPUs too, whose files overwrite this one's.
_RUNTIME, _UNWANTED = "onnxruntime==1.32.0", "onnxruntime-gpu"

#: Operators that are layers with weights in float, or in INT8 between a quantizing and a dequantizing node; and those
#: that are in integers as they stand.
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGER = (
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QGemm",
    "QLinearConv", "QLinearMatMul", "DynamicQuantizeLSTM",
)  # fmt: skip
#: Stages of a build that write no graph: they judge, time and pack what was written.
_AFTERWARDS = frozenset(
    {"compile", "evaluate", "check", "profile", "missing", "judge", "details", "robustness", "robustness_shipped",
     "bundle", "verify"}
)  # fmt: skip
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")


def peers_python(folder: Path) -> Path:
    """Return the interpreter of the venv with the heavy peers, 2.4 GB; it is made where it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        create_venv(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *_PEERS], check=True)
        subprocess.run([*pip, "uninstall", "--yes", _UNWANTED, "onnxruntime"], check=True)
        subprocess.run([*pip, "install", "--no-deps", _RUNTIME], check=True)
    return python


def run_peer(
    contestant: str, network: Path, samples: Path, result: Path, venv: Path, timeout_s: float | None = None
) -> dict[str, Any]:
    """Let a peer quantize a network, in a process of its own.

    Args:
        contestant: One of :data:`PEERS`.
        network: The float ONNX.
        samples: ``.npz`` with the calibration samples by the names of the network's inputs.
        result: The file that it writes.
        venv: Where the heavy peers are installed.
        timeout_s: Seconds after which it is given up.

    Returns:
        What it cost, or as ``failed`` why it did not succeed.
    """
    peer, setting = PEERS[contestant]
    python = peers_python(venv) if peer in _OWN_VENV else Path(sys.executable)
    script = Path(__file__).parent / "peers" / "quantize.py"
    files = [path.absolute() for path in (network, samples, result)]
    environment = {**os.environ, "PYTHONPATH": str(Path(edgekd.__file__).parent.parent)}
    ended = watch([python.absolute(), script, peer, setting, *files], environment, timeout_s)
    if ended.failed:
        return {"failed": ended.failed, **ended.cost}
    cost: dict[str, Any] = json.loads(result.with_suffix(".json").read_text(encoding="utf-8"))
    return {**cost, **ended.cost}


def count_layers(path: Path) -> tuple[int, int]:
    """Return how many layers with weights compute in INT8, and how many there are, in branches too."""
    quantized = [known for graph in _graphs(onnx.load(str(path)).graph) for known in _layers(graph)]
    return sum(quantized), len(quantized)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _layers(graph: GraphProto) -> Iterator[bool]:
    producer = {name: node for node in graph.node for name in node.output}
    constant = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _INTEGER:
            yield True
        if node.op_type not in _LAYERS:
            continue
        name = node.input[1]
        while name in producer and producer[name].op_type in _ROUNDING:
            name = producer[name].input[0]
        if name in constant or (name in producer and producer[name].op_type == "Constant"):
            yield name != node.input[1]  # else it is the product of two activations


def snr_db(found: Array, expected: Array) -> float | None:
    """Return the ratio of signal to error in dB; None where there is no error."""
    signal, error = (float((x.astype(np.float64) ** 2).sum()) for x in (expected, found - expected))
    return 10 * math.log10(signal / error) if error else None


def writing_seconds(stages: Mapping[str, float]) -> float:
    """Return the seconds of those stages of a build that write its graphs, by the stages' names with their targets."""
    return sum(seconds for name, seconds in stages.items() if name.split()[0] not in _AFTERWARDS)
